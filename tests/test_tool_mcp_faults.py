"""MCP servers that misbehave, of a protocol version with sessions: what is told, what is tried again, and what is never called twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from data_plane.mcp_promises import MAX_PAGES
from data_plane.pipeline import run
from data_plane.steps.base import Clients
from pointsman.asgi import asgi
from pointsman.errors import StepFailed
from pointsman.settings import Address
from pointsman.v1.config_pb2 import AppConfig
from pointsman.web import HttpServer
from tests.eventually import eventually
from tests.mcp_server import mcp_server
from tests.test_http_door import Door, bare
from tests.test_tool_call import clients as clients  # noqa: PLC0414 -- a fixture
from tests.test_tool_call import running
from tests.test_tool_mcp import calling

__all__ = ["bare"]

SCHEMA = {"type": "object", "properties": {"kilograms": {"type": "number"}}, "required": ["kilograms"]}
POUNDS = {"type": "object", "required": ["pounds"]}
RETRIES = {"max_retries": 2}


class OddServer:
    """`answer` is how a call of a tool is answered; `calls` counts messages by method; `session` is the one that it knows.

    A good answer is `found`; `promised` is the tool's output schema, listed on the last of so many `pages`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answer = "heavy"
        self.calls: Counter[str] = Counter()
        self.session = "first"
        self.found: Any = {"kilograms": 7}
        self.promised: Any = SCHEMA
        self.pages = 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OddServer]:
        server = HttpServer(asgi(Starlette(routes=[Route("/mcp", self._post, methods=["POST"])])))
        await server.start(Address("127.0.0.1", 0))
        self.url = f"http://{server.address}/mcp"
        try:
            yield self
        finally:
            await server.stop()

    async def _post(self, request: Request) -> Response:
        message = json.loads(await request.body())
        method = message["method"]
        self.calls[method] += 1
        if method == "initialize":
            result: dict[str, Any] = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "odd", "version": "1"},
            }
            return self._result(message, result, {"mcp-session-id": self.session})
        if method == "tools/list":
            page = int(message.get("params", {}).get("cursor") or 1)
            if page < self.pages:
                return self._result(
                    message, {"tools": [{"name": f"t{page}", "inputSchema": {"type": "object"}}], "nextCursor": f"{page + 1}"}
                )
            tool = {"name": "weigh", "inputSchema": {"type": "object"}} | ({"outputSchema": self.promised} if self.promised else {})
            return self._result(message, {"tools": [tool]})
        if method == "tools/call":
            if request.headers["mcp-session-id"] != self.session:
                self.calls["refused"] += 1
                return JSONResponse({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "who?"}}, 404)
            return self._called(message)
        if "id" in message:
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}})
        return Response(status_code=202)

    def _called(self, message: dict[str, Any]) -> Response:
        result = {"content": [], "structuredContent": {"kilograms": "heavy"} if self.answer == "heavy" else self.found}
        text = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        answers = {
            "202": Response(status_code=202),
            "302": RedirectResponse("http://10.0.0.1/mcp", 302),
            "html": Response("<p>Hello", media_type="text/html"),
            "broken": Response('{"jsonrpc"', media_type="application/json"),
            "packed": Response(text, media_type="application/json", headers={"content-encoding": "br"}),
            "error": JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32600, "message": "not like this"}}),
            "event-cut": Response('data: {"jsonrpc"', media_type="text/event-stream"),
            "event-huge": Response(f"data: {'x' * 5_000_000}\n\n", media_type="text/event-stream"),
            "event": Response(f"event: message\ndata: {text}\n\n", media_type="text/event-stream"),
        }
        return answers.get(self.answer) or Response(text, media_type="application/json")

    @staticmethod
    def _result(message: dict[str, Any], result: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": result}, headers=headers)


@pytest.fixture
async def odd():
    async with OddServer().running() as server:
        yield server


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("heavy", 'its tool \'weigh\' gave what its output schema does not allow: kilograms: "heavy" is not of type "number"'),
        ("202", "202 Accepted"),
        ("302", "Redirect to http://10.0.0.1/mcp not followed"),
        ("html", "Unexpected content type"),
        ("broken", "Failed to parse JSON"),
        ("packed", "it packs its answers, though asked not to"),
        ("error", "not like this"),
        ("event-cut", "its answer lost"),
        ("event-huge", "exceeded the 4194304 byte limit"),
    ],
)
async def test_an_answer_that_is_none_fails_the_step_and_the_tool_is_not_called_again(
    odd: OddServer, clients: Clients, answer: str, says: str
):
    odd.answer = answer
    with pytest.raises(StepFailed) as failed:
        await run(calling(odd.url, "weigh", step=RETRIES), running(clients))
    assert says in failed.value.metadata["cause"]
    assert odd.calls["tools/call"] == 1
    odd.answer = "good"
    assert await run(calling(odd.url, "weigh"), running(clients)) == {"kilograms": 7}


