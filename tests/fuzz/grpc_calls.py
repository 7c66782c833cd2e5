"""Every method of both servers, over real gRPC: bytes that are a request, were one, or never will be; and odd metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from pointsman.v1 import (
    apps_pb2,
    audit_pb2,
    deployments_pb2,
    environments_pb2,
    executions_pb2,
    gateways_pb2,
    releases_pb2,
    tokens_pb2,
    trigger_pb2,
)
from tests.fuzz.engine import Target
from tests.fuzz.site import Site, on_site
from tests.fuzz.strategies import ODD_TEXTS, SEEDS, mutated, requests

UNARY_SECONDS = 10.0
# Streams last as long as they are wanted.
STREAM_SECONDS = 0.05
BAD_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
INNER = ("Traceback", 'File "', "Exception", "object at 0x", "sqlite", "psycopg", "grpc_message")


@dataclass(frozen=True)
class Method:
    """Of a service of ours, of health or of reflection."""

    path: str
    request: Descriptor = field(repr=False)
    takes_stream: bool
    gives_stream: bool
    at_gateway: bool


def _methods() -> list[Method]:
    found = []
    control_plane = (apps_pb2, audit_pb2, deployments_pb2, environments_pb2, executions_pb2, gateways_pb2, releases_pb2, tokens_pb2)
    for module in (*control_plane, trigger_pb2, health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for at_gateway in (module is trigger_pb2,) if module not in (health_pb2, reflection_pb2) else (False, True):
                    path = f"/{service.full_name}/{method.name}"
                    found.append(Method(path, method.input_type, method.client_streaming, method.server_streaming, at_gateway))
    return found


METHODS = _methods()
SIMPLE = [method for method in METHODS if not method.takes_stream and not method.gives_stream]
Call = tuple[Method, bytes]
CALLS = st.lists(
    st.sampled_from([*METHODS, *SIMPLE, *SIMPLE]).flatmap(lambda method: st.tuples(st.just(method), requests(method.request))),
    min_size=4,
    max_size=12,
)


def check_calls(site: Site, calls: list[Call]) -> None:
    """Each is answered or refused, in a bounded time, and never as something that nobody expected."""
    running = [(method, data, _begin(site, method, data)) for method, data in calls]
    for method, data, call in running:
        code, details = _outcome(method, call)
        assert code not in BAD_CODES, f"{method.path} {data!r}: {code.name} {details}"
        assert not any(inner in details for inner in INNER), f"{method.path} {data!r}: {code.name} {details}"
        assert method.gives_stream or code is not grpc.StatusCode.DEADLINE_EXCEEDED, f"{method.path} {data!r}: no answer"


def _begin(site: Site, method: Method, data: bytes, metadata: Any = None) -> Any:
    channel = site.gateway_channel if method.at_gateway else site.channel
    told: dict[str, Any] = {"metadata": site.metadata if metadata is None else metadata}
    if method.takes_stream:
        return channel.stream_stream(method.path)(iter([data, data]), timeout=STREAM_SECONDS, **told)
    if method.gives_stream:
        return channel.unary_stream(method.path)(data, timeout=STREAM_SECONDS, **told)
    return channel.unary_unary(method.path).future(data, timeout=UNARY_SECONDS, **told)


def _outcome(method: Method, call: Any) -> tuple[grpc.StatusCode, str]:
    """Of a stream: as far as its first few messages."""
    try:
        if method.gives_stream:
            for _ in zip(call, range(3), strict=False):
                pass
            call.cancel()
        else:
            call.result()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


LEGAL_NAMES = ["authorization", "x-app", "x-environment", "x-request-id", "idempotency-key", "traceparent", "tracestate", "grpc-timeout", "user-agent", "content-type", "te", "x-bin", "a-bin", "grpc-trace-bin", "cookie", "host", "accept", "x" * 300]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    st.sampled_from(["Bearer ", "bearer pm_", "Basic YTpi", "Bearer " + "a" * 9000, "00-" + "0" * 32, "a" * 40_000]),
)
METADATA = st.lists(
    st.tuples(
        st.sampled_from(SIMPLE),
        st.lists(st.tuples(st.sampled_from(LEGAL_NAMES), VALUES, st.binary(max_size=100)), max_size=5),
        st.sampled_from(["good", "none", "odd"]),
        SEEDS,
    ),
    min_size=4,
    max_size=12,
)


def check_metadata(site: Site, cases: list[Any]) -> None:
    """The same for what stands around a call; only the token itself lets anyone in."""
    running = []
    for method, pairs, shown, seed in cases:
        told = [(name, raw if name.endswith("-bin") else _legal(value)) for name, value, raw in pairs if name != "authorization"]
        if shown == "good":
            told += site.metadata
        elif shown == "odd":
            told.append(("authorization", _legal(mutated(site.metadata[0][1].encode(), seed).decode("latin-1"))))
        lets_in = any(name == "authorization" and value.split() == site.metadata[0][1].split() for name, value in told)
        running.append((method, told, lets_in, _begin(site, method, b"", told)))
    for method, told, lets_in, call in running:
        code, details = _outcome(method, call)
        assert code not in BAD_CODES, f"{method.path} {told!r}: {code.name} {details}"
        assert not any(inner in details for inner in INNER), f"{method.path} {told!r}: {code.name} {details}"
        open_to_all = method.path.startswith("/grpc.health")
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert lets_in or open_to_all or code in refused, f"{method.path} {told!r}: {code.name} {details}"


def _legal(value: str) -> str:
    """What the client lets through: printable ASCII, without blanks at the ends."""
    return "".join(char for char in value if 32 <= ord(char) < 127).strip()


# Their sum passes the rules of the fields; protobuf itself converts neither.
ODD_TIMES = [
    ("/pointsman.v1.EnvironmentService/UpdateEnvironment", b"\n\x0bdevelopment \x01*\x08\x08\x02\x10\xff\xff\xff\xff\x07"),
    (
        "/pointsman.v1.ExecutionService/ListExecutions",
        b"\n\x04shop:\x14\x08\x81\x80\x80\x80\x80\x80\x80\x10\x10\xc2\xbd\xfe\xff\xff\xff\xff\xff\xff\x01",
    ),
    ("/pointsman.v1.ExecutionService/ListExecutions", b"\n\x04shop:\x08\x08\x02\x10\xff\xff\xff\xff\x07"),
]
PINNED_TIMES = [[(method, data)] for path, data in ODD_TIMES for method in METHODS if method.path == path]
HEALTH = [method for method in METHODS if method.path.startswith("/grpc.health")]

TARGETS = [
    Target(
        name="grpc_calls",
        cases=CALLS,
        opened=on_site(check_calls),
        share=15_000,
        pinned=[[(method, b"\x9f") for method in HEALTH], *PINNED_TIMES],
        alone=False,
        case_seconds=30,
    ),
    Target(name="grpc_metadata", cases=METADATA, opened=on_site(check_metadata), share=10_000, alone=False),
]
