"""HTTP/1.1 of both servers, a connection at a time: httptools' parser (llhttp, which Node uses too), with limits on everything.

A handler is given an Exchange: a request, and the way to answer it. What is refused, and what is not HTTP, has the one JSON shape of
errors. General servers take as long for a request as the gateway for a trigger, and have settings for few of these limits.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import structlog

from pointsman.errors import Internal, InvalidField, PointsmanError, RateLimited, TooLarge, Violation
from pointsman.exchange import CLOSE, STATUS_LINES, Exchange, Header, HungUpError, head_of
from pointsman.web_errors import error_body, error_headers

MAX_CONNECTIONS = 10_000
# As much as gRPC's metadata may have.
MAX_HEAD_BYTES = 64 * 1024
# What a header costs beside its bytes, as HTTP/2 counts it (RFC 9113, section 6.5.2).
HEADER_BYTES = 32
# Requests that wait for their turn on one connection; hardly any client sends a second one before the answer to the first.
MAX_PIPELINED = 32
# Of a body that its handler does not read on; beyond it the connection is not read either.
MAX_UNREAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
# How long a connection is kept for another request.
KEEP_ALIVE_SECONDS = 75.0
# Of an answer that its caller does not read on; how long a stream is silent does not matter.
UNREAD_SECONDS = 60.0
# What is still on its way from who was refused is read for so long: a reset would take the refusal from it.
LINGER_SECONDS = 1.0
RETRY_AFTER_SECONDS = 1.0

# What is awaited of the caller.
HEAD, BODY, NEXT, NOTHING = "head", "body", "next", ""

Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one request, in a task of its own. What it raises is INTERNAL to the caller, with an id under which the log has it."""

_NEVER = math.inf

log = structlog.get_logger()


