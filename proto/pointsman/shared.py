"""What the HTTP connections of one server have in common (http1.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pointsman.exchange import Exchange

if TYPE_CHECKING:
    from pointsman.http1 import Connection

Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one request, in a task of its own. What it raises is INTERNAL to the caller, with an id under which the log has it."""


class Shared:
    """One for all connections of a server."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        """Also those that are gone, while what runs for them has not ended."""
        self.date = b""
        """The header of that name."""
        self.is_stopping = False
        self._changed = asyncio.Event()

    def discard(self, connection: Connection) -> None:
        """It is gone, and nothing runs for it."""
        self.connections.discard(connection)
        self._changed.set()

    async def are_gone(self) -> None:
        """Returns when there is none."""
        while self.connections:
            self._changed.clear()
            await self._changed.wait()