async def test_a_server_may_change_what_its_tools_answer_while_a_session_lasts(odd: OddServer, clients: Clients):
    odd.answer = "good"
    endpoint = calling(odd.url, "weigh")
    assert [await run(endpoint, running(clients)) for _ in range(3)] == [{"kilograms": 7}] * 3
    assert odd.calls["tools/list"] == 1
    odd.promised = {"type": "object", "required": ["pounds"], "properties": {"pounds": {"type": "integer"}, "kilograms": False}}
    odd.found = {"pounds": 15}
    assert [await run(endpoint, running(clients)) for _ in range(3)] == [{"pounds": 15}] * 3
    odd.promised, odd.found = None, {"stones": 1}
    assert [await run(endpoint, running(clients)) for _ in range(3)] == [{"stones": 1}] * 3
    assert (odd.calls["tools/list"], odd.calls["initialize"]) == (3, 1)


async def test_what_a_tool_promises_is_found_on_any_page_and_a_list_without_an_end_is_not_read(odd: OddServer, clients: Clients):
    odd.pages, odd.promised, odd.answer = 3, POUNDS, "good"
    with pytest.raises(StepFailed, match="does not allow"):
        await run(calling(odd.url, "weigh"), running(clients))
    async with OddServer().running() as endless:
        endless.pages, endless.promised, endless.answer = 10**9, POUNDS, "good"
        assert await run(calling(endless.url, "weigh"), running(clients)) == {"kilograms": 7}
        assert endless.calls["tools/list"] == MAX_PAGES


async def test_a_pattern_of_a_server_keeps_nobody_busy(odd: OddServer, clients: Clients):
    odd.promised, odd.found, odd.answer = (
        {"type": "object", "properties": {"code": {"pattern": "^(a+)+$"}}},
        {"code": "a" * 1000 + "!"},
        "good",
    )
    async with asyncio.timeout(5):
        with pytest.raises(StepFailed, match="does not allow: code"):
            await run(calling(odd.url, "weigh"), running(clients))


@pytest.mark.parametrize(
    "promised",
    [
        {"pattern": "(?=a)"},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"properties": {"pounds": {"type": "weight"}}},
        {"$schema": "http://example.com/mine"},
    ],
)
async def test_answers_are_not_checked_by_a_schema_that_cannot_be_used(odd: OddServer, clients: Clients, promised: Any):
    odd.promised, odd.answer = POUNDS | promised, "good"
    assert await run(calling(odd.url, "weigh"), running(clients)) == {"kilograms": 7}


async def test_a_tool_with_an_output_schema_must_answer_a_value(odd: OddServer, clients: Clients):
    odd.found, odd.answer = None, "good"
    with pytest.raises(StepFailed, match="has an output schema, and gave no structured content"):
        await run(calling(odd.url, "weigh"), running(clients))


async def test_an_answer_as_an_event_is_an_answer(odd: OddServer, clients: Clients):
    odd.answer = "event"
    assert await run(calling(odd.url, "weigh"), running(clients)) == {"kilograms": 7}


async def test_a_session_that_is_not_known_any_more_is_opened_anew_and_a_tool_called_that_is_not_retry_safe(
    odd: OddServer, clients: Clients
):
    odd.answer = "good"
    endpoint = calling(odd.url, "weigh")
    await run(endpoint, running(clients))
    odd.session = "second"
    answers = await asyncio.gather(*(run(endpoint, running(clients)) for _ in range(5)))
    assert answers == [{"kilograms": 7}] * 5
    assert odd.calls["initialize"] == 2
    assert odd.calls["tools/call"] - odd.calls["refused"] == 6


