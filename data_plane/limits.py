"""How many triggers of an endpoint run at the same time: those that are more wait their turn, and no more wait than run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from data_plane.loaded import LoadedEndpoint
from pointsman.errors import RateLimited

RETRY_AFTER_SECONDS = 1.0

Key = tuple[str, str, str]
"""app, environment, path: a limit is one over all releases, so that a deploy does not double what is running."""


class _Line(msgspec.Struct):
    running: int = 0
    waiting: dict[asyncio.Future[None], int] = {}
    """The turns that are waited for, first come first, with the limit that each knows: that of its release."""

    def call_next(self) -> None:
        """Gives what is free to those who came first."""
        while self.waiting:
            turn, limit = next(iter(self.waiting.items()))
            if turn.done():
                # Who waited is gone, and about to say so.
                del self.waiting[turn]
            elif self.running < limit:
                del self.waiting[turn]
                self.running += 1
                turn.set_result(None)
            else:
                return


class Limits:
    """Counts what runs, by endpoint. For one event loop."""

    def __init__(self) -> None:
        self._lines: dict[Key, _Line] = {}

    @property
    def waiting(self) -> int:
        """How many triggers wait for their turn."""
        return sum(len(line.waiting) for line in self._lines.values())

    @contextlib.asynccontextmanager
    async def turn(self, endpoint: LoadedEndpoint, app: str, environment: str, deadline: float) -> AsyncIterator[None]:
        """Inside, the trigger is one of the endpoint's max_concurrency. `deadline` is a time.monotonic().

        Who is cancelled while waiting gives the place up.

        Raises:
            RateLimited: as many wait already, or the turn did not come before the deadline.
        """
        key = (app, environment, endpoint.path)
        line = self._lines.setdefault(key, _Line())
        try:
            await _enter(line, endpoint, deadline)
            try:
                yield
            finally:
                line.running -= 1
                line.call_next()
        finally:
            if not line.running and not line.waiting:
                self._lines.pop(key, None)


async def _enter(line: _Line, endpoint: LoadedEndpoint, deadline: float) -> None:
    limit = endpoint.max_concurrency
    if line.running < limit and not line.waiting:
        line.running += 1
        return
    if len(line.waiting) >= limit:
        raise _refused(endpoint, "as many wait")
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    line.waiting[turn] = limit
    try:
        async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
            await turn
    except BaseException as error:
        if line.waiting.pop(turn, None) is None and not turn.cancelled():
            # The turn came at the same moment, and is passed on.
            line.running -= 1
        line.call_next()
        if isinstance(error, TimeoutError):
            raise _refused(endpoint, "none ended within the time of this one") from None
        raise


def _refused(endpoint: LoadedEndpoint, why: str) -> RateLimited:
    limit = endpoint.max_concurrency
    return RateLimited(
        f"Endpoint {endpoint.path!r} runs {limit} triggers at a time on this gateway; they are all taken, and {why}. Try again later.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        limit=limit,
        endpoint=endpoint.path,
    )
