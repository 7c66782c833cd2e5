"""Streams on which nothing moves: a step that says nothing for long, a reader that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format

import data_plane.sse
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
from pointsman.http1 import Connection
from pointsman.shared import Shared
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually
from tests.reference_interpreter import Answer
from tests.scripted_tools import ClockThatNeverWaits, ScriptedTools, clients_of
from tests.test_http_door import Door, bare
from tests.test_pipeline import digest_of
from tests.test_streaming import chatting

__all__ = ["bare"]


def waiting_for(seconds: float) -> HttpApp:
    """A door whose endpoint `wait` takes so long."""
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
    return HttpApp(gateway, Access(holder), None, None)  # type: ignore[arg-type]


class Written(asyncio.Transport):
    """What is written, and when."""

    def __init__(self, clock: ClockThatNeverWaits) -> None:
        super().__init__()
        self.parts: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clock = clock

    def write(self, data: Any) -> None:
        self.parts.append((self._clock.time(), bytes(data)))

    def is_closing(self) -> bool:
        return self.closed.done()

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed.set_result(None)


def test_a_comment_comes_every_15_seconds_when_nothing_else_does() -> None:
    clock, app = ClockThatNeverWaits(), waiting_for(50.0)

    async def asked() -> list[tuple[float, bytes]]:
        connection, transport = Connection(Shared(app)), Written(clock)
        connection.connection_made(transport)
        head = b"POST /v1/trigger/wait HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
        connection.data_received(head + b"{}")
        await transport.closed
        return transport.parts

    with clock.running() as runner:
        sent = runner.run(asked())
    comments = [round(when) for when, body in sent if body == b"e\r\n: keep-alive\n\n\r\n"]
    assert comments == [15, 30, 45]
    assert b"execution.completed" in sent[-2][1]
    assert round(sent[-2][0]) == 50
    assert sent[-1][1] == b"0\r\n\r\n"


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
    monkeypatch.setattr(data_plane.sse, "Events", Watched)
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
