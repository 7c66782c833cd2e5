"""What stands before every gRPC method: who calls is let in and counted, requests are decoded and checked, exceptions become statuses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import grpc.aio
import msgspec
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pointsman import rules
from pointsman.calls import Calls
from pointsman.errors import Internal, InvalidField, PointsmanError, StepTimeout, TooLarge, Violation
from pointsman.tokens import secret_of, token_id_of

DOMAIN = "pointsman"
# Clients take 8 KiB of trailing metadata unless they are told otherwise; of more they tell nothing but that it is too much.
MAX_STATUS_BYTES = 7 * 1024
# How long texts, and how many violations, are tried in turn, until they fit.
STATUS_SIZES = ((2000, 100), (500, 30), (150, 10), (50, 5))
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# Of a call that names none. No gateway may take longer to prepare than 300 s.
DEFAULT_DEADLINE_SECONDS = 360.0
# Checking a config of this size takes milliseconds; a larger one would hold up every stream of the process.
CHECK_ON_THREAD_BYTES = 4096

OK, CANCELLED = "OK", "CANCELLED"

Check = Callable[[Any], None]
"""Shown each request of a call, decoded. Raises PointsmanError when this caller may not ask for that."""
Authorise = Callable[[str, Mapping[str, str]], Check | None]
"""(method, metadata) -> what the requests of the call are shown to, if anything. Raises PointsmanError when the caller may not call."""
Refused = Callable[[str, Any, Any, Exception], None]
"""(method, request, context, error), of calls that are no streams; the request is None when it could not be read, or may not be."""
Observe = Callable[[str, str, float], None]
"""(method, outcome, seconds): the outcome is OK, CANCELLED, or a reason."""

METADATA: ContextVar[Mapping[str, str]] = ContextVar("metadata")
"""Of the call that runs: to ask grpc for it costs a tenth of a bare call, each time."""

log = structlog.get_logger()


def rich_status(error: PointsmanError) -> Any:
    """The error as a gRPC status with its google.rpc details; what is too long for clients is cut, what is too much left out."""
    found = status_pb2.Status()
    for chars, violations in STATUS_SIZES:
        found = _status(error, chars, violations)
        # The message comes once more, with three bytes for each that is not plain; the rest may come in base64.
        if len(quote(found.message)) + found.ByteSize() * 4 // 3 <= MAX_STATUS_BYTES:
            break
    return rpc_status.to_status(found)


def _status(error: PointsmanError, chars: int, most_violations: int) -> status_pb2.Status:
    message = shorter(error.message, chars)
    metadata = {key: shorter(value, chars) for key, value in error.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=metadata)]
    if error.violations:
        violation_type = error_details_pb2.BadRequest.FieldViolation
        told = error.violations[:most_violations]
        violations = [violation_type(field=shorter(v.field, chars), description=shorter(v.description, chars)) for v in told]
        if len(error.violations) > len(told):
            violations.append(violation_type(description=f"{len(error.violations) - len(told)} more are not told here"))
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.grpc_code == "FAILED_PRECONDITION":
        subject = "/".join(metadata[key] for key in ("app", "environment", "release") if key in metadata)
        violation = error_details_pb2.PreconditionFailure.Violation(type=error.reason_name, subject=subject, description=message)
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    if error.resource_type:
        name = metadata.get(error.resource_type) or metadata.get("tag") or metadata.get("environment", "")
        details.append(error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=name, description=message))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=message, details=packed)


def shorter(text: str, chars: int) -> str:
    """The text, or its beginning with a mark that there was more."""
    return text if len(text) <= chars else text[: chars - 1] + "…"


class Registrar:
    """Takes what `add_XServicer_to_server` adds, and wraps each method once with what an interceptor would do for every call.

    grpc.aio's interceptors cost as much as a bare call does, and more than twice when they make a new handler each time.
    """

    def __init__(self, server: grpc.aio.Server, entry: Entry) -> None:
        self._server = server
        self._entry = entry

    def add_generic_rpc_handlers(self, _handlers: Sequence[Any]) -> None:
        """Nothing: the same methods come by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service with its methods wrapped."""
        wrapped = {name: _wrapped(handler, f"/{service}/{name}", self._entry) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))


def _wrapped(handler: Any, method: str, entry: Entry) -> Any:
    """Lets callers in, decodes and checks every request, and turns every exception, of calls and of streams, into a status.

    Requests come as bytes, so that who may not call costs no decoding. Responses may be messages or bytes that are serialised already, so
    that one serialisation serves any number of streams.
    """
    entry = msgspec.structs.replace(entry, method=method, decode=handler.request_deserializer, last={})
    make: Any
    wrapped: Any
    if handler.unary_unary:
        make, wrapped = grpc.unary_unary_rpc_method_handler, _unary(handler.unary_unary, entry)
    elif handler.unary_stream:
        make, wrapped = grpc.unary_stream_rpc_method_handler, _stream(handler.unary_stream, entry)
    elif handler.stream_stream:
        make, wrapped = grpc.stream_stream_rpc_method_handler, _stream(handler.stream_stream, entry)
    else:
        make, wrapped = grpc.stream_unary_rpc_method_handler, _unary(handler.stream_unary, entry)
    return make(wrapped, response_serializer=_encoder(handler.response_serializer))


class Entry(msgspec.Struct, frozen=True):
    """What stands before a method."""

    authorise: Authorise
    observe: Observe
    refused: Refused
    calls: Calls
    uncounted: frozenset[str]
    has_deadline: bool
    asks_again: bool
    method: str = ""
    decode: Callable[[bytes], Any] = bytes
    last: dict[bytes, Any] = {}
    """The newest request of a stream, by its bytes."""

    def admit(self, context: Any) -> tuple[Check | None, str]:
        """Lets the caller in, and counts the call: what its requests are shown to, and whose it is. Raises PointsmanError."""
        metadata: dict[str, str] = dict(context.invocation_metadata() or ())
        METADATA.set(metadata)
        check = self.authorise(self.method, metadata)
        shown = metadata.get("authorization")
        token_id = _whose(shown) if shown and self.method not in self.uncounted else ""
        self.calls.enter(token_id)
        return check, token_id

    async def taken(self, data: Any, check: Check | None) -> Any:
        """The request, or the stream of requests, decoded and checked. Raises PointsmanError."""
        return self._all(data, check) if hasattr(data, "__aiter__") else await self._one(data, check)

    async def _one(self, data: bytes, check: Check | None) -> Any:
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooLarge("The message", limit=MAX_MESSAGE_BYTES, given=len(data))
        request = decoded(self.decode, data)
        large = len(data) > CHECK_ON_THREAD_BYTES
        violations = await asyncio.to_thread(rules.check_request, request) if large else rules.check_request(request)
        if violations:
            raise InvalidField(violations)
        if check is not None:
            check(request)
        return request

    async def _all(self, requests: AsyncIterator[bytes], check: Check | None) -> AsyncIterator[Any]:
        """What many say at once, such as that they have applied a revision, is decoded and checked once."""
        async for data in requests:
            request = self.last.get(data)
            if request is None:
                request = await self._one(data, None)
                self.last.clear()
                if len(data) < CHECK_ON_THREAD_BYTES:
                    self.last[data] = request
            if check is not None:
                check(request)
            yield request


def decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """The message. Raises InvalidField."""
    try:
        return decode(data)
    except DecodeError:
        refused = "the request's bytes are not the message that this method takes; generate the client anew"
        raise InvalidField([Violation("", refused)]) from None


def _unary(call: Callable[[Any, Any], Awaitable[Any]], entry: Entry) -> Callable[[Any, Any], Awaitable[Any]]:
    async def in_time(data: Any, check: Check | None, context: Any, requests: list[Any]) -> Any:
        try:
            async with asyncio.timeout(DEFAULT_DEADLINE_SECONDS) as deadline:
                requests.append(await entry.taken(data, check))
                return await call(requests[0], context)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise _too_late() from None

    async def wrapped(data: Any, context: Any) -> Any:
        began, outcome = time.monotonic(), CANCELLED
        token_id: str | None = None
        requests: list[Any] = []
        try:
            check, token_id = entry.admit(context)
            if entry.has_deadline and context.time_remaining() is None:
                response = await in_time(data, check, context, requests)
            else:
                requests.append(await entry.taken(data, check))
                response = await call(requests[0], context)
            outcome = OK
        except Exception as error:  # noqa: BLE001 -- the last place: everything becomes a status here
            outcome = _reason(error)
            entry.refused(entry.method, requests[0] if requests else None, context, error)
            await abort(context, error, entry.method)
        else:
            return response
        finally:
            if token_id is not None:
                entry.calls.leave(token_id)
            entry.observe(entry.method, outcome, time.monotonic() - began)

    return wrapped


def _too_late() -> StepTimeout:
    return StepTimeout(
        f"The call was given up after {DEFAULT_DEADLINE_SECONDS:g} s, since it names no deadline; whether it has changed something is not "
        "known. Repeat it with the same request_id, and a deadline of its own.",
        timeout=f"{DEFAULT_DEADLINE_SECONDS:g}s",
    )


def _stream(call: Callable[[Any, Any], AsyncIterator[Any]], entry: Entry) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def wrapped(data: Any, context: Any) -> AsyncIterator[Any]:
        began, outcome = time.monotonic(), CANCELLED
        token_id: str | None = None
        try:
            check, token_id = entry.admit(context)
            metadata = METADATA.get()
            async for response in call(await entry.taken(data, check), context):
                if entry.asks_again:
                    # What was shown at the beginning may have been revoked, or may have expired.
                    entry.authorise(entry.method, metadata)
                yield response
            outcome = OK
        except Exception as error:  # noqa: BLE001 -- the last place: everything becomes a status here
            outcome = _reason(error)
            await abort(context, error, entry.method)
        finally:
            if token_id is not None:
                entry.calls.leave(token_id)
            entry.observe(entry.method, outcome, time.monotonic() - began)

    return wrapped


def _whose(authorization: str) -> str:
    """What the calls of one caller are counted by; empty for who shows nothing."""
    secret = secret_of(authorization)
    return token_id_of(secret) or (str(hash(secret)) if secret else "")


def _reason(error: Exception) -> str:
    return error.reason_name if isinstance(error, PointsmanError) else "INTERNAL"


async def abort(context: Any, error: Exception, method: str) -> NoReturn:
    """Ends the call with the error's status; what is no refusal of ours is told by an id under which the log has it."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, PointsmanError):
        request_id = str(uuid.uuid4())
        log.error("call failed", method=method, request_id=request_id, exc_info=error)
        error = Internal(request_id)
    await context.abort_with_status(rich_status(error))
    raise AssertionError("abort_with_status always raises")


def _encoder(encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    if encode is None:
        return None
    return lambda response: response if type(response) is bytes else encode(response)
