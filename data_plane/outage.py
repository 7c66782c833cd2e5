"""A drill: for a time the gateway behaves as if the control plane were gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import structlog

log = structlog.get_logger()


class SimulatedOutageError(Exception):
    """A conversation with the control plane was cut, or is not begun, since there is an outage."""


class Outage:
    """At most one at a time; the newest word counts. Ends by itself, and with the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = 0.0
        self._changed = asyncio.Event()
        self._conversation: asyncio.Timeout | None = None

    @property
    def seconds_left(self) -> float:
        """0 when there is none."""
        return max(0.0, self._ends_at - self._clock())

    def simulate(self, seconds: float) -> None:
        """From now on, for so long; 0 ends it."""
        log.warning("an outage of the control plane is simulated" if seconds else "no outage is simulated any more", seconds=seconds)
        self._ends_at = self._clock() + seconds
        self._changed.set()
        if seconds and self._conversation is not None:
            self._conversation.reschedule(0)
            self._conversation = None

    async def over(self) -> None:
        """Waits while there is one."""
        while (left := self.seconds_left) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    @contextlib.asynccontextmanager
    async def cuts(self) -> AsyncIterator[None]:
        """An outage that begins inside cancels what is inside, and raises SimulatedOutageError."""
        conversation = asyncio.timeout(None)
        try:
            async with conversation:
                self._conversation = conversation
                yield
        except TimeoutError:
            if conversation.expired():
                raise SimulatedOutageError from None
            raise
        finally:
            self._conversation = None
