"""Server-sent events (the HTML standard, section 9.2) of one execution.

They are written in the turn of the event loop in which they happen: a queue with a reader of its own would make each piece of text wait
for all other streams once more. Only while the caller does not read do they wait, with text joined, so that they take bounded memory.
"""

from __future__ import annotations

import asyncio

import msgspec

from data_plane.events import Event, Events
from data_plane.gateway import Gateway
from data_plane.lookup import Asked
from data_plane.streaming import completed, failed
from pointsman.errors import PointsmanError
from pointsman.exchange import Exchange, Header, head_of

# Proxies cut a connection on which nothing moves for a minute or so.
KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
# What execution_started says, which is in the head too, as with every other answer.
NAMED = ("execution_id", "app", "environment", "release", "revision")

_encode = msgspec.json.Encoder().encode


async def answer_by_events(gateway: Gateway, asked: Asked, exchange: Exchange) -> None:
    """Runs a trigger, and tells how it goes.

    Raises:
        PointsmanError: what is refused before the start; nothing is answered yet.
    """
    writer = _Writer(exchange)
    try:
        try:
            answer = await gateway.trigger(asked, writer.put)
        except PointsmanError as error:
            if not exchange.started:
                raise
            writer.put(failed(error))
        else:
            writer.put(completed(answer))
        await writer.end()
    finally:
        writer.close()


class _Writer:
    """Writes the head with the first event, and a comment where nothing has come for a while."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._waiting = Events()
        self._sequence = 0
        self._wrote_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        """Never waits."""
        exchange = self._exchange
        if not exchange.started:
            exchange.start(200, head_of(_head(event)))
            self._timer = self._loop.call_later(KEEP_ALIVE_SECONDS, self._keep_alive)
        if self._waiting or exchange.is_stuck:
            if not self._waiting:
                exchange.when_writable(self._flush)
            self._waiting.put(event)
        else:
            self._write([event])

    async def end(self) -> None:
        """Once all of it is written."""
        while self._waiting:
            await self._exchange.writable()
            self._flush()
        self._exchange.end()

    def close(self) -> None:
        """Whatever has become of it."""
        if self._timer is not None:
            self._timer.cancel()

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._waiting.taken())

    def _write(self, events: list[Event]) -> None:
        parts = [_text(number, event) for number, event in enumerate(events, self._sequence + 1)]
        self._sequence += len(parts)
        self._wrote_at = self._loop.time()
        self._exchange.push(b"".join(parts))

    def _keep_alive(self) -> None:
        left = self._wrote_at + KEEP_ALIVE_SECONDS - self._loop.time()
        if left <= 0:
            if not self._exchange.is_stuck:
                self._exchange.push(KEEP_ALIVE)
            left = KEEP_ALIVE_SECONDS
            self._wrote_at = self._loop.time()
        self._timer = self._loop.call_later(left, self._keep_alive)


def _text(number: int, event: Event) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, event.dotted.encode(), _encode(event.data))


def _head(started: Event) -> list[Header]:
    named = [(f"x-{key.replace('_', '-')}".encode(), str(started.data[key]).encode()) for key in NAMED]
    digest, gateway = started.data["digest"], started.data["gateway_id"]
    stale = [] if started.stale_seconds is None else [(b"x-stale", b"%d" % started.stale_seconds)]
    return [*HEADERS, *named, (b"x-release-digest", digest.encode()), (b"x-gateway", gateway.encode()), *stale]
