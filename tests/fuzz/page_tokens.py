"""Page tokens of every list: those of the server with something else in them, and such as no server made."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import msgspec
from hypothesis import strategies as st

from pointsman.v1 import apps_pb2, audit_pb2, deployments_pb2, environments_pb2, executions_pb2, gateways_pb2, releases_pb2, tokens_pb2
from tests.fuzz.engine import Target
from tests.fuzz.grpc_calls import BAD_CODES, INNER
from tests.fuzz.site import Site, on_site
from tests.fuzz.strategies import ODD_TEXTS, SEEDS, TEXT, mutated

LISTS: dict[str, Any] = {
    "AppService/ListApps": apps_pb2.ListAppsRequest(page_size=1),
    "ReleaseService/ListReleases": releases_pb2.ListReleasesRequest(app="shop", page_size=1),
    "EnvironmentService/ListEnvironments": environments_pb2.ListEnvironmentsRequest(page_size=1),
    "DeploymentService/ListDeployments": deployments_pb2.ListDeploymentsRequest(app="shop", page_size=1),
    "DeploymentService/ListBindings": deployments_pb2.ListBindingsRequest(page_size=1),
    "ExecutionService/ListExecutions": executions_pb2.ListExecutionsRequest(app="shop", page_size=1),
    "GatewayService/ListGateways": gateways_pb2.ListGatewaysRequest(page_size=1),
    "TokenService/ListTokens": tokens_pb2.ListTokensRequest(page_size=1),
    "AuditService/ListAuditEntries": audit_pb2.ListAuditEntriesRequest(page_size=1),
}
PARTS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, float("nan"), None, True, b"\xff", "1", "0", "9" * 400]),
    st.sampled_from(ODD_TEXTS),
    TEXT,
    st.lists(st.integers(0, 9), max_size=2),
)
FORGED = st.tuples(st.just("forged"), st.lists(PARTS, max_size=4))
CHANGED = st.tuples(st.just("changed"), SEEDS)
WILD = st.tuples(
    st.just("wild"), st.sampled_from(ODD_TEXTS) | TEXT | st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode())
)
DEEP = st.tuples(st.just("deep"), st.sampled_from([10, 1000, 20_000]))
CASES = st.lists(st.tuples(st.sampled_from(list(LISTS)), FORGED | FORGED | CHANGED | WILD | DEEP), min_size=4, max_size=8)


def check_tokens(site: Site, cases: list[Any]) -> None:
    """A page, or INVALID_FIELD."""
    running = []
    for path, case in cases:
        request = type(LISTS[path])()
        request.CopyFrom(LISTS[path])
        request.page_token = _token(_given(site, path), *case)
        running.append(
            (
                request,
                site.channel.unary_unary(f"/pointsman.v1.{path}").future(request.SerializeToString(), metadata=site.metadata, timeout=10),
            )
        )
    for request, call in running:
        error = call.exception()
        if error is not None:
            assert error.code() not in BAD_CODES, f"{request} {base64.urlsafe_b64decode(request.page_token)!r}: {error.details()}"
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, f"{request}: {error}"
            assert not any(inner in error.details() for inner in INNER), error.details()


_given_tokens: dict[str, str] = {}


def _given(site: Site, path: str) -> str:
    """A token that the server made; of a list that has one page, of another list."""
    if path not in _given_tokens:
        answer = site.channel.unary_unary(f"/pointsman.v1.{path}")(LISTS[path].SerializeToString(), metadata=site.metadata, timeout=10)
        kind = type(LISTS[path]).__name__.replace("Request", "Response")
        modules = (apps_pb2, audit_pb2, deployments_pb2, environments_pb2, executions_pb2, gateways_pb2, releases_pb2, tokens_pb2)
        message: Any = next(getattr(module, kind) for module in modules if hasattr(module, kind)).FromString(answer)
        _given_tokens[path] = message.next_page_token
    return _given_tokens[path] or _given(site, "AppService/ListApps")


def _token(given: str, kind: str, what: Any) -> str:
    inner = base64.urlsafe_b64decode(given)
    if kind == "forged":
        filters, _ = msgspec.msgpack.decode(inner)
        return base64.urlsafe_b64encode(msgspec.msgpack.encode([filters, what])).decode()
    if kind == "changed":
        return base64.urlsafe_b64encode(mutated(inner, what)).decode()
    if kind == "deep":
        return base64.urlsafe_b64encode(b"\x91" * what).decode()
    return str(what).replace("\ud7ff", "")


PINNED = [
    [(path, ("forged", last)) for path in LISTS]
    for last in ([], ["a", "b"], ["a", "b", "c"], [2**64 - 1], [2**63, "a", "b"], [1, "zz"], ["null", "aa"], [-1, "00", "00"], [[1], {}])
]

TARGETS = [Target(name="page_tokens", cases=CASES, opened=on_site(check_tokens), share=10_000, alone=False, pinned=PINNED)]