class Shared:
    """What the connections of one server have in common."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        """Also those that are gone, while what runs for them has not ended."""
        self.date = b""
        """The header of that name."""
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


class Connection(asyncio.Protocol):
    """One connection. `expire` must be called every now and then."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared) -> None:
        self.loop = asyncio.get_running_loop()
        self.writable: asyncio.Future[None] | None = None
        """Awaited while the caller does not read what it is sent."""
        self._shared = shared
        self._parser: Any = httptools.HttpRequestParser(self)
        # Else an error of what comes after the last request would take the place of its answer.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._running: Exchange | None = None
        self._coming: Exchange | None = None
        """Whose body is awaited."""
        self._waiting: deque[Exchange] = deque()
        self._is_paused = False
        self._awaited = self._timed = HEAD
        self._due = self.loop.time() + HEAD_SECONDS
        self._unread_due = _NEVER
        self._url = b""
        self._headers: list[Header] = []
        self._expects = False
        self._counted = 0
        """Bytes of the URL and the headers that are known."""
        self._unknown = 0
        """Bytes since the last thing that was known."""
        self._began = self._in_head = self._refused = self._draining = self._is_deaf = self._is_lost = False
        self._refusal: PointsmanError | None = None

    @property
    def date(self) -> bytes:
        """The header that says when."""
        return self._shared.date

    @property
    def running(self) -> Exchange | None:
        """What is being answered."""
        return self._running

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head is waited for from now on."""
        self.transport = transport  # type: ignore[assignment]
        self._shared.connections.add(self)
        if len(self._shared.connections) > MAX_CONNECTIONS:
            self._refuse(
                RateLimited(
                    f"There are {MAX_CONNECTIONS} connections already, and no more may be open at the same time. Try again later.",
                    limit=MAX_CONNECTIONS,
                    given=MAX_CONNECTIONS + 1,
                    of="connections at the same time",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever asked is gone."""
        del exc
        self._is_lost = True
        self.resume_writing()
        # The parser refers to this, and this to it.
        self._parser = None
        self._waiting.clear()
        if self._running is None:
            self._shared.discard(self)
        else:
            self._running.went()

    def data_received(self, data: bytes) -> None:
        """Looks whether what it was part of is whole now."""
        if self._refused or self._is_deaf:
            return
        in_head, self._began = self._in_head, True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing else is spoken here: the request is answered as any other, and what follows is not understood.
            self._is_deaf = True
            self.drain()
        except httptools.HttpParserError as error:
            if self._refusal is None and isinstance(error, httptools.HttpParserCallbackError):
                log.exception("a request could not be taken")
            self._refuse(self._refusal or InvalidField([Violation("", f"it is not HTTP/1.1: {error}")]))
            return
        self._unknown = self._unknown + len(data) if in_head and self._in_head else 0
        if self._unknown > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif self._awaited != self._timed:
            self._await(self._awaited)

    def _await(self, part: str) -> None:
        self._timed = self._awaited = part
        self._due = self.loop.time() + {NOTHING: _NEVER, HEAD: HEAD_SECONDS, BODY: BODY_SECONDS, NEXT: KEEP_ALIVE_SECONDS}[part]

    def on_message_begin(self) -> None:
        """A request's first bytes."""
        self._url, self._headers, self._expects = b"", [], False
        self._awaited, self._in_head, self._counted = HEAD, True, 0

    def on_url(self, url: bytes) -> None:
        """A part of it."""
        self._url += url
        self._unknown = 0
        self._counted += len(url)
        if self._counted > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the head; or after the last chunk, where nobody asks for it."""
        self._unknown = 0
        self._counted += len(name) + len(value) + HEADER_BYTES
        if self._counted > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal
        if self._coming is None:
            name = name.lower()
            if name == b"expect":
                self._expects = value.lower() == b"100-continue"
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: the request is answered from now on, or when those before it are."""
        self._awaited, self._in_head = BODY, False
        is_old = self._parser.get_http_version() == "1.0"
        keep_alive = not is_old and self._parser.should_keep_alive()
        method = self._parser.get_method().decode()
        coming = self._coming = Exchange(self, method, self._target(), self._headers, keep_alive=keep_alive, is_old=is_old)
        if self._expects:
            coming.expect()
        if self._running is None:
            self._begin(coming)
            return
        self._waiting.append(coming)
        self._pause_reading()
        if len(self._waiting) > MAX_PIPELINED:
            self._refusal = TooLarge("The connection", limit=MAX_PIPELINED, given=len(self._waiting), unit="requests without an answer")
            raise self._refusal

    def _target(self) -> bytes:
        """Path and query."""
        url = self._url
        if url[:1] == b"/" and b"#" not in url and url.isascii():
            return url
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            parsed = None
        if parsed is None or not url.isascii():
            self._refusal = InvalidField([Violation("", "it asks for what is no path; it must begin with `/`, and have only ASCII in it")])
            raise self._refusal
        return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")

    def on_chunk_header(self) -> None:
        """After the last chunk come headers again."""
        self._in_head = True

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        self._in_head = False
        coming = self._coming
        if coming is not None and not coming.complete and coming.came(body) > MAX_UNREAD_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_head = False
        coming, self._coming = self._coming, None
        if coming is None:
            return
        coming.came_whole()
        self._awaited = NEXT if coming.complete else NOTHING

    def _begin(self, exchange: Exchange) -> None:
        self._running = exchange
        if self._draining and not self._waiting:
            exchange.keep_alive = False
        exchange.task = self.loop.create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._shared.handler(exchange)
        except HungUpError:
            pass
        except Exception:
            request_id = str(uuid.uuid4())
            log.exception("request failed", path=exchange.path, request_id=request_id)
            if not exchange.started:
                error = Internal(request_id)
                exchange.answer(error.http_status, head_of(error_headers(error)), error_body(error))
        finally:
            if self._is_lost:
                self._shared.discard(self)
            elif not exchange.complete:
                # What it began has no end, and must not be taken for whole.
                self._running = None
                self.transport.abort()

    def answered(self, exchange: Exchange) -> None:
        """An exchange has its answer: the next one's turn."""
        if exchange is not self._running:
            return
        self._running = None
        if self._refused or self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self.transport.close()
            return
        if self._waiting:
            self._begin(self._waiting.popleft())
        elif self._awaited == NOTHING:
            self._await(NEXT)
        self.resume_reading()

    def drain(self) -> None:
        """No more requests: what runs is the last, as its answer says."""
        self._draining = True
        if self._running is None:
            self.transport.close()
        elif not self._waiting:
            self._running.keep_alive = False

    def abort(self) -> None:
        """Ends it, and what runs for it."""
        if self._running is not None and self._running.task is not None:
            self._running.task.cancel()
        self.transport.abort()

    def _pause_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The rest of what was sent is wanted."""
        if self._is_paused and not self._waiting:
            self._is_paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The caller does not read what it is sent."""
        self.writable = self.loop.create_future()
        self._unread_due = self.loop.time() + UNREAD_SECONDS

    def resume_writing(self) -> None:
        """It does, or is gone."""
        self._unread_due = _NEVER
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None

    def expire(self, now: float) -> None:
        """Ends what is overdue; `now` is of the event loop's clock."""
        if now > self._unread_due:
            self.transport.abort()
        elif now > self._due:
            if self._refused:
                self.transport.abort()
            elif not self._began or self._awaited == NEXT or (self._awaited == BODY and self._running is None):
                # Nothing was asked, or it has its answer.
                self.transport.close()
            elif not self._is_paused:
                seconds = HEAD_SECONDS if self._awaited == HEAD else BODY_SECONDS
                late = f"did not come whole within {seconds:g} s; send it faster, or less"
                self._refuse(InvalidField([Violation(self._awaited, late)]))

    def _refuse(self, error: PointsmanError) -> None:
        """Answers, and ends the connection. Where it could be taken for another request's answer, or one has begun, it only ends it."""
        self._refused = True
        running = self._running
        if running is not None and (running.started or self._waiting or running.is_whole):
            self.transport.abort()
            return
        body = error_body(error)
        head = head_of(error_headers(error))
        length = b"content-length: %d\r\n" % len(body)
        self.transport.write(b"".join((STATUS_LINES[error.http_status], self.date, head, length, CLOSE, b"\r\n", body)))
        if running is not None:
            running.went()
        self.resume_reading()
        self._due = self.loop.time() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


def _too_large() -> TooLarge:
    return TooLarge("The head of the request", limit=MAX_HEAD_BYTES, given=f"more than {MAX_HEAD_BYTES}")
