"""A TCP proxy that misbehaves on demand: between a gateway and its control plane, or a client and a server."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024
MAX_CONNECTIONS = 256
MAX_SEEN_BYTES = 16 * 1024 * 1024


class Proxy:
    """Forwards 127.0.0.1:`port` to the upstream, until told otherwise. Every fault also holds for connections that exist.

    stop()/restart(): connections are reset and new ones refused / the same port again.
    deaf = True: bytes are taken and thrown away, both ways; nothing is closed (a network that swallows packets).
    delay_seconds: each chunk is held back so long.
    cut_after_bytes: a connection is reset once so many bytes have gone downstream over it.
    """

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._upstream_port = int(port)
        self.port = 0
        self.deaf = False
        self.delay_seconds = 0.0
        self.cut_after_bytes: int | None = None
        self.seen = bytearray()
        """What has gone either way, up to MAX_SEEN_BYTES."""
        self.connections = 0
        """How many were accepted, ever."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """host:port to connect to; the same after a restart."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.restart()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def restart(self) -> None:
        """Listens; after stop() on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuses new connections and resets those that exist."""
        if self._server:
            self._server.close()
        self.reset_connections()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server:
            await self._server.wait_closed()
            self._server = None

    def forward_to(self, upstream: str) -> None:
        """Resets the connections that exist; new ones go there."""
        self._host, _, port = upstream.rpartition(":")
        self._upstream_port = int(port)
        self.reset_connections()

    def reset_connections(self) -> None:
        """Resets those that exist; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self._writers.add(writer)
        try:
            if len(self._writers) > 2 * MAX_CONNECTIONS:
                return
            with contextlib.suppress(OSError, asyncio.CancelledError):
                upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._upstream_port)
                self._writers.add(upstream_writer)
                pumps = [
                    asyncio.create_task(self._pump(reader, upstream_writer, downstream=False)),
                    asyncio.create_task(self._pump(upstream_reader, writer, downstream=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
                    self._writers.discard(upstream_writer)
                    upstream_writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, downstream: bool) -> None:
        sent_bytes = 0
        while chunk := await reader.read(CHUNK_BYTES):
            if len(self.seen) < MAX_SEEN_BYTES:
                self.seen += chunk
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.deaf:
                continue
            if downstream and self.cut_after_bytes is not None and sent_bytes + len(chunk) >= self.cut_after_bytes:
                writer.write(chunk[: self.cut_after_bytes - sent_bytes])
                await writer.drain()
                return
            writer.write(chunk)
            await writer.drain()
            sent_bytes += len(chunk)
