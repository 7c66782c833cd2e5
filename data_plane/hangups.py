"""Callers who hang up: what runs for them is cancelled.

Most triggers are over before it would matter, so only those that have run for a moment are watched. One timer serves all: a timer of
its own for each was a twentieth of what a trigger costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

# What has run for one to two of them is watched.
TURN_SECONDS = 0.05

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Hangups:
    """Of one server."""

    def __init__(self) -> None:
        self._new: set[Watch] = set()
        self._older: set[Watch] = set()
        self._turning = False

    def watch(self, receive: Receive) -> Watch:
        """To be entered around what runs for a caller."""
        return Watch(self, receive)

    def add(self, watch: Watch) -> None:
        """From a turn after the next one on it is watched."""
        self._new.add(watch)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)

    def remove(self, watch: Watch) -> None:
        """It is over."""
        self._new.discard(watch)
        self._older.discard(watch)

    def _turn(self) -> None:
        for watch in self._older:
            watch.start()
        self._older, self._new = self._new, set()
        self._turning = bool(self._older)
        if self._turning:
            asyncio.get_running_loop().call_later(TURN_SECONDS, self._turn)


class Watch:
    """Cancels the task that is inside it when the caller hangs up. `hung_up` tells that from other cancellations."""

    __slots__ = ("_hangups", "_receive", "_running", "_watching", "hung_up")

    def __init__(self, hangups: Hangups, receive: Receive) -> None:
        self.hung_up = False
        self._hangups = hangups
        self._receive = receive
        self._running: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._running = asyncio.current_task()
        self._hangups.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hangups.remove(self)
        if self._watching is not None:
            self._watching.cancel()

    def start(self) -> None:
        """From now on."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        assert self._running is not None, "requests run in tasks"
        self._running.cancel()
