"""The HTTP side of both servers: uvicorn inside our event loop, and the one JSON shape of errors."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pointsman.errors import InvalidField, PointsmanError, TooLarge, Violation
from pointsman.serving import check_free
from pointsman.settings import Address
from pointsman.tls import ServerTls

GRACEFUL_SHUTDOWN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# As much as gRPC's metadata may have.
MAX_HEAD_BYTES = 64 * 1024
# What a header costs beside its bytes, as HTTP/2 counts it (RFC 9113, section 6.5.2).
HEADER_BYTES = 32
# Requests that wait for their turn on one connection; hardly any client sends a second one before the answer to the first.
MAX_PIPELINED = 32


def error_body(error: PointsmanError) -> bytes:
    """The error as JSON: `{"error", "message", "details", "status_code", "timestamp"}` of errors.proto."""
    details: dict[str, Any] = dict(error.metadata)
    if error.violations:
        details["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    body = {
        "error": error.reason_name,
        "message": error.message,
        "details": details,
        "status_code": error.http_status,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return msgspec.json.encode(body)


def error_headers(error: PointsmanError) -> list[tuple[bytes, bytes]]:
    """Content type, and Retry-After in whole seconds, rounded up, where a repeat makes sense."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    return headers


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: one place owns shutdown (serving.run)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which keeps as large a head as comes, and as many requests as are sent before the first is answered."""

    _counted = 0
    """Bytes of the URL and the headers that are known."""
    _waited = 0
    """Bytes since the last thing that was known."""
    _in_head = False
    _too_large: TooLarge | None = None

    def data_received(self, data: bytes) -> None:
        began = self._in_head
        super().data_received(data)
        self._waited = self._waited + len(data) if began and self._in_head else 0
        if self._waited > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(TooLarge("The head of the request", limit=MAX_HEAD_BYTES, given=f"more than {MAX_HEAD_BYTES}"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._counted = True, 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + HEADER_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._too_large = TooLarge("The connection", limit=MAX_PIPELINED, given=len(self.pipeline), unit="requests without an answer")
            raise self._too_large

    def on_chunk_header(self) -> None:
        """After the last chunk come headers again."""
        self._in_head = True

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called when the parser, or what it calls here, has raised."""
        self._refuse(self._too_large or InvalidField([Violation("", f"it is not HTTP/1.1: {msg}")]))

    def _count(self, size: int) -> None:
        self._counted += size
        self._waited = 0
        if self._counted > MAX_HEAD_BYTES:
            self._too_large = TooLarge("The head of the request", limit=MAX_HEAD_BYTES, given=f"more than {MAX_HEAD_BYTES}")
            raise self._too_large

    def _refuse(self, error: PointsmanError) -> None:
        """And closes. Where an earlier request is not answered yet, nobody could tell whose answer this is."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = error_body(error)
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        head = b"HTTP/1.1 %d %s\r\n" % (error.http_status, HTTPStatus(error.http_status).phrase.encode())
        self.transport.write(head + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body)
        self.transport.close()


class HttpServer:
    """An ASGI app on an address of its own, in the event loop of the gRPC server. `address` has the resolved port after start."""

    def __init__(self, app: Any, *, reuse_port: bool = False, tls: ServerTls | None = None) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # A line for each request that is not HTTP would fill the disk.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            ssl_context_factory=(lambda _config, _default: tls.context()) if tls is not None else None,
        )
        self.address = Address("", 0)
        self._reuse_port = reuse_port
        self._config = config
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self, listen: Address) -> None:
        """Listens and serves.

        Raises:
            StartupError: when the address cannot be listened on.
        """
        if not self._reuse_port:
            check_free(listen)
        self._config.host, self._config.port = listen.host, listen.port
        sock = _bind(listen, reuse_port=self._reuse_port)
        self.address = Address(listen.host, sock.getsockname()[1])
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]), name="http server")

    async def stop(self, grace_seconds: float = GRACEFUL_SHUTDOWN_SECONDS) -> None:
        """Takes no new requests, lets running ones finish within the grace, then closes."""
        self._config.timeout_graceful_shutdown = math.ceil(grace_seconds)
        if self._task is not None:
            self._server.should_exit = True
            await self._task


def _bind(listen: Address, *, reuse_port: bool) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    # Now, and not when uvicorn gets to it: whoever reads the ready line connects at once.
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
