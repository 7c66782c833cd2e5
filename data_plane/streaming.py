"""A trigger told as it goes, to a reader who takes its events; the end of it, for both doors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from data_plane.events import Event, Events
from data_plane.gateway import Gateway
from data_plane.lookup import Asked
from data_plane.record import Answer
from pointsman.errors import PointsmanError


@contextlib.asynccontextmanager
async def told(gateway: Gateway, asked: Asked) -> AsyncIterator[AsyncIterator[list[Event]]]:
    """The events of one trigger, as many at a time as wait. Leaving the context cancels the work, if it still goes on.

    The iterator ends after execution_completed; after execution_failed it raises the error.

    Raises:
        PointsmanError: what is refused before the start, when the context is entered.
    """
    events = Events()
    task = asyncio.create_task(gateway.trigger(asked, events.put), name="streamed trigger")
    first = asyncio.create_task(events.take())
    try:
        await asyncio.wait({task, first}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            # It ended without a start: refused.
            await task
        yield _all(task, events, first.result())
    finally:
        first.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PointsmanError):
            await task


async def _all(task: asyncio.Task[Answer], events: Events, first: list[Event]) -> AsyncIterator[list[Event]]:
    yield first
    task.add_done_callback(lambda _: events.put(_END))
    while True:
        some = await events.take()
        if some[-1] is _END:
            break
        yield some
    if len(some) > 1:
        yield some[:-1]
    try:
        answer = await task
    except PointsmanError as error:
        yield [failed(error)]
        raise
    yield [completed(answer)]


def completed(answer: Answer) -> Event:
    """The last event."""
    return Event("execution_completed", {"output": answer.output})


def failed(error: PointsmanError) -> Event:
    """The last event of one that failed."""
    return Event("execution_failed", {"error": error.reason_name, "message": error.message, "details": error.metadata})


_END = Event("end", {})
