"""An HTTP tool for end-to-end tests that answers when the test lets it: so a trigger can be held in the middle of its pipeline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

ANSWER = b'{"ok": true}'
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class ToolServer:
    """`url` answers {"ok": true} while `open` is set; `waiting` counts the requests that are held now, `answered` those that were not."""

    def __init__(self) -> None:
        self.url = ""
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.answered = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.waiting += 1
            try:
                await self.open.wait()
            finally:
                self.waiting -= 1
            self.answered += 1
            writer.write(RESPONSE)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def tool_server() -> AsyncIterator[ToolServer]:
    """Serves on a free port of the loopback interface."""
    tool = ToolServer()
    server = await asyncio.start_server(tool.handle, "127.0.0.1", 0)
    tool.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/pause"
    try:
        yield tool
    finally:
        tool.open.set()
        server.close()
        await server.wait_closed()
