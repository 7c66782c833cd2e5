"""The HTTP side of both servers, in the event loop of the gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from email.utils import formatdate
from typing import Any

from pointsman.http1 import Connection
from pointsman.serving import check_free
from pointsman.settings import Address
from pointsman.shared import Handler, Shared
from pointsman.tls import ServerTls

GRACEFUL_SHUTDOWN_SECONDS = 10.0
BACKLOG = 2048
HANDSHAKE_SECONDS = 10.0
# Between looks for connections that are overdue; the time in answers is as old at most.
TICK_SECONDS = 0.5


class HttpServer:
    """A handler on an address of its own. `address` has the resolved port after start."""

    def __init__(self, handler: Handler, *, reuse_port: bool = False, tls: ServerTls | None = None) -> None:
        self.address = Address("", 0)
        self._reuse_port = reuse_port
        self._tls = tls
        self._shared = Shared(handler)
        self._listening: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._shared.connections)

    async def start(self, listen: Address) -> None:
        """Listens and serves.

        Raises:
            StartupError: when the address cannot be listened on.
        """
        if not self._reuse_port:
            check_free(listen)
        sock = listening_socket(listen, reuse_port=self._reuse_port)
        self.address = Address(listen.host, sock.getsockname()[1])
        self._tick()
        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls.context(), "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self._shared), sock=sock, backlog=BACKLOG, **secure)

    async def stop(self, grace_seconds: float = GRACEFUL_SHUTDOWN_SECONDS) -> None:
        """Takes no new requests, lets running ones finish within the grace, then ends them."""
        if self._listening is None or self._ticking is None:
            return
        self._listening.close()
        # Also for those that are accepted already, and not connections yet.
        self._shared.is_stopping = True
        for connection in list(self._shared.connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._shared.are_gone()
        for connection in list(self._shared.connections):
            connection.abort()
        await self._shared.are_gone()
        await self._listening.wait_closed()
        self._ticking.cancel()

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        self._shared.date = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
        now = asyncio.get_running_loop().time()
        for connection in list(self._shared.connections):
            connection.expire(now)


def listening_socket(listen: Address, *, reuse_port: bool = False) -> socket.socket:
    """Listens already. Raises OSError when the address cannot be listened on."""
    family, kind, _, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    # Now, and not when the event loop gets to it: whoever reads the ready line connects at once.
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
