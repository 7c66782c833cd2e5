"""Server-sent events (the HTML standard, section 9.2) of one execution, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from data_plane.events import Event
from pointsman.errors import PointsmanError
from pointsman.exchange import Exchange, Header, head_of

# Proxies cut a connection on which nothing moves for a minute or so.
KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
# What execution_started says, which is in the head too, as with every other answer.
NAMED = ("execution_id", "app", "environment", "release", "revision")

_encode = msgspec.json.Encoder().encode


async def write_events(told: AsyncIterator[list[Event]], exchange: Exchange) -> None:
    """Sends the head with the first event, then what there is, in one write; a comment where nothing has come for a while."""
    sequence = 0
    try:
        async for events in told:
            if sequence == 0:
                exchange.start(200, head_of(_head(events[0])))
            parts = [_text(number, event) for number, event in enumerate(events, sequence + 1)]
            sequence += len(parts)
            await exchange.write(b"".join(parts) or KEEP_ALIVE)
    except PointsmanError:
        # The last event has said how it ended.
        pass
    exchange.end()


def _text(number: int, event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, event.dotted.encode(), _encode(event.data))


def _head(started: Event) -> list[Header]:
    named = [(f"x-{key.replace('_', '-')}".encode(), str(started.data[key]).encode()) for key in NAMED]
    digest, gateway = started.data["digest"], started.data["gateway_id"]
    stale = [] if started.stale_seconds is None else [(b"x-stale", b"%d" % started.stale_seconds)]
    return [*HEADERS, *named, (b"x-release-digest", digest.encode()), (b"x-gateway", gateway.encode()), *stale]
