"""Server-sent events (the HTML standard, section 9.2) of one execution, over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from data_plane.events import Event
from pointsman.errors import PointsmanError

# Proxies cut a connection on which nothing moves for a minute or so.
KEEP_ALIVE_SECONDS = 15.0
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
# What execution_started says, which is in the head too, as with every other answer.
NAMED = ("execution_id", "app", "environment", "release", "revision")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_encode = msgspec.json.Encoder().encode


async def write_events(events: AsyncIterator[Event], send: Send) -> None:
    """Sends the head with the first event, then each as it comes, and a comment when none has come for a while."""
    sequence = 0
    following = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE_SECONDS)
            if not done:
                await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                continue
            try:
                event = following.result()
            except (StopAsyncIteration, PointsmanError):
                # The last event has said how it ended.
                break
            sequence += 1
            if sequence == 1:
                await send({"type": "http.response.start", "status": 200, "headers": _head(event)})
            text = b"id: %d\nevent: %s\ndata: %s\n\n" % (sequence, event.dotted.encode(), _encode(event.data))
            await send({"type": "http.response.body", "body": text, "more_body": True})
            following = asyncio.ensure_future(anext(events))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        following.cancel()


def _head(started: Event) -> list[tuple[bytes, bytes]]:
    named = [(f"x-{key.replace('_', '-')}".encode(), str(started.data[key]).encode()) for key in NAMED]
    digest, gateway = started.data["digest"], started.data["gateway_id"]
    stale = [] if started.stale_seconds is None else [(b"x-stale", b"%d" % started.stale_seconds)]
    return [*HEADERS, *named, (b"x-release-digest", digest.encode()), (b"x-gateway", gateway.encode()), *stale]
