"""What both servers would otherwise duplicate: the gRPC server with its limits, checks and errors, health, reflection.

The wrapper around each method is the only place where an exception becomes a status: PointsmanError as errors.proto describes it, anything
else as INTERNAL with a request id under which the log has the traceback.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from pointsman.calls import Calls
from pointsman.errors import InvalidField
from pointsman.serving_calls import MAX_MESSAGE_BYTES, Authorise, Entry, Observe, Refused, Registrar, abort, decoded
from pointsman.settings import Address
from pointsman.tls import Pems, ServerTls

MIB = 1024 * 1024
# gRPC itself refuses what is larger than this, without details; what lies between is told as every other refusal.
HARD_MESSAGE_BYTES = 20 * MIB
MAX_METADATA_BYTES = 64 * 1024
MAX_CONNECTIONS = 10_000
MAX_STREAMS_OF_CONNECTION = 4_000
# TLS, and the first words of HTTP/2.
HANDSHAKE_SECONDS = 10
# Of a connection without a call; a stream that is open is one, however silent.
IDLE_SECONDS = 600
# grpcio cancels what is beyond its pending limits (1,000 and 3,000 by default) when thousands of gateways connect at once.
MAX_PENDING_REQUESTS = 20_000
# Clients may ping every 10 s; a little less is allowed, since pings drift.
MIN_PING_INTERVAL_MS = 8_000
KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000

log = structlog.get_logger()


class StartupError(Exception):
    """The process cannot start; the message is one line for the person who started it."""


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
        uncounted: Iterable[str] = (),
        has_deadline: bool = True,
        asks_again: bool = True,
    ) -> None:
        """`authorise` is asked at the beginning of every call but those of health, and with `asks_again` before every message of a stream,
        so that nothing more is told to who is not let in any more; a trigger that was let in is finished. `observe` is told of every call
        at its end, and `refused` of those that end in an error. Calls of the methods in `uncounted` do not count for their tokens. With
        `has_deadline` a call that names none has DEFAULT_DEADLINE_SECONDS, streams excepted; triggers have the timeouts of their endpoints.
        """
        options = [
            ("grpc.so_reuseport", int(reuse_port)),
            # Of what a compressed message unpacks to, too.
            ("grpc.max_receive_message_length", HARD_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.max_concurrent_streams", MAX_STREAMS_OF_CONNECTION),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            ("grpc.max_connection_idle_ms", int(IDLE_SECONDS * 1000)),
            ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ]
        self._server = grpc.aio.server(options=options)
        self.calls = Calls()
        """Those that run; an HTTP server may count with it."""
        entry = Entry(authorise, observe, refused, self.calls, frozenset(uncounted), has_deadline, asks_again)
        self.services: Any = Registrar(self._server, entry)
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
            return decoded(health_pb2.HealthCheckRequest.FromString, data)
        except InvalidField as error:
            await abort(context, error, "health")


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
