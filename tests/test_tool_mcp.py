"""Tools of a real MCP server: answers, refusals, a server that dies and comes back, calls that are given up."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf import json_format

from data_plane.hosts import HostPolicy
from data_plane.loaded import LoadedEndpoint, compile_release
from data_plane.pipeline import run
from data_plane.secrets import Secrets
from data_plane.steps.base import Clients
from pointsman.errors import StepFailed, StepTimeout
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually
from tests.mcp_server import mcp_server
from tests.scripted_upstream import ScriptedUpstream
from tests.test_inference import calls
from tests.test_pipeline import digest_of
from tests.test_tool_call import clients as clients  # noqa: PLC0414 -- a fixture
from tests.test_tool_call import running


def calling(url: str, tool: str, arguments: str = "{}", secret: str = "canary-4711", **more: Any) -> LoadedEndpoint:
    step = {"name": "call", "tool_call": {"tool": "t", "arguments": arguments}, **more.pop("step", {})}
    described = {"name": "t", "mcp": {"url": url, "tool": tool, "headers": {"x-key": "${secret:KEY}"}}, **more}
    return compiled({"pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [step]}]}], "tools": [described]}, secret)


def compiled(config: dict[str, Any], secret: str = "canary-4711") -> LoadedEndpoint:
    config = {"endpoints": [{"name": "e", "pipeline": "p"}], **config}
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    return compile_release(digest_of(snapshot), snapshot, Secrets(environment={"POINTSMAN_SECRET_KEY": secret})).endpoints["e"]


async def failing(endpoint: LoadedEndpoint, clients: Clients, **given: Any) -> str:
    with pytest.raises(StepFailed) as error:
        await run(endpoint, running(clients, **given))
    assert "canary" not in str(error.value.metadata)
    return error.value.metadata["cause"]


async def test_structured_content_is_a_value_and_text_is_text(clients):
    async with mcp_server() as url:
        found = await run(calling(url, "find_order", "{'order_id': input.id}"), running(clients, id=7))
        assert found == {"order_id": 7, "status": "shipped"}
        assert await run(calling(url, "greet", "{'name': 'Ada'}"), running(clients)) == "Hello Ada"
        # A second release that uses the same server with the same headers uses the same session.
        assert len(clients.mcp._sessions) == 1


async def test_what_goes_wrong_there_fails_the_step_with_the_reason(clients):
    async with mcp_server() as url:
        assert "the order book is on fire" in await failing(calling(url, "explode"), clients)
        assert "order_id" in await failing(calling(url, "find_order"), clients)
        assert "nothing_there" in await failing(calling(url, "nothing_there"), clients)
        schema = {"type": "object", "required": ["order_id"]}
        assert "does not take these arguments" in await failing(calling(url, "find_order", input_schema=schema), clients)
        with pytest.raises(StepTimeout):
            await run(calling(url, "hang", step={"timeout": "0.3s"}), running(clients))
        # Given up, and nothing else is disturbed.
        assert await run(calling(url, "greet", "{'name': 'Ada'}"), running(clients)) == "Hello Ada"


async def test_what_a_server_repeats_of_a_secret_is_not_told(clients):
    async with mcp_server() as url:
        # The second one begins where what is shown would end in its midst.
        for before in ("", "x" * 160):
            cause = await failing(calling(url, "complain", "{'text': input.text}"), clients, text=f"{before}canary-4711")
            assert f"{before}[secret" in cause


async def test_who_hangs_up_takes_the_call_along(clients):
    async with mcp_server() as url:
        task = asyncio.create_task(run(calling(url, "hang"), running(clients)))
        hanging = calling(url, "hanging")

        async def hang_there(count: int) -> bool:
            return await run(hanging, running(clients)) == {"result": count}

        await eventually(lambda: hang_there(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: hang_there(0))


async def test_an_answer_that_is_too_long_is_refused_and_other_calls_go_on(clients):
    async with mcp_server() as url:
        other = asyncio.create_task(run(calling(url, "hang"), running(clients)))
        endpoint = calling(url, "long_text", "{'count': input.count}")
        assert len(await run(endpoint, running(clients, count=3_000_000))) == 3_000_000
        for count in (5_000_000, 50_000_000):
            assert "it answered more than 4194304 bytes" in await failing(endpoint, clients, count=count)
        assert await run(endpoint, running(clients, count=2)) == "xx"
        assert not other.done()
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other


async def test_a_server_that_dies_and_comes_back_is_found_again(clients):
    async with mcp_server() as url:
        endpoint = calling(url, "find_order", "{'order_id': 7}")
        await run(endpoint, running(clients))
    assert "its MCP server" in await failing(endpoint, clients)
    port = urlsplit(url).port
    async with mcp_server(port):
        assert (await run(endpoint, running(clients)))["status"] == "shipped"


async def test_a_restart_between_two_calls_is_not_noticed(clients):
    async with mcp_server() as url:
        endpoint = calling(url, "find_order", "{'order_id': 7}", retry_safe=True, step={"max_retries": 2})
        await run(endpoint, running(clients))
    async with mcp_server(urlsplit(url).port):
        assert (await run(endpoint, running(clients)))["status"] == "shipped"


async def test_what_is_no_mcp_server_is_told(clients):
    async with ScriptedUpstream().running() as upstream:
        for path in ("/echo", "/not-json", "/500", "/text"):
            assert "its MCP server" in await failing(calling(upstream.url + path, "greet"), clients)


async def test_a_model_may_call_it(clients):
    async with mcp_server() as url, ScriptedUpstream().running() as upstream:
        upstream.completions = [calls('{"order_id": 7}', '{"order_id": "x"}', name="find_order"), "It was shipped."]
        step = {"name": "ask", "inference": {"model": "m", "prompt": "Where is order 7?", "tools": ["find_order"]}}
        endpoint = compiled(
            {
                "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [step]}]}],
                "tools": [{"name": "find_order", "mcp": {"url": url}}],
                "models": [{"name": "m", "targets": [{"base_url": upstream.url + "/v1"}]}],
            }
        )
        running_now = running(clients)
        assert await run(endpoint, running_now) == "It was shipped."
        answers = json.loads(upstream.seen[-1][3])["messages"][-2:]
        assert json.loads(answers[0]["content"]) == {"order_id": 7, "status": "shipped"}
        assert answers[1]["content"].startswith("error: ")
        usage = running_now.steps[0].usage
        assert (usage.model_calls, usage.tool_calls, usage.input_tokens, usage.output_tokens) == (2, 2, 22, 10)
        assert running_now.steps[0].given[0] == {"role": "user", "content": "Where is order 7?"}


async def test_a_host_that_is_not_allowed_is_not_called():
    strict = Clients.open(HostPolicy())
    async with mcp_server() as url:
        cause = await failing(calling(url, "greet", "{'name': 'Ada'}"), strict)
        assert "127.0.0.1 is no public address" in cause
        assert "--allow-host 127.0.0.1" in cause
    await strict.aclose()
