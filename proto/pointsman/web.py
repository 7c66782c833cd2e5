"""The HTTP side of both servers: uvicorn inside our event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from pointsman.serving import check_free
from pointsman.settings import Address
from pointsman.tls import ServerTls
from pointsman.web_protocol import LimitedProtocol

GRACEFUL_SHUTDOWN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
HANDSHAKE_SECONDS = 10.0
# uvicorn ticks ten times a second.
TICKS_BETWEEN_LOOKS = 5


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: one place owns shutdown (serving.run)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with a time for TLS handshakes, for which it has no setting."""

        def connection() -> asyncio.Protocol:
            return LimitedProtocol(self.config, self.server_state, {})

        secure: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS} if self.config.ssl is not None else {}
        loop = asyncio.get_running_loop()
        listen = [loop.create_server(connection, sock=sock, ssl=self.config.ssl, backlog=BACKLOG, **secure) for sock in sockets or ()]
        self.servers = [await one for one in listen]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Looks for connections that are overdue."""
        if counter % TICKS_BETWEEN_LOOKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, LimitedProtocol), "websockets are off"
                connection.expire(now)
        return await super().on_tick(counter)


class HttpServer:
    """An ASGI app on an address of its own, in the event loop of the gRPC server. `address` has the resolved port after start."""

    def __init__(self, app: Any, *, reuse_port: bool = False, tls: ServerTls | None = None) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http=LimitedProtocol,
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
        sock = listening_socket(listen, reuse_port=self._reuse_port)
        self.address = Address(listen.host, sock.getsockname()[1])
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]), name="http server")

    async def stop(self, grace_seconds: float = GRACEFUL_SHUTDOWN_SECONDS) -> None:
        """Takes no new requests, lets running ones finish within the grace, then closes."""
        self._config.timeout_graceful_shutdown = math.ceil(grace_seconds)
        if self._task is not None:
            self._server.should_exit = True
            await self._task


def listening_socket(listen: Address, *, reuse_port: bool = False) -> socket.socket:
    """Listens already. Raises OSError when the address cannot be listened on."""
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
