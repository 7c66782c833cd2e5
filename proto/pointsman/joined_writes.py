"""A transport that sends what is written in one turn of the event loop at once: head and body of an answer, events of a stream.

uvicorn writes them apart, and each write is a system call, which costs a tenth of a trigger.
"""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites:
    """Wraps a transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, data: bytes) -> None:
        """In this turn of the loop, or before it is closed."""
        if not self._waiting:
            self._call_soon(self._flush)
        self._waiting.append(data)

    def write_eof(self) -> None:
        """After all that was written."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """After all that was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        # The caller may have gone since, and a transport that is closed raises.
        if waiting and not self._transport.is_closing():
            self._transport.write(b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
