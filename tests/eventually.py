"""Waiting on state, never on time: ask again until it is so, or say after a bounded time what it was instead."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02


async def eventually(predicate: Callable[[], T | Awaitable[T]], timeout_seconds: float = 10.0) -> T:
    """The first true value that the predicate gives, called anew every 20 ms. An AssertionError in it counts as not yet.

    Ask for state that stays (a revision >= the one I caused), not for a moment that may pass between two polls.

    Raises:
        AssertionError: it was not so in time; says what the predicate gave, or why it failed, the last time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        last: object
        try:
            found = predicate()
            value = await found if inspect.isawaitable(found) else found
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {timeout_seconds:g} s; the last time it was {last!r}")
        await asyncio.sleep(POLL_SECONDS)