async def test_a_server_that_is_not_there_is_tried_again_since_nothing_can_have_run(clients: Clients):
    now = running(clients)
    with pytest.raises(StepFailed, match=r"after 3 attempts.*cannot be reached"):
        await run(calling("http://127.0.0.1:9/mcp", "weigh", step=RETRIES), now)
    async with OddServer().running() as odd:
        odd.answer = "good"
        endpoint = calling(odd.url, "weigh", step=RETRIES)
        await run(endpoint, running(clients))
    now = running(clients)
    with pytest.raises(StepFailed, match=r"after 3 attempts.*cannot be reached"):
        await run(endpoint, now)


@pytest.mark.parametrize("secret", ["canary-4711\r", "canary-4711 ", "canary-4711-ä"])
async def test_a_secret_that_is_no_header_is_not_shown(odd: OddServer, clients: Clients, secret: str):
    with pytest.raises(StepFailed, match="HTTP does not allow the value of one of its headers") as failed:
        await run(calling(odd.url, "weigh", secret=secret), running(clients))
    assert "canary" not in failed.value.message + repr(failed.value.metadata)
    assert not odd.calls


def app_of(mortal: str, other: str) -> AppConfig:
    """An endpoint for each tool; those of the first server, one of the second, and one that needs nobody."""
    tools = {"hang": mortal, "hanging": mortal, "find_order": mortal, "greet": other}
    given = {"find_order": "{'order_id': 7}", "greet": "{'name': 'Ada'}"}
    steps = {name: {"name": f"call {name}", "tool_call": {"tool": name, "arguments": given.get(name, "{}")}} for name in tools}
    steps["plain"] = {"name": "call plain", "transform": {"expression": "'here'"}}
    return json_format.ParseDict(
        {
            "endpoints": [{"name": name, "pipeline": name} for name in steps],
            "pipelines": [{"name": name, "stages": [{"name": f"ask {name}", "steps": [step]}]} for name, step in steps.items()],
            "tools": [{"name": name, "mcp": {"url": url}} for name, url in tools.items()],
        },
        AppConfig(),
    )


async def test_a_server_that_is_killed_amid_a_call_fails_that_trigger_alone_and_is_found_again(bare: Door):
    async def trigger(endpoint: str) -> Any:
        return await bare.http.post(f"/v1/trigger/{endpoint}", json={})

    served: Counter[str] = Counter()

    async def go_on(endpoint: str, expected: Any) -> None:
        while True:
            answer = await trigger(endpoint)
            assert (answer.status_code, answer.json()) == (200, expected)
            served[endpoint] += 1

    async def hanging() -> bool:
        return bool((await trigger("hanging")).json() == {"result": 1})

    async def served_on() -> None:
        before = Counter(served)
        await eventually(lambda: min(served[one] - before[one] for one in ("plain", "greet")) >= 5)

    async with mcp_server() as other, contextlib.AsyncExitStack() as mortal:
        url = await mortal.enter_async_context(mcp_server())
        await bare.bind(1, ("shop", "production", "v1"), config=app_of(url, other))
        others = [asyncio.create_task(go_on("plain", "here")), asyncio.create_task(go_on("greet", "Hello Ada"))]
        cut = asyncio.create_task(trigger("hang"))
        await eventually(hanging)
        await mortal.aclose()
        answer = await cut
        told = answer.json()
        assert (answer.status_code, told["error"], answer.headers["x-release"]) == (502, "STEP_FAILED", "v1")
        assert {key: told["details"][key] for key in ("stage", "step")} == {"stage": "ask hang", "step": "call hang"}
        assert "its answer lost" in told["details"]["cause"]
        await served_on()
        gone = await bare.refused(502, "STEP_FAILED", "POST", "/v1/trigger/find_order", json={})
        assert "cannot be reached" in gone.json()["details"]["cause"]
        await served_on()
        async with mcp_server(urlsplit(url).port or 0):
            assert (await trigger("find_order")).json() == {"order_id": 7, "status": "shipped"}
            await served_on()
        for task in others:
            task.cancel()
        assert {type(one) for one in await asyncio.gather(*others, return_exceptions=True)} == {asyncio.CancelledError}
