"""Streams on which nothing moves: a step that says nothing for long, a reader that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format

import data_plane.streaming
from data_plane.access import Access
from data_plane.events import JOIN_DELTAS_BEYOND, Event, Events
from data_plane.gateway import Gateway
from data_plane.holder import Change, Holder
from data_plane.http import HttpApp
from data_plane.loaded import compile_release
from data_plane.lookup import Here
from data_plane.secrets import Secrets
from data_plane.staleness import Staleness
from data_plane.table import Bound
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually
from tests.reference_interpreter import Answer
from tests.scripted_tools import ClockThatNeverWaits, ScriptedTools, clients_of
from tests.test_http_door import Door, bare
from tests.test_pipeline import digest_of
from tests.test_streaming import chatting

__all__ = ["bare"]


def waiting_for(seconds: float) -> tuple[HttpApp, dict[str, Any]]:
    """A door whose endpoint `wait` takes so long, and a request to it that wants to be told."""
    config = {
        "endpoints": [{"name": "wait", "pipeline": "wait", "timeout": "600s"}],
        "pipelines": [
            {"name": "wait", "stages": [{"name": "s", "steps": [{"name": "it", "timeout": "600s", "tool_call": {"tool": "slow"}}]}]}
        ],
        "tools": [{"name": "slow", "http": {"method": "PUT", "url": "http://tools.test/slow"}}],
    }
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    holder = Holder(lambda: datetime.now(UTC))
    holder.keep(compile_release(digest_of(snapshot), snapshot, Secrets(environment={})))
    bound = Bound(app="shop", environment="production", release="v1", digest=digest_of(snapshot), revision=1)
    holder.flip(Change(revision=1, store_id="s", bindings=[bound], unusable={}))
    here = Here(gateway_id="g1", default_environment="production", control_plane="cp:7400")
    tools = ScriptedTools({"slow": [Answer("ok", seconds)]})
    gateway = Gateway(holder, Staleness(holder), clients_of(tools), here)
    # Of the pages, which it is not asked for here, it needs more.
    app = HttpApp(gateway, Access(holder), None, None)  # type: ignore[arg-type]
    return app, {
        "type": "http",
        "method": "POST",
        "path": "/v1/trigger/wait",
        "query_string": b"",
        "headers": [(b"accept", b"text/event-stream")],
    }


def test_a_comment_comes_every_15_seconds_when_nothing_else_does() -> None:
    clock, sent = ClockThatNeverWaits(), list[tuple[float, bytes]]()
    app, scope = waiting_for(50.0)
    messages = [{"type": "http.request", "body": b"{}"}]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append((clock.time(), message.get("body", b"")))

    with clock.running() as runner:
        runner.run(app(scope, receive, send))
    comments = [round(when) for when, body in sent if body == b": keep-alive\n\n"]
    assert comments == [15, 30, 45]
    assert b"execution.completed" in sent[-2][1]
    assert round(sent[-2][0]) == 50


class Watched(Events):
    """Knows how many events waited at the most."""

    most = 0

    def put(self, event: Event) -> None:
        super().put(event)
        Watched.most = max(Watched.most, len(self._waiting))


async def test_a_reader_that_does_not_read_holds_up_nothing_and_gets_all_the_text_in_the_end(
    bare: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bare.bind(7, ("shop", "production", "v1"), config=chatting(bare.upstream.url))
    monkeypatch.setattr(data_plane.streaming, "Events", Watched)
    pieces = [f"{number:04}" + "x" * 1000 for number in range(3000)]
    bare.upstream.completions = ["|".join(pieces)]
    host, port = bare.http.base_url.host, bare.http.base_url.port
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, (host, port))
        reader, writer = await asyncio.open_connection(sock=small, limit=4096)
        writer.write(
            b"POST /v1/trigger/chat HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
        )
        # It ends though nobody reads, and others are served.
        await eventually(lambda: bare.upstream.calls["/v1/chat/completions"] == 1 and bare.gateway.in_flight == 0, 30)
        assert (await bare.http.post("/v1/trigger/broken", json={})).status_code == 502
        assert JOIN_DELTAS_BEYOND < Watched.most <= JOIN_DELTAS_BEYOND + 10
        text = bytearray()
        while piece := await reader.read(65536):
            text += piece
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    data = [json.loads(line.removeprefix(b"data: ")) for line in bytes(text).splitlines() if line.startswith(b"data: ")]
    assert "".join(one["text"] for one in data if "text" in one) == "".join(pieces)
    assert data[-1] == {"output": {"said": "".join(pieces)}}
