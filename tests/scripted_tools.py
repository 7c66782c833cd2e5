"""Tools that answer as a script says, on a clock that never waits: what takes minutes is over at once, and comes out the same every time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from data_plane.mcp_sessions import McpSessions
from data_plane.steps.base import Clients
from tests.reference_interpreter import Answer

JSON = {"content-type": "application/json"}


class DefectError(Exception):
    """What no step should raise."""


class ScriptedTools(httpx2.AsyncBaseTransport):
    """A tool at http://tools.test/NAME for each name, which gives one answer after the other, and the last one again and again."""

    def __init__(self, answers: dict[str, list[Answer]]) -> None:
        self._answers = answers
        self._calls: Counter[str] = Counter()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        name = request.url.path.removeprefix("/")
        self._calls[name] += 1
        answers = self._answers[name]
        answer = answers[min(self._calls[name], len(answers)) - 1]
        await asyncio.sleep(answer.seconds)
        if answer.what == "ok":
            answered = {"attempt": self._calls[name], "given": json.loads(await request.aread())}
            return httpx2.Response(200, headers=JSON, stream=httpx2.ByteStream(json.dumps(answered).encode()))
        if answer.what == "lost":
            raise httpx2.ConnectError("no route to the tool")
        if answer.what == "defect":
            raise DefectError
        return httpx2.Response(int(answer.what), headers={"retry-after": str(answer.retry_after)}, stream=httpx2.ByteStream(b""))


class ClockThatNeverWaits(asyncio.SelectorEventLoop):
    """Where others would wait for a time, it is that time."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._look = self._selector.select
        self._selector.select = self._go_on

    def time(self) -> float:
        return self._now

    def _go_on(self, seconds: float | None) -> Any:
        assert seconds is not None, "everything waits, and for no time"
        self._now += seconds
        return self._look(0)

    @contextlib.contextmanager
    def running(self) -> Iterator[asyncio.Runner]:
        """Runs on this clock, and so do the gateway's deadlines."""
        ours = SimpleNamespace(monotonic=self.time, time=time.time)
        with pytest.MonkeyPatch.context() as patched, asyncio.Runner(loop_factory=lambda: self) as runner:
            patched.setattr("data_plane.pipeline.time", ours)
            patched.setattr("data_plane.gateway.time", ours)
            yield runner


def clients_of(tools: ScriptedTools) -> Clients:
    """What reaches these tools and nothing else."""
    return Clients(http=httpx2.AsyncClient(transport=tools), mcp=McpSessions(tools))
