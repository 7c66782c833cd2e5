"""Connections for the HTTP client's pool, straight on the event loop.

The pool's own ones take a timer, a turn of the loop, and a stop and a start of reading for every piece that is read. A model that
streams sends a piece for every token, and with many such streams that was a third of the gateway's processor time.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

# What may wait unread, in bytes; beyond it the sender is stopped.
MAX_UNREAD_BYTES = 128 * 1024


class Connection(httpcore2.AsyncNetworkStream):
    """One TCP connection, with or without TLS. For one reader and one writer at a time."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol

    @classmethod
    async def open(
        cls, address: str, port: int, seconds: float | None, local_address: str | None, socket_options: Iterable[Any] | None
    ) -> Connection:
        """To an address, not a name. Raises httpcore2.ConnectError, ConnectTimeout."""
        loop = asyncio.get_running_loop()
        local = (local_address, 0) if local_address else None
        try:
            async with asyncio.timeout(seconds):
                transport, protocol = await loop.create_connection(_Protocol, address, port, local_addr=local)
            for option in socket_options or ():
                transport.get_extra_info("socket").setsockopt(*option)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{address} did not take the connection in time") from error
        except OSError as error:
            # asyncio's own text names an address, which is no business of those who see the error.
            raise httpcore2.ConnectError(os.strerror(error.errno) if error.errno else str(error)) from error
        return cls(protocol)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- the library's interface
        """What there is, up to `max_bytes`; waits for the first; nothing at the end. Raises httpcore2.ReadError, ReadTimeout."""
        try:
            if timeout is None:
                return await self._protocol.read(max_bytes)
            async with asyncio.timeout(timeout):
                return await self._protocol.read(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout("nothing came in time") from error
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- the library's interface
        """Returns when the rest that waits to be sent is short. Raises httpcore2.WriteError, WriteTimeout."""
        try:
            async with asyncio.timeout(timeout):
                await self._protocol.write(buffer)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout("it was not taken in time") from error
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- the library's interface
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection, from now on by TLS. Raises httpcore2.ConnectError, ConnectTimeout, and closes it."""
        protocol = self._protocol
        try:
            async with asyncio.timeout(timeout):
                secure = await asyncio.get_running_loop().start_tls(
                    protocol.transport, protocol, ssl_context, server_hostname=server_hostname
                )
        except BaseException as error:
            protocol.transport.abort()
            if isinstance(error, TimeoutError):
                raise httpcore2.ConnectTimeout("the TLS handshake did not end in time") from error
            if isinstance(error, OSError):
                raise httpcore2.ConnectError(str(error)) from error
            raise
        if secure is None:
            raise httpcore2.ConnectError("the connection was closed in the TLS handshake")
        protocol.transport = secure
        return self

    async def aclose(self) -> None:
        """At once: an answer that is not wanted any more is not waited for."""
        self._protocol.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """By the library's names."""
        names = {"client_addr": "sockname", "server_addr": "peername"}
        # For the pool: a connection that should be idle and has something to read is over, or out of step.
        return self._protocol.has_come if info == "is_readable" else self._protocol.transport.get_extra_info(names.get(info, info))


class _Protocol(asyncio.Protocol):
    """What has come and is not read yet, and whether more may be sent."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._unread = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._paused = False
        self._reading: asyncio.Future[None] | None = None
        self._sending: asyncio.Future[None] | None = None

    @property
    def has_come(self) -> bool:
        """Whether a read would return at once."""
        return self._ended or bool(self._unread)

    async def read(self, max_bytes: int) -> bytes:
        """Raises OSError when the connection broke."""
        if not self.has_come:
            self._reading = asyncio.get_running_loop().create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        if not self._unread and self._error is not None:
            raise self._error
        found = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if self._paused and len(self._unread) <= MAX_UNREAD_BYTES // 2 and not self._ended:
            self._paused = False
            self.transport.resume_reading()
        return found

    async def write(self, data: bytes) -> None:
        """Raises OSError when the connection broke."""
        if self._ended and self.transport.is_closing():
            raise self._error or ConnectionResetError("the connection was closed")
        self.transport.write(data)
        if self._sending is not None:
            await asyncio.shield(self._sending)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._unread += data
        if len(self._unread) > MAX_UNREAD_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        _wake(self._reading)

    def eof_received(self) -> None:
        """See asyncio; what is still to be sent is sent."""
        self._ended = True
        _wake(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._ended, self._error = True, exc
        _wake(self._reading)
        self.resume_writing()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._sending = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """See asyncio."""
        _wake(self._sending)
        self._sending = None


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
