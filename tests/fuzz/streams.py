"""Callers of streams that stall, read a little, or are gone: server-sent events of both servers, and streams of gRPC that nobody reads."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import Any

import grpc
from hypothesis import strategies as st

from pointsman.v1 import deployments_pb2, executions_pb2, trigger_pb2
from tests.fuzz.engine import Target
from tests.fuzz.http_requests import request_bytes
from tests.fuzz.site import Site, on_site
from tests.fuzz.wire import abort

OPEN_SECONDS = 10.0
IDLE_SECONDS = 20.0
MAX_STALLED = 40
BODY = b'{"message": "' + b"x" * 1000 + b'"}'
KINDS = ["trigger", "trigger", "executions", "rollout", "try", "WatchBindings", "TailExecutions", "TriggerStream", "body"]
ENDS = ["reset", "close", "half close", "stall"]
CASES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(ENDS), st.sampled_from([0, 1, 20, 200, 5000]), st.integers(0, len(BODY))),
    min_size=4,
    max_size=8,
)


class Stalled:
    """Connections that are left open and not read, of earlier cases; so many at most."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def add(self, connection: Any) -> None:
        self._open.append(connection)
        if len(self._open) > MAX_STALLED:
            oldest = self._open.pop(0)
            abort(oldest) if isinstance(oldest, socket.socket) else oldest.cancel()


STALLED = Stalled()


def check_streams(site: Site, cases: list[tuple[str, str, int, int]]) -> None:
    """Whoever goes, goes; nothing is left behind but what is still open."""
    for kind, end, read, sent in cases:
        if kind in ("WatchBindings", "TailExecutions", "TriggerStream"):
            _by_grpc(site, kind, end)
        else:
            _by_http(site, kind, end, read, sent)


def _by_grpc(site: Site, kind: str, end: str) -> None:
    if kind == "TriggerStream":
        request: Any = trigger_pb2.TriggerStreamRequest(app="shop", environment="staging", endpoint="where")
        request.input["message"] = "x"
    else:
        request = deployments_pb2.WatchBindingsRequest() if kind == "WatchBindings" else executions_pb2.TailExecutionsRequest()
    services = {"WatchBindings": "DeploymentService", "TailExecutions": "ExecutionService", "TriggerStream": "TriggerService"}
    channel = site.gateway_channel if kind == "TriggerStream" else site.channel
    call = channel.unary_stream(f"/pointsman.v1.{services[kind]}/{kind}")(request.SerializeToString(), metadata=site.metadata)
    if end == "stall":
        STALLED.add(call)
    else:
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED


def _by_http(site: Site, kind: str, end: str, read: int, sent: int) -> None:
    at_gateway = kind in ("trigger", "body")
    address = (site.gateway if at_gateway else site.control_plane).http
    paths = {"executions": "/apps/shop/executions/tail", "rollout": "/apps/shop/environments/staging/rollout", "try": "/apps/shop/try"}
    if at_gateway:
        data = request_bytes(site, "POST", "/v1/trigger/where", {"X-App": "shop", "Accept": "text/event-stream"}, BODY)
        data = data[: len(data) - sent] if kind == "body" else data
    else:
        data = request_bytes(site, "GET", paths[kind], {"Accept": "text/event-stream"}, b"")
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=OPEN_SECONDS)
    sock.sendall(data)
    if read and kind != "body":
        sock.recv(read)
    if end == "stall":
        STALLED.add(sock)
    elif end == "half close":
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass
        sock.close()
    elif end == "reset":
        abort(sock)
    else:
        sock.close()


_IN_FLIGHT = re.compile(rb"^pointsman_gateway_triggers_running\S* (\S+)$", re.MULTILINE)


def nothing_left(site: Site) -> None:
    """Every trigger has ended, although nobody read its end. Raises AssertionError."""
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        status, page = site.get(site.gateway, "/metrics")
        found = _IN_FLIGHT.search(page)
        assert status == 200
        assert found is not None, "the gateway has no such metric"
        if float(found[1]) == 0:
            return
        assert time.monotonic() < deadline, f"{found[1]!r} triggers still run"


TARGETS = [Target(name="streams", cases=CASES, opened=on_site(check_streams, nothing_left), share=6_000, alone=False, case_seconds=60)]
