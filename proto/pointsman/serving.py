"""What both servers would otherwise duplicate: the gRPC server with its limits, checks and errors, health, reflection.

The wrapper around each method is the only place where an exception becomes a status: PointsmanError as errors.proto describes it, anything
else as INTERNAL with a request id under which the log has the traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, text_format
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_status import rpc_status

from pointsman import rules
from pointsman.errors import Internal, InvalidField, PointsmanError, Violation
from pointsman.settings import Address
from pointsman.tls import Pems, ServerTls

DOMAIN = "pointsman"
MIB = 1024 * 1024
MAX_MESSAGE_BYTES = 16 * MIB
MAX_METADATA_BYTES = 64 * 1024
# grpcio cancels what is beyond its pending limits (1,000 and 3,000 by default) when thousands of gateways connect at once.
MAX_PENDING_REQUESTS = 20_000
# Clients may ping every 10 s; a little less is allowed, since pings drift.
MIN_PING_INTERVAL_MS = 8_000
KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
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

log = structlog.get_logger()


class StartupError(Exception):
    """The process cannot start; the message is one line for the person who started it."""


def rich_status(error: PointsmanError) -> Any:
    """The error as a gRPC status with its google.rpc details."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        violations = [error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.grpc_code == "FAILED_PRECONDITION":
        subject = "/".join(error.metadata[key] for key in ("app", "environment", "release") if key in error.metadata)
        violation = error_details_pb2.PreconditionFailure.Violation(type=error.reason_name, subject=subject, description=error.message)
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    if error.resource_type:
        name = error.metadata.get(error.resource_type) or error.metadata.get("tag") or error.metadata.get("environment", "")
        details.append(error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=name, description=error.message))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message, details=packed))


class _Registrar:
    """Takes what `add_XServicer_to_server` adds, and wraps each method once with what an interceptor would do for every call.

    grpc.aio's interceptors cost as much as a bare call does, and more than twice when they make a new handler each time.
    """

    def __init__(self, server: grpc.aio.Server, authorise: Authorise, observe: Observe, refused: Refused) -> None:
        self._server = server
        self._authorise = authorise
        self._observe = observe
        self._refused = refused

    def add_generic_rpc_handlers(self, _handlers: Sequence[Any]) -> None:
        """Nothing: the same methods come by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service with its methods wrapped."""
        wrapped = {
            name: _wrapped(handler, f"/{service}/{name}", self._authorise, self._observe, self._refused)
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))


def _wrapped(handler: Any, method: str, authorise: Authorise, observe: Observe, refused: Refused) -> Any:
    """Lets callers in, decodes and checks every request, and turns every exception, of calls and of streams, into a status.

    Requests come as bytes, so that who may not call costs no decoding. Responses may be messages or bytes that are serialised already, so
    that one serialisation serves any number of streams.
    """
    entry = _Entry(method, authorise, handler.request_deserializer, observe, refused)
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


@dataclass(frozen=True, slots=True)
class _Entry:
    """What stands before a method."""

    method: str
    authorise: Authorise
    decode: Callable[[bytes], Any]
    observe: Observe
    refused: Refused
    last: dict[bytes, Any] = field(default_factory=dict)
    """The newest request of a stream, by its bytes."""

    def admit(self, context: Any) -> Check | None:
        """Lets the caller in; what its requests are shown to. Raises PointsmanError."""
        return self.authorise(self.method, {str(key): str(value) for key, value in context.invocation_metadata() or ()})

    async def taken(self, data: Any, check: Check | None) -> Any:
        """The request, or the stream of requests, decoded and checked. Raises PointsmanError."""
        return self._all(data, check) if hasattr(data, "__aiter__") else await self._one(data, check)

    async def _one(self, data: bytes, check: Check | None) -> Any:
        request = _decoded(self.decode, data)
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


def _decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except DecodeError:
        refused = "the request's bytes are not the message that this method takes; generate the client anew"
        raise InvalidField([Violation("", refused)]) from None


def _unary(call: Callable[[Any, Any], Awaitable[Any]], entry: _Entry) -> Callable[[Any, Any], Awaitable[Any]]:
    async def wrapped(data: Any, context: Any) -> Any:
        began, outcome = time.monotonic(), CANCELLED
        request = None
        try:
            request = await entry.taken(data, entry.admit(context))
            response = await call(request, context)
            outcome = OK
        except Exception as error:  # noqa: BLE001 -- the last place: everything becomes a status here
            outcome = _reason(error)
            entry.refused(entry.method, request, context, error)
            await _abort(context, error, entry.method)
        else:
            return response
        finally:
            entry.observe(entry.method, outcome, time.monotonic() - began)

    return wrapped


def _stream(call: Callable[[Any, Any], AsyncIterator[Any]], entry: _Entry) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def wrapped(data: Any, context: Any) -> AsyncIterator[Any]:
        began, outcome = time.monotonic(), CANCELLED
        try:
            async for response in call(await entry.taken(data, entry.admit(context)), context):
                yield response
            outcome = OK
        except Exception as error:  # noqa: BLE001 -- the last place: everything becomes a status here
            outcome = _reason(error)
            await _abort(context, error, entry.method)
        finally:
            entry.observe(entry.method, outcome, time.monotonic() - began)

    return wrapped


