"""Everything that upstreams, authors and callers can do wrong, through the real door: the reason of the contract within the deadline, with
stage and step named, while other requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format

from data_plane.lookup import Asked
from data_plane.steps.tool_http import _HttpCall
from pointsman.errors import StepTimeout
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually
from tests.raw_upstream import RawUpstream, answer, chunked, raw_upstream
from tests.test_http_door import Door, bare
from tests.test_streaming import EVENT_STREAM, events_of

__all__ = ["bare"]

STEP_SECONDS = 0.5
# Of a whole request, on a machine that is busy with other things too.
PATIENCE_SECONDS = 5.0
OTHERS_SECONDS = 2.0
HALF = b'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n'
ANSWERS = {
    "e429": answer(b"slow down", "text/plain", status="429 Too Many Requests"),
    "e500": answer(b"broken", "text/plain", status="500 Internal Server Error"),
    "cut_json": answer(b'{"half":', length=1000),
    "cut_head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "half_json": answer(b'{"half":'),
    "html": answer(b"<html>no</html>", "text/html"),
    "html_as_json": answer(b"<html>no</html>"),
    "no_http": b"220 smtp.example.com ready\r\n",
    "nothing": b"",
    "redirect": answer(b"", status="302 Found\r\nlocation: /e500"),
    "bomb": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 100_000_000, 1),
    "packed": b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\nxyz",
    "deep": answer(b"[" * 10_000 + b"]" * 10_000),
    "events_cut_in_a_line": chunked(HALF, b'data: {"choices": [{"index"', ends=False),
    "events_end_in_a_line": chunked(HALF, b'data: {"choices": [{"index"', ends=True),
    "events_end_early": chunked(HALF, ends=True),
    "events_of_html": chunked(b"data: <html>\n\n", ends=True),
}
TOOLS = {
    "e429": "answered 429: slow down",
    "e500": "answered 500: broken",
    "cut-json": "the answer was cut",
    "cut-head": "cannot be reached",
    "half-json": "says that it answers JSON, but the answer is not JSON",
    "html-as-json": "says that it answers JSON, but the answer is not JSON",
    "no-http": "cannot be reached",
    "nothing": "cannot be reached",
    "redirect": "answered 302",
    "bomb": "answered more than 4194304 bytes",
    "packed": "answered in the encoding 'br'",
    "deep": "nested deeper than 32 levels",
    "endless": "answered more than 4194304 bytes",
}
MODELS = {
    "e429": "answered 429",
    "e500": "answered 500",
    "cut-json": "the answer was cut",
    "half-json": "did not answer as the OpenAI API does",
    "html": "did not answer as the OpenAI API does",
    "no-http": "cannot be reached",
    "nothing": "cannot be reached",
    "redirect": "answered 302",
    "bomb": "answered more than 4194304 bytes",
    "packed": "answered in the encoding 'br'",
    "deep": "did not answer as the OpenAI API does",
    "endless": "answered more than 4194304 bytes",
}
STREAMS = {
    **{name: says for name, says in MODELS.items() if name != "half-json"},
    "events-cut-in-a-line": "the answer was cut",
    "events-end-in-a-line": "did not answer as the OpenAI API does",
    "events-end-early": "the answer was cut before its end",
    "events-of-html": "did not answer as the OpenAI API does",
}
EXPLODING = {
    "budget": {"transform": {"expression": "input.l.map(a, input.l.map(b, input.l.filter(c, a + b + c < 0)))"}},
    "doubling": {"transform": {"expression": "[steps.big, steps.big, steps.big, steps.big, steps.big, steps.big]"}},
    "fuel": {
        "inference": {
            "model": "e500",
            "prompt": "{% for a in input.l %}{% for b in input.l %}{% for c in input.l %}{{ a }}{% endfor %}{% endfor %}{% endfor %}",
        }
    },
}


def config(upstream: str) -> AppConfig:
    """An endpoint for each fault: tool/<path>, model/<path>, exploding/<name>."""
    names = [*{*TOOLS, *MODELS, *STREAMS, "hang"}]
    kinds: dict[str, dict[str, Any]] = {f"tool/{name}": {"tool_call": {"tool": name}} for name in names}
    kinds |= {f"model/{name}": {"inference": {"model": name, "prompt": "Hi"}} for name in names}
    kinds |= {f"exploding/{name}": kind for name, kind in EXPLODING.items()}
    big = {"name": "big", "transform": {"expression": "input.?text.orValue('')"}}
    pipelines = [
        {"name": name, "stages": [{"name": "ask", "steps": [big, {"name": "it", "timeout": f"{STEP_SECONDS}s", **kind}]}]}
        for name, kind in kinds.items()
    ]
    echo = {"name": "echo", "stages": [{"name": "s", "steps": [{"name": "a", "transform": {"expression": "input"}}]}]}
    return json_format.ParseDict(
        {
            "endpoints": [{"name": name.replace("/", "."), "path": name, "pipeline": name} for name in ("echo", *kinds)],
            "pipelines": [echo, *pipelines],
            "tools": [{"name": name, "http": {"url": f"{upstream}/{name}"}} for name in names],
            "models": [{"name": name, "targets": [{"base_url": f"{upstream}/{name}"}]} for name in names],
        },
        AppConfig(),
    )


class Faulty:
    """The door, and what is behind it."""

    def __init__(self, door: Door, upstream: RawUpstream) -> None:
        self.door, self.upstream = door, upstream

    async def failed(self, path: str, **given: Any) -> dict[str, Any]:
        """How a trigger failed, whole."""
        response = await self.door.http.post(f"/v1/trigger/{path}", json=given)
        found: dict[str, Any] = response.json()
        assert response.status_code == found["status_code"], found
        return found

    async def failed_stream(self, path: str) -> dict[str, Any]:
        """How a trigger failed that was told as it went."""
        async with self.door.http.stream("POST", f"/v1/trigger/{path}", json={}, headers=EVENT_STREAM) as response:
            name, found = (await events_of(response))[-1]
        assert name == "execution.failed", found
        return found


@pytest.fixture
async def faulty(bare: Door) -> AsyncIterator[Faulty]:
    async with raw_upstream(**ANSWERS) as upstream:
        await bare.bind(7, ("shop", "production", "v1"), config=config(upstream.url))
        yield Faulty(bare, upstream)


@contextlib.asynccontextmanager
async def others(door: Door) -> AsyncIterator[None]:
    """Meanwhile somebody else is served, again and again, and at once."""
    slowest, served, over = 0.0, 0, False

    async def serve() -> None:
        nonlocal slowest, served
        while not over:
            began = time.monotonic()
            response = await door.http.post("/v1/trigger/echo", json={"n": served})
            slowest, served = max(slowest, time.monotonic() - began), served + 1
            assert (response.status_code, response.json()) == (200, {"n": served - 1})

    task = asyncio.create_task(serve())
    try:
        yield
    finally:
        over = True
        await task
    assert served > 0
    assert slowest < OTHERS_SECONDS


def check(found: dict[str, Any], says: str, reason: str = "STEP_FAILED") -> None:
    assert (found["error"], found["details"]["stage"], found["details"]["step"]) == (reason, "ask", "it"), found
    assert says in found["message"]


async def test_whatever_a_tool_or_a_model_does_is_told_in_time_and_other_requests_go_on(faulty: Faulty) -> None:
    async with others(faulty.door), asyncio.timeout(PATIENCE_SECONDS * 3):
        for name, says in TOOLS.items():
            check(await faulty.failed(f"tool/{name}"), says)
        for name, says in MODELS.items():
            check(await faulty.failed(f"model/{name}"), says)
        for name, says in STREAMS.items():
            check(await faulty.failed_stream(f"model/{name}"), says)
    await eventually(lambda: faulty.upstream.connections == 0)
    # Of 100 MB, each of three times, no more was taken than fits between two sockets.
    assert faulty.upstream.endless_bytes < 3 * 20_000_000


async def test_what_hangs_ends_at_its_timeout_and_is_let_go(faulty: Faulty) -> None:
    async with others(faulty.door), asyncio.timeout(PATIENCE_SECONDS):
        hanging = (faulty.failed("tool/hang"), faulty.failed("model/hang"), faulty.failed_stream("model/hang"))
        for found in await asyncio.gather(*hanging):
            check(found, f"longer than its timeout of {STEP_SECONDS} s", "STEP_TIMEOUT")
    await eventually(lambda: faulty.upstream.connections == 0)


TOO_LONG, OVER = "it took longer than its timeout of 0.2 s", "the time of the whole trigger was over"


@pytest.mark.parametrize(
    ("step", "endpoint", "caller", "says"),
    [(0.2, 5.0, 5.0, TOO_LONG), (5.0, 0.2, 5.0, OVER), (5.0, 5.0, 0.2, OVER), (0.2, 5.0, None, TOO_LONG), (5.0, 5.0, 0.0, OVER)],
)
async def test_the_shortest_of_the_times_of_step_endpoint_and_caller_counts(
    faulty: Faulty, step: float, endpoint: float, caller: float | None, says: str
) -> None:
    one = {"name": "it", "timeout": f"{step}s", "tool_call": {"tool": "hang"}, "continue_on_error": says is OVER}
    app = {
        "endpoints": [{"name": "e", "pipeline": "p", "timeout": f"{endpoint}s"}],
        "pipelines": [{"name": "p", "stages": [{"name": "ask", "steps": [one]}]}],
        "tools": [{"name": "hang", "http": {"url": f"{faulty.upstream.url}/hang"}}],
    }
    await faulty.door.bind(8, ("shop", "production", "v2"), config=json_format.ParseDict(app, AppConfig()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StepTimeout, match=says) as failed:
            await faulty.door.gateway.trigger(Asked(app="shop", endpoint="e", input={}, seconds_left=caller))
    assert (failed.value.metadata["stage"], failed.value.metadata["step"]) == ("ask", "it")
    await eventually(lambda: faulty.upstream.connections == 0)


@pytest.mark.parametrize(("name", "says"), [("budget", "budget"), ("doubling", "is too large"), ("fuel", "fuel")])
async def test_a_template_or_an_expression_that_explodes_fails_its_step(faulty: Faulty, name: str, says: str) -> None:
    async with others(faulty.door), asyncio.timeout(PATIENCE_SECONDS):
        check(await faulty.failed(f"exploding/{name}", l=[1] * 1000, text="x" * 3_500_000), says)


async def test_a_defect_of_a_step_is_told_by_an_id_alone(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("inner text")

    monkeypatch.setattr(_HttpCall, "__call__", broken)
    async with others(faulty.door):
        found = await faulty.failed("tool/e500")
    assert (found["error"], found["status_code"]) == ("INTERNAL", 500)
    assert found["details"]["execution_id"] in found["message"]
    assert "inner text" not in json.dumps(found)


BODIES = [
    (b"{oops", 400, "INVALID_INPUT"),
    (b"[" * 10_000 + b"]" * 10_000, 400, "INVALID_INPUT"),
    (b'{"text": "' + b"x" * 5_000_000 + b'"}', 413, "TOO_LARGE"),
    (b'{"n": NaN}', 400, "INVALID_INPUT"),
    (b'{"n": 1, "n": 2}', 400, "INVALID_INPUT"),
    (b'{"text": "\xff"}', 400, "INVALID_INPUT"),
    (b'{"l": [' + b"0," * 2_000_000 + b"0]}", 200, ""),
    (b'{"' + b'":{"'.join(b"%d" % n for n in range(200_000)) + b'":1' + b"}" * 200_000, 400, "INVALID_INPUT"),
]


@pytest.mark.parametrize(("body", "status", "reason"), BODIES, ids=lambda value: str(value)[:24])
async def test_whatever_a_caller_sends_is_answered_in_time_and_other_requests_go_on(
    faulty: Faulty, body: bytes, status: int, reason: str
) -> None:
    async with others(faulty.door), asyncio.timeout(PATIENCE_SECONDS):
        response = await faulty.door.http.post("/v1/trigger/echo", content=body)
    assert response.status_code == status
    assert not reason or response.json()["error"] == reason
