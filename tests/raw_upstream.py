"""An upstream that answers bytes: what no HTTP library would let a server say, and answers that are cut where the test wants them cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

CHUNK = b"x" * 65536


class RawUpstream:
    """`answers` has the bytes for each path, after which the connection is closed; `endless` is written for ever, `hang` answers nothing."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, bytes] = {}
        self.connections = 0
        """That are open."""
        self.requests = 0
        self.endless_bytes = 0
        """How many of an endless answer were taken."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            path = head.split(b" ")[1].decode().split("/")[1]
            if path == "endless":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000000\r\n\r\n")
                while True:
                    writer.write(CHUNK)
                    await writer.drain()
                    self.endless_bytes += len(CHUNK)
            elif path == "hang":
                while await reader.read(1024):
                    pass
            else:
                writer.write(self.answers[path])
                await writer.drain()
        self.connections -= 1
        writer.close()


@contextlib.asynccontextmanager
async def raw_upstream(**answers: bytes) -> AsyncIterator[RawUpstream]:
    """Serves on a free port of the loopback interface; underscores in names are hyphens in paths."""
    upstream = RawUpstream()
    upstream.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await server.wait_closed()


def answer(body: bytes, kind: str = "application/json", length: int | None = None, status: str = "200 OK") -> bytes:
    """An answer that says it has so many bytes."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def chunked(*pieces: bytes, ends: bool) -> bytes:
    """An event stream in chunks; without the last one when it does not end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head + body + (b"0\r\n\r\n" if ends else b"")