def _reason(error: Exception) -> str:
    return error.reason_name if isinstance(error, PointsmanError) else "INTERNAL"


async def _abort(context: Any, error: Exception, method: str) -> NoReturn:
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


class GrpcServer:
    """A grpc.aio server with our options, checks, errors, health and reflection.

    Add servicers to `services`, name their services, then start. `address` has the resolved port after start.
    """

    def __init__(
        self,
        *,
        reuse_port: bool = False,
        authorise: Authorise = lambda _method, _metadata: None,
        observe: Observe = lambda _method, _outcome, _seconds: None,
        refused: Refused = lambda _method, _request, _context, _error: None,
        tls: ServerTls | None = None,
    ) -> None:
        """`authorise` is asked at the beginning of every call but those of health, `observe` is told of every one at its end, and
        `refused` of those that end in an error.
        """
        options = [
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ]
        self._server = grpc.aio.server(options=options)
        self.services: Any = _Registrar(self._server, authorise, observe, refused)
        """For `add_XServicer_to_server`."""
        self.address = Address("", 0)
        self._reuse_port = reuse_port
        self._tls = tls
        self._health = _Health()
        self._services: list[str] = []

    async def start(self, listen: Address, services: Sequence[str], *, serving: bool = True) -> None:
        """Listens and serves. `services` are the full names of those added, for health and reflection; `serving` is their health.

        Raises:
            StartupError: when the address cannot be listened on.
        """
        self._services = ["", *services]
        self._server.add_generic_rpc_handlers((self._health.handler(),))
        _add_reflection(self.services, [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name])
        if not self._reuse_port:
            check_free(listen)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(str(listen))
            else:
                port = self._server.add_secure_port(str(listen), _credentials(self._tls))
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {listen}: {error}") from error
        self.address = Address(listen.host, port)
        await self._server.start()
        await self.set_serving(serving=serving)

    async def set_serving(self, *, serving: bool) -> None:
        """What the health service answers, for the server and for each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self._health.set(service, status)

    async def drain(self) -> None:
        """Health answers NOT_SERVING from now on, whatever set_serving says."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new calls, lets running ones finish within the grace, then ends them."""
        await self._server.stop(grace_seconds)


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    told = tls.pems

    def changed() -> Any:
        """Asked at every handshake, on a thread of gRPC's own; None when nothing has changed."""
        nonlocal told
        newest = tls.pems
        if newest is told:
            return None
        told = newest
        return _configuration(newest)

    return grpc.dynamic_ssl_server_credentials(_configuration(told), changed, tls.asks_for_certificates)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca or None)


def check_free(listen: Address) -> None:
    """Raises StartupError when something listens on the address already, or it is not of this machine.

    A bind of our own gives a sentence where gRPC would write its inner state to stderr.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        why = "the port is already taken" if error.errno == 98 else (error.strerror or str(error))
        raise StartupError(f"cannot listen on {listen}: {why}; stop what uses it, or choose another address") from error


class _Health(health.aio.HealthServicer):
    """Refuses bytes that are no request as every other method does; grpcio's own names the exception to the caller."""

    def handler(self) -> grpc.GenericRpcHandler:
        """Not wrapped as others are: nobody needs a token, and load balancers that ask every second are not counted."""
        encode = health_pb2.HealthCheckResponse.SerializeToString
        check, watch = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods: dict[str, Any] = {"Check": check(self.Check, None, encode), "Watch": watch(self.Watch, None, encode)}
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    async def Check(self, request: Any, context: Any) -> Any:
        return await super().Check(await self._read(request, context), context)

    async def Watch(self, request: Any, context: Any) -> None:
        await super().Watch(await self._read(request, context), context)

    async def _read(self, data: bytes, context: Any) -> Any:
        try:
            return _decoded(health_pb2.HealthCheckRequest.FromString, data)
        except InvalidField as error:
            await _abort(context, error, "health")


class _Reflection(ReflectionServicer):
    """Also finds the file of a method, which the pool does not: `grpcurl describe SERVICE.METHOD` asks for one."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        with contextlib.suppress(KeyError):
            fully_qualified_name = descriptor_pool.Default().FindMethodByName(fully_qualified_name).containing_service.full_name
        return super()._file_containing_symbol(request, fully_qualified_name)  # type: ignore[misc]  # its stubs leave it out


def _add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serves reflection as v1alpha and as v1, which are the same but for the name; grpcio has v1alpha only (grpc/grpc#38576)."""
    old = reflection_pb2.DESCRIPTOR
    proto = descriptor_pb2.FileDescriptorProto()
    old.CopyToProto(proto)
    text = text_format.MessageToString(proto)
    text = text.replace("grpc.reflection.v1alpha", "grpc.reflection.v1").replace("reflection/v1alpha/", "reflection/v1/")
    descriptor_pool.Default().AddSerializedFile(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString())
    name = "grpc.reflection.v1.ServerReflection"
    servicer: Any = _Reflection([*services, reflection.SERVICE_NAME, name])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # its stubs say no types
    decode, encode = reflection_pb2.ServerReflectionRequest.FromString, reflection_pb2.ServerReflectionResponse.SerializeToString
    handler = grpc.stream_stream_rpc_method_handler(servicer.ServerReflectionInfo, decode, encode)
    server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})
