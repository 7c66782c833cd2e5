"""Upstreams that answer anything: tools and models, whole and as streams, to a gateway that runs a trigger."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import socket
import threading
import zlib
from typing import Any

from google.protobuf import json_format
from hypothesis import strategies as st

from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, deployments_pb2_grpc, releases_pb2, releases_pb2_grpc
from tests.fuzz.engine import Target
from tests.fuzz.http_requests import request_bytes
from tests.fuzz.site import Site, on_site
from tests.fuzz.strategies import JSON, SEEDS, mutated
from tests.fuzz.values import BODIES
from tests.fuzz.wire import talk

STEP_SECONDS = 3
# Longer than any of its steps.
PATIENCE_SECONDS = 8.0
MESSAGE = {
    "role": "assistant",
    "content": '{"a": 1}',
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
}
COMPLETION = {
    "id": "x",
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}
CHUNK = {
    "choices": [
        {"index": 0, "delta": {"content": "a", "tool_calls": [{"index": 0, "id": "1", "function": {"name": "find", "arguments": "{"}}]}}
    ]
}
STATUSES = [
    b"200 OK",
    b"200 OK",
    b"200 OK",
    b"200",
    b"204 No Content",
    b"301 Moved",
    b"400 Bad",
    b"429 Slow down",
    b"500 Oops",
    b"503 Later",
    b"999 Odd",
    b"100 Continue",
    b"0 x",
    b"abc",
]
HEADERS = [
    b"Content-Type: application/json", b"Content-Type: text/event-stream", b"Content-Type: \xff", b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br, gzip",
    b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: 99999999999", b"Content-Length: -1", b"Location: file:///etc/passwd", b"Location: /", b"Retry-After: 1e999", b"Retry-After: -5",
    b"Set-Cookie: " + b"a" * 9000, b"A: " + b"a" * 200_000, b"no colon", b"X-Execution-Id: \x00", b"Connection: upgrade",
]  # fmt: skip
JSON_TEXTS = st.one_of(
    BODIES,
    st.builds(lambda plain, seed: mutated(json.dumps(plain).encode(), seed), st.sampled_from([COMPLETION, CHUNK, MESSAGE]), SEEDS),
    st.builds(lambda content: json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode(), JSON),
    st.builds(lambda calls: json.dumps({"choices": [{"message": {"role": "assistant", "tool_calls": calls}}]}).encode(), JSON),
    st.sampled_from([json.dumps(COMPLETION).encode()]),
)
EVENTS = st.lists(st.sampled_from([b"data: ", b"data:", b"event: x\ndata: ", b": ", b"id: 1\n", b"retry: 9\n"]).flatmap(lambda start: (JSON_TEXTS | st.just(json.dumps(CHUNK).encode()) | st.just(b"[DONE]")).map(lambda text: start + text + b"\n\n")), max_size=4).map(b"".join)  # fmt: skip
BODY = st.one_of(
    JSON_TEXTS,
    EVENTS,
    JSON_TEXTS.map(gzip.compress),
    EVENTS.map(zlib.compress),
    st.sampled_from(
        [
            gzip.compress(b"0" * 50_000_000),
            gzip.compress(gzip.compress(b"0" * 9_000_000)),
            b"0" * 5_000_000,
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffff\r\n",
            b"data: " + b"x" * 5_000_000,
        ]
    ),
)
ANSWERS = st.one_of(
    st.builds(lambda status, headers, body: b"HTTP/1.1 " + status + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body, st.sampled_from(STATUSES), st.lists(st.sampled_from(HEADERS), max_size=3), BODY),
    st.binary(max_size=50),
)  # fmt: skip
CASES = st.lists(st.tuples(st.sampled_from(["tool", "ask", "ask", "shaped"]), st.booleans(), ANSWERS), min_size=3, max_size=6)
STEP = {"timeout": f"{STEP_SECONDS}s"}
KINDS: dict[str, Any] = {
    "tool": {"tool_call": {"tool": "find", "arguments": "{}"}},
    "ask": {"inference": {"model": "m", "prompt": "{{ input.message }}", "tools": ["find"], "max_tool_calls": 2}},
    "shaped": {"inference": {"model": "m", "prompt": "{{ input.message }}", "response_schema": {"type": "object", "required": ["a"]}}},
}


class Upstream:
    """Says the same to everyone until it is told to say something else."""

    def __init__(self) -> None:
        self.says = b""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            sock, _ = self._server.accept()
            threading.Thread(target=self._answer, args=(sock, self.says), daemon=True).start()

    def _answer(self, sock: socket.socket, says: bytes) -> None:
        with contextlib.suppress(OSError), sock:
            sock.settimeout(STEP_SECONDS)
            sock.recv(65536)
            sock.sendall(says)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


@functools.cache
def _upstream(site: Site) -> Upstream:
    """With an app whose endpoints call it."""
    upstream = Upstream()
    config = {
        "endpoints": [{"name": name, "pipeline": name, "timeout": f"{2 * STEP_SECONDS}s"} for name in KINDS],
        "pipelines": [{"name": name, "stages": [{"name": "s", "steps": [{"name": "a", **STEP, **kind}]}]} for name, kind in KINDS.items()],
        "tools": [{"name": "find", "http": {"method": "GET", "url": f"{upstream.url}/x"}}],
        "models": [{"name": "m", "targets": [{"base_url": upstream.url, "model": "m"}]}],
    }
    told: dict[str, Any] = {"metadata": site.metadata, "timeout": 20}
    request = releases_pb2.CreateReleaseRequest(app="upstream", tag="v1")
    json_format.ParseDict(config, request.config)
    apps_pb2_grpc.AppServiceStub(site.channel).CreateApp(apps_pb2.CreateAppRequest(app="upstream"), **told)
    releases_pb2_grpc.ReleaseServiceStub(site.channel).CreateRelease(request, **told)
    deploy = deployments_pb2.DeployRequest(app="upstream", environment="calm", release="v1")
    deployments_pb2_grpc.DeploymentServiceStub(site.channel).Deploy(deploy, **told)
    return upstream


def check_answers(site: Site, cases: list[tuple[str, bool, bytes]]) -> None:
    """The trigger succeeds, or fails in words; the upstream's bytes are nothing but values."""
    upstream = _upstream(site)
    for endpoint, streamed, says in cases:
        upstream.says = says
        headers = {"X-App": "upstream", "X-Environment": "calm", "Accept": "text/event-stream" if streamed else "application/json"}
        data = request_bytes(site, "POST", f"/v1/trigger/{endpoint}", headers, b'{"message": "hello"}')
        [one] = talk(site.gateway.http, [data], PATIENCE_SECONDS)
        one.check()
        assert one.statuses[:1] in ([200], [502], [504]), f"{one.statuses}: {bytes(one.got[:1000])!r} to {says[:1000]!r}"


TARGETS = [Target(name="upstreams", cases=CASES, opened=on_site(check_answers), share=6_000, alone=False, case_seconds=60)]
