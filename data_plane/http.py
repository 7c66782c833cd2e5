"""The HTTP door of the gateway, plain ASGI: `/v1/trigger/<endpoint>` is the way of every request, and a framework would be most of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec
import structlog
from google.protobuf import json_format

from data_plane.access import Access, only_app
from data_plane.gateway import Gateway
from data_plane.hangups import Hangups
from data_plane.lookup import Asked
from data_plane.metrics import Metrics
from data_plane.openapi import TRIGGER_PREFIX, Covers, describe, list_endpoints
from data_plane.record import Answer
from data_plane.sse import KEEP_ALIVE_SECONDS, write_events
from data_plane.status import Status
from data_plane.streaming import told
from data_plane.table import Verifier
from data_plane.tracing import trace_of
from pointsman.calls import Calls
from pointsman.errors import (
    Behind,
    EndpointNotFound,
    Internal,
    InvalidField,
    InvalidInput,
    NotSynced,
    PointsmanError,
    ShuttingDown,
    TooLarge,
    Unauthenticated,
    Violation,
)
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

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class _HungUpError(Exception):
    """The caller is gone: there is nobody to answer."""


class HttpApp:
    """The ASGI app of a gateway."""

    def __init__(self, gateway: Gateway, access: Access, status: Status, metrics: Metrics, calls: Calls | None = None) -> None:
        """`calls`: those of both doors of the gateway."""
        self._gateway = gateway
        self._access = access
        self._status = status
        self._metrics = metrics
        self._calls = calls or Calls()
        self._hangups = Hangups()
        self._pages: dict[str, Callable[[Scope], tuple[int, Headers, bytes]]] = {
            "/livez": lambda _: (200, [(b"content-type", b"text/plain")], b"alive\n"),
            "/readyz": self._readyz,
            "/v1/status": self._describe,
            "/v1/endpoints": self._endpoints,
            "/v1/openapi.json": self._openapi,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        assert scope["type"] == "http", "lifespan and websockets are off"
        path: str = scope["path"]
        try:
            if path.startswith(TRIGGER_PREFIX):
                headers = _Headers(scope["headers"])
                caller = self._access.caller(headers.text("authorization"))
                token_id = caller.token_id if caller is not None else ""
                self._calls.enter(token_id)
                try:
                    asked = await self._asked(path[len(TRIGGER_PREFIX) :], scope, receive, headers, caller)
                    if "text/event-stream" in headers.text("accept"):
                        await self._stream(asked, receive, send)
                        return
                    answer = await self._trigger(asked, receive)
                finally:
                    self._calls.leave(token_id)
                status, answered, body = 200, [*self._headers(answer), *_left(asked)], _encode(answer.output)
            else:
                status, answered, body = self._page(path, scope)
        except _HungUpError:
            return
        except PointsmanError as error:
            status, answered, body = error.http_status, [*error_headers(error), *self._about(error)], error_body(error)
        except Exception:
            request_id = str(uuid.uuid4())
            log.exception("request failed", path=path, request_id=request_id)
            internal = Internal(request_id)
            status, answered, body = internal.http_status, error_headers(internal), error_body(internal)
        answered.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": answered})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _asked(self, endpoint: str, scope: Scope, receive: Receive, headers: _Headers, caller: Verifier | None) -> Asked:
        """What is asked for.

        Raises:
            PointsmanError: PermissionDenied, RateLimited before the body is read; InvalidInput, InvalidField, TooLarge.
        """
        method: str = scope["method"]
        app, environment = headers.text("x-app") or only_app(caller), headers.text("x-environment")
        asked = partial(
            Asked,
            endpoint=endpoint,
            method=method,
            app=app,
            environment=environment,
            release=headers.text("x-release"),
            idempotency_key=headers.text("idempotency-key"),
            trace=trace_of(headers.text("traceparent"), headers.text("tracestate")),
            token_id=caller.token_id if caller is not None else "",
        )
        try:
            allowance = self._access.admit(caller, app, environment or self._gateway.here.default_environment, endpoint)
            min_revision = headers.integer("x-min-revision")
            given = _query(scope["query_string"]) if method == "GET" else _body(await _read(receive, headers))
        except PointsmanError as error:
            self._gateway.refuse(asked(input=None), error)
            raise
        return asked(input=given, min_revision=min_revision, allowance=allowance)

    async def _trigger(self, asked: Asked, receive: Receive) -> Answer:
        with self._hangups.watch(receive) as watch:
            try:
                return await self._gateway.trigger(asked)
            except asyncio.CancelledError:
                if watch.hung_up:
                    raise _HungUpError from None
                raise

    async def _stream(self, asked: Asked, receive: Receive, send: Send) -> None:
        """The answer as server-sent events. What is refused before the start raises, and is answered as ever."""
        with self._hangups.watch(receive) as watch:
            try:
                async with told(self._gateway, asked, KEEP_ALIVE_SECONDS) as events:
                    await write_events(events, send)
            except asyncio.CancelledError:
                if watch.hung_up:
                    raise _HungUpError from None
                raise

    def _headers(self, answer: Answer) -> Headers:
        bound = answer.active.bound
        stale = [] if answer.stale_seconds is None else [(b"x-stale", b"%d" % answer.stale_seconds)]
        headers = [
            (b"content-type", b"application/json"),
            (b"x-execution-id", answer.execution_id.encode()),
            (b"x-app", bound.app.encode()),
            (b"x-environment", bound.environment.encode()),
            (b"x-release", bound.release.encode()),
            (b"x-release-digest", bound.digest.encode()),
            (b"x-revision", str(bound.revision).encode()),
            (b"x-gateway", self._gateway.gateway_id.encode()),
            *stale,
        ]
        if answer.replayed:
            headers.append((b"x-replayed", b"true"))
        return headers

    def _about(self, error: PointsmanError) -> Headers:
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

    def _page(self, path: str, scope: Scope) -> tuple[int, Headers, bytes]:
        page, method = self._pages.get(path), scope["method"]
        if page is None or method not in ("GET", "HEAD"):
            takes = f"{path} takes GET, not {method}." if page else f"There is no {path!r} here."
            more: dict[str, Any] = {"method": "GET"} if page else {}
            raise EndpointNotFound(
                f"{takes} Triggers are POST {TRIGGER_PREFIX}<endpoint>; there are also {', '.join(sorted(self._pages))}.",
                endpoint=path,
                **more,
            )
        return page(scope)

    def _readyz(self, _scope: Scope) -> tuple[int, Headers, bytes]:
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

    def _endpoints(self, scope: Scope) -> tuple[int, Headers, bytes]:
        app, environment, covers = self._place(scope)
        return 200, list(JSON_HEADERS), _encode(list_endpoints(self._gateway.table, app, environment, covers))

    def _openapi(self, scope: Scope) -> tuple[int, Headers, bytes]:
        app, environment, covers = self._place(scope)
        return 200, list(JSON_HEADERS), _encode(describe(self._gateway.table, self._gateway.here, app, environment, covers))

    def _place(self, scope: Scope) -> tuple[str, str, Covers]:
        """App and environment, as in a trigger's headers or in the query, empty where not named; and what the caller may trigger."""
        headers, query = _Headers(scope["headers"]), _query(scope["query_string"])
        caller = self._access.caller(headers.text("authorization"))
        self._access.admit_to_endpoints(caller)
        app = str(query.get("app") or headers.text("x-app") or only_app(caller))
        covers = caller.covers if caller is not None else lambda _app, _environment, _path: True
        return app, str(query.get("environment") or headers.text("x-environment")), covers

    def _admit_look(self, scope: Scope) -> None:
        self._access.admit_look(self._access.caller(_Headers(scope["headers"]).text("authorization")))

    def _show_metrics(self, scope: Scope) -> tuple[int, Headers, bytes]:
        self._admit_look(scope)
        return 200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.page()

    def _describe(self, scope: Scope) -> tuple[int, Headers, bytes]:
        self._admit_look(scope)
        message = json_format.MessageToDict(
            self._status.describe(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return 200, list(JSON_HEADERS), _encode(message)


def _left(asked: Asked) -> Headers:
    """What is left of the token's rate limit, if it has one."""
    left = asked.allowance
    if left is None:
        return []
    told = {"limit": left.limit, "remaining": left.remaining, "reset": left.reset_seconds}
    return [(f"ratelimit-{name}".encode(), str(value).encode()) for name, value in told.items()]


_OTHER_HEADERS = frozenset(
    {b"content-length", b"content-encoding", b"accept", b"traceparent", b"tracestate", b"idempotency-key", b"authorization"}
)


class _Headers:
    """The request headers that are asked for, by name in small letters."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = {name: value for name, value in raw if name.startswith(b"x-") or name in _OTHER_HEADERS}

    def text(self, name: str) -> str:
        return self._raw.get(name.encode(), b"").decode("latin-1").strip()

    def integer(self, name: str) -> int:
        """0 when absent. Raises InvalidField."""
        text = self.text(name)
        if not text:
            return 0
        if not text.isdecimal() or len(text) > 18:
            raise InvalidField([Violation(name.title(), f"{text[:40]!r} is not a revision, such as 57")])
        return int(text)


async def _read(receive: Receive, headers: _Headers) -> bytes:
    """The whole body.

    Raises:
        InvalidInput: it is compressed.
        TooLarge: before reading it when its length is told.
        _HungUpError: it does not come whole.
    """
    if (encoding := headers.text("content-encoding")) not in ("", "identity"):
        refused = f"the body comes with Content-Encoding {encoding[:40]!r}, and is not unpacked; send it as it is"
        raise InvalidInput([Violation("", refused)])
    told = headers.text("content-length")
    if told.isdecimal() and int(told) > MAX_BODY_BYTES:
        raise TooLarge("The body", limit=MAX_BODY_BYTES, given=int(told))
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUpError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise TooLarge("The body", limit=MAX_BODY_BYTES, given=f"more than {MAX_BODY_BYTES}")
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


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
