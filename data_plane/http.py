"""The HTTP door of the gateway: `/v1/trigger/<endpoint>`, and the pages about the gateway itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from google.protobuf import json_format

from data_plane.access import Access, only_app
from data_plane.gateway import Gateway
from data_plane.lookup import Asked
from data_plane.metrics import Metrics
from data_plane.openapi import TRIGGER_PREFIX, Covers, describe, list_endpoints
from data_plane.record import Answer
from data_plane.sse import answer_by_events
from data_plane.status import Status
from data_plane.table import Verifier
from data_plane.tracing import trace_of
from pointsman.calls import Calls
from pointsman.errors import (
    Behind,
    EndpointNotFound,
    InvalidField,
    InvalidInput,
    NotSynced,
    PointsmanError,
    ShuttingDown,
    TooLarge,
    Unauthenticated,
    Violation,
)
from pointsman.exchange import Exchange, Header, head_of
from pointsman.metrics import CONTENT_TYPE
from pointsman.values import NUL_REFUSED, decode_json, has_nul
from pointsman.web_errors import error_body, error_headers

MAX_BODY_BYTES = 4 * 1024 * 1024
JSON_HEADERS = [(b"content-type", b"application/json")]
ERROR_HEADERS = {
    b"x-execution-id": "execution_id",
    b"x-app": "app",
    b"x-environment": "environment",
    b"x-release": "release",
    b"x-release-digest": "digest",
    b"x-revision": "revision",
    b"x-stale": "stale_seconds",
    b"x-replayed": "replayed",
    b"ratelimit-limit": "burst",
    b"ratelimit-remaining": "remaining",
    b"ratelimit-reset": "reset",
}

OF_WHAT_RAN = frozenset({"app", "environment", "release", "digest", "revision"})

_encode = msgspec.json.Encoder().encode


class HttpApp:
    """Answers every request of a gateway's HTTP port."""

    def __init__(self, gateway: Gateway, access: Access, status: Status, metrics: Metrics, calls: Calls | None = None) -> None:
        """`calls`: those of both doors of the gateway."""
        self._gateway = gateway
        self._access = access
        self._status = status
        self._metrics = metrics
        self._calls = calls or Calls()
        self._pages: dict[str, Callable[[Exchange], tuple[int, list[Header], bytes]]] = {
            "/livez": lambda _: (200, [(b"content-type", b"text/plain")], b"alive\n"),
            "/readyz": self._readyz,
            "/v1/status": self._describe,
            "/v1/endpoints": self._endpoints,
            "/v1/openapi.json": self._openapi,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, exchange: Exchange) -> None:
        """One request."""
        path = exchange.path
        try:
            if path.startswith(TRIGGER_PREFIX):
                await self._trigger(exchange, path[len(TRIGGER_PREFIX) :])
                return
            status, headers, body = self._page(exchange)
        except PointsmanError as error:
            status, headers, body = error.http_status, [*error_headers(error), *self._about(error)], error_body(error)
        exchange.answer(status, head_of(headers), body)

    async def _trigger(self, exchange: Exchange, endpoint: str) -> None:
        """A caller who hangs up ends it: the task is cancelled."""
        assert exchange.task is not None, "it runs"
        exchange.on_gone = exchange.task.cancel
        headers = _Headers(exchange)
        caller = self._access.caller(headers.text(b"authorization"))
        token_id = caller.token_id if caller is not None else ""
        self._calls.enter(token_id)
        try:
            asked = await self._asked(exchange, endpoint, headers, caller)
            if "text/event-stream" in headers.text(b"accept"):
                await answer_by_events(self._gateway, asked, exchange)
                return
            answer = await self._gateway.trigger(asked)
        finally:
            self._calls.leave(token_id)
        exchange.answer(200, self._head(answer, asked), _encode(answer.output))

    async def _asked(self, exchange: Exchange, endpoint: str, headers: _Headers, caller: Verifier | None) -> Asked:
        """What is asked for.

        Raises:
            PointsmanError: PermissionDenied, RateLimited before the body is read; InvalidInput, InvalidField, TooLarge.
            HungUpError: the body does not come whole.
        """
        app, environment = headers.text(b"x-app") or only_app(caller), headers.text(b"x-environment")
        given, min_revision, allowance = None, 0, None

        def asked() -> Asked:
            return Asked(
                endpoint=endpoint,
                input=given,
                app=app,
                environment=environment,
                release=headers.text(b"x-release"),
                min_revision=min_revision,
                method=exchange.method,
                idempotency_key=headers.text(b"idempotency-key"),
                token_id=caller.token_id if caller is not None else "",
                allowance=allowance,
                trace=trace_of(headers.text(b"traceparent"), headers.text(b"tracestate")),
            )

        try:
            allowance = self._access.admit(caller, app, environment or self._gateway.here.default_environment, endpoint)
            min_revision = headers.integer(b"x-min-revision")
            given = _query(exchange.query) if exchange.method == "GET" else _body(await _read(exchange, headers))
        except PointsmanError as error:
            self._gateway.refuse(asked(), error)
            raise
        return asked()

    def _head(self, answer: Answer, asked: Asked) -> bytes:
        bound = answer.active.bound
        ran = _ran(self._gateway.gateway_id, bound.app, bound.environment, bound.release, bound.digest, bound.revision)
        head = b"%bx-execution-id: %b\r\n" % (ran, answer.execution_id.encode())
        if answer.stale_seconds is not None:
            head += b"x-stale: %d\r\n" % answer.stale_seconds
        if answer.replayed:
            head += b"x-replayed: true\r\n"
        if (left := asked.allowance) is not None:
            head += b"ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n" % (
                left.limit,
                left.remaining,
                left.reset_seconds,
            )
        return head

    def _about(self, error: PointsmanError) -> list[Header]:
        """What is known of a trigger that was refused or failed. What did not run is not named as if it had."""
        headers = [(b"x-gateway", self._gateway.gateway_id.encode())]
        ran = "digest" in error.metadata
        for header, key in ERROR_HEADERS.items():
            value = error.metadata.get(key, "")
            if value.isascii() and value.isprintable() and value and (ran or key not in OF_WHAT_RAN):
                headers.append((header, value.encode()))
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, EndpointNotFound) and "method" in error.metadata:
            headers.append((b"allow", error.metadata["method"].encode()))
        return headers

    def _page(self, exchange: Exchange) -> tuple[int, list[Header], bytes]:
        path, method = exchange.path, exchange.method
        page = self._pages.get(path)
        if page is None or method not in ("GET", "HEAD"):
            takes = f"{path} takes GET, not {method}." if page else f"There is no {path!r} here."
            more: dict[str, Any] = {"method": "GET"} if page else {}
            raise EndpointNotFound(
                f"{takes} Triggers are POST {TRIGGER_PREFIX}<endpoint>; there are also {', '.join(sorted(self._pages))}.",
                endpoint=path,
                **more,
            )
        return page(exchange)

    def _readyz(self, _exchange: Exchange) -> tuple[int, list[Header], bytes]:
        gateway_id = self._gateway.gateway_id
        if self._gateway.unready:
            raise ShuttingDown(f"Gateway {gateway_id!r} is shutting down; another will answer.", gateway_id=gateway_id)
        if unready := self._status.staleness.unready:
            raise Behind(
                f"Gateway {gateway_id!r} is not ready: it has not heard of the control plane for longer than "
                f"{', '.join(unready)} allows; it serves on.",
                gateway_id=gateway_id,
                environments=unready,
                staleness_seconds=int(self._status.staleness.seconds or 0),
            )
        if not self._status.staleness.ready:
            raise NotSynced(f"Gateway {gateway_id!r} is not ready: it does not hold what it shall serve yet.", gateway_id=gateway_id)
        return 200, [(b"content-type", b"text/plain")], b"ready\n"

    def _endpoints(self, exchange: Exchange) -> tuple[int, list[Header], bytes]:
        app, environment, covers = self._place(exchange)
        return 200, list(JSON_HEADERS), _encode(list_endpoints(self._gateway.table, app, environment, covers))

    def _openapi(self, exchange: Exchange) -> tuple[int, list[Header], bytes]:
        app, environment, covers = self._place(exchange)
        return 200, list(JSON_HEADERS), _encode(describe(self._gateway.table, self._gateway.here, app, environment, covers))

    def _place(self, exchange: Exchange) -> tuple[str, str, Covers]:
        """App and environment, as in a trigger's headers or in the query, empty where not named; and what the caller may trigger."""
        headers, query = _Headers(exchange), _query(exchange.query)
        caller = self._access.caller(headers.text(b"authorization"))
        self._access.admit_to_endpoints(caller)
        app = str(query.get("app") or headers.text(b"x-app") or only_app(caller))
        covers = caller.covers if caller is not None else lambda _app, _environment, _path: True
        return app, str(query.get("environment") or headers.text(b"x-environment")), covers

    def _admit_look(self, exchange: Exchange) -> None:
        self._access.admit_look(self._access.caller(_Headers(exchange).text(b"authorization")))

    def _show_metrics(self, exchange: Exchange) -> tuple[int, list[Header], bytes]:
        self._admit_look(exchange)
        return 200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.page()

    def _describe(self, exchange: Exchange) -> tuple[int, list[Header], bytes]:
        self._admit_look(exchange)
        message = json_format.MessageToDict(
            self._status.describe(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return 200, list(JSON_HEADERS), _encode(message)


@functools.lru_cache(maxsize=1024)
def _ran(gateway_id: str, app: str, environment: str, release: str, digest: str, revision: int) -> bytes:
    """What the heads of all answers have in common that one release gives."""
    return head_of(
        [
            (b"content-type", b"application/json"),
            (b"x-app", app.encode()),
            (b"x-environment", environment.encode()),
            (b"x-release", release.encode()),
            (b"x-release-digest", digest.encode()),
            (b"x-revision", b"%d" % revision),
            (b"x-gateway", gateway_id.encode()),
        ]
    )


class _Headers:
    """The request's headers, by name in small letters."""

    __slots__ = ("_given",)

    def __init__(self, exchange: Exchange) -> None:
        self._given = dict(exchange.headers)

    def text(self, name: bytes) -> str:
        """Empty when it is absent."""
        value = self._given.get(name)
        return "" if value is None else value.decode("latin-1").strip()

    def integer(self, name: bytes) -> int:
        """0 when it is absent. Raises InvalidField."""
        text = self.text(name)
        if not text:
            return 0
        if not text.isdecimal() or len(text) > 18:
            raise InvalidField([Violation(name.decode().title(), f"{text[:40]!r} is not a revision, such as 57")])
        return int(text)


async def _read(exchange: Exchange, headers: _Headers) -> bytes:
    """The whole body.

    Raises:
        InvalidInput: it is compressed.
        TooLarge: before reading it when its length is told.
        HungUpError: it does not come whole.
    """
    if (encoding := headers.text(b"content-encoding")) not in ("", "identity"):
        refused = f"the body comes with Content-Encoding {encoding[:40]!r}, and is not unpacked; send it as it is"
        raise InvalidInput([Violation("", refused)])
    told = headers.text(b"content-length")
    if told.isdecimal() and int(told) > MAX_BODY_BYTES:
        raise TooLarge("The body", limit=MAX_BODY_BYTES, given=int(told))
    body = await exchange.read()
    if exchange.is_whole:
        return body
    parts, size = [body], len(body)
    while part := await exchange.read():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLarge("The body", limit=MAX_BODY_BYTES, given=f"more than {MAX_BODY_BYTES}")
    return b"".join(parts)


def _body(body: bytes) -> Any:
    """The input; an empty body is an empty object. Raises InvalidInput."""
    if not body:
        return {}
    try:
        return decode_json(body, unique_keys=True)
    except ValueError as error:
        raise InvalidInput([Violation("", f"the body {error}")]) from None


def _query(query: bytes) -> dict[str, Any]:
    """The input of a GET endpoint, still text; a parameter that is repeated is a list. Raises InvalidInput."""
    try:
        parameters = parse_qs(query.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidInput([Violation("", f"the query is not UTF-8: {error}")]) from None
    if has_nul(parameters):
        raise InvalidInput([Violation("", f"the query {NUL_REFUSED}")])
    return {name: values[0] if len(values) == 1 else values for name, values in parameters.items()}
