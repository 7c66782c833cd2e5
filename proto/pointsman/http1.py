"""HTTP/1.1 of both servers, a connection at a time: httptools' parser (llhttp, which Node uses too), with limits on everything.

A handler is given an Exchange: a request, and the way to answer it. What is refused, and what is not HTTP, has the one JSON shape of
errors. General servers take as long for a request as the gateway for a trigger, and have settings for few of these limits.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import deque
from typing import Any

import httptools
import structlog

from pointsman.errors import Internal, InvalidField, PointsmanError, RateLimited, TooLarge, Violation
from pointsman.exchange import CLOSE, STATUS_LINES, Exchange, Header, HungUpError, head_of
from pointsman.shared import Shared
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

_NEVER = math.inf

log = structlog.get_logger()


class Connection(asyncio.Protocol):
    """One connection. `expire` must be called every now and then."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared) -> None:
        self.loop = asyncio.get_running_loop()
        self.writable: asyncio.Future[None] | None = None
        """Awaited while the caller does not read what it is sent."""
        self._shared = shared
        self._parser: Any = httptools.HttpRequestParser(self)
        self._running: Exchange | None = None
        self._coming: Exchange | None = None
        """Whose body is awaited."""
        self._waiting: deque[Exchange] = deque()
        self._is_paused = False
        self._awaited = self._timed = HEAD
        self._due = self.loop.time() + HEAD_SECONDS
        self._unread = 0
        """Bytes that the caller had not read when that was last looked at."""
        self._unread_due = _NEVER
        self._url = b""
        self._headers: list[Header] = []
        self._hosts = 0
        self._expects = False
        self._counted = 0
        """Bytes of the URL and the headers that are known."""
        self._unknown = 0
        """Bytes since the last thing that was known."""
        self._refusal: PointsmanError | None = None
        """What is answered after the requests before it."""
        self._began = self._is_deaf = self._is_over = self._is_lost = False

    @property
    def date(self) -> bytes:
        """The header that says when."""
        return self._shared.date

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head is waited for from now on."""
        self.transport = transport  # type: ignore[assignment]
        self._shared.connections.add(self)
        if self._shared.is_stopping:
            self._close()
        elif len(self._shared.connections) > MAX_CONNECTIONS:
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
        self._waiting.clear()
        self._coming = None
        # The parser refers to this, and this to it.
        self._parser = None
        self._due = _NEVER
        self.resume_writing()
        self._unread_due = _NEVER
        if self._running is None:
            self._shared.discard(self)
        else:
            self._running.went()

    def data_received(self, data: bytes) -> None:
        """Looks whether what it was part of is whole now."""
        if self._is_deaf:
            return
        self._began = True
        self._unknown += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing else is spoken here: the request is answered as any other, and what follows is not understood.
            self._is_deaf = True
            self.drain()
        except httptools.HttpParserError as error:
            # What one of the methods below raised.
            raised = error.__context__
            if isinstance(raised, PointsmanError):
                self._refuse(raised)
                return
            if raised is not None:
                log.exception("a request could not be taken")
            self._refuse(InvalidField([Violation("", f"it is not HTTP/1.1: {error}")]))
            return
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
        # It has its own time, also where the one before it was at the same part.
        self._awaited, self._timed = HEAD, ""
        self._hosts = self._counted = 0

    def on_url(self, url: bytes) -> None:
        """A part of it."""
        self._url += url
        self._unknown = 0
        self._counted += len(url)
        if self._counted > MAX_HEAD_BYTES:
            raise _too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the head; or after the last chunk, where nobody asks for it."""
        self._unknown = 0
        self._counted += len(name) + len(value) + HEADER_BYTES
        if self._counted > MAX_HEAD_BYTES:
            raise _too_large()
        if self._coming is None:
            name = name.lower()
            if name == b"host":
                self._hosts += 1
            elif name == b"expect":
                self._expects = value.lower() == b"100-continue"
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: the request is answered from now on, or when those before it are."""
        self._awaited = BODY
        # Of an earlier version nothing else is known, and of a later one nothing is promised (RFC 9110, section 6.2).
        is_old = self._parser.get_http_version() != "1.1"
        if self._hosts != 1 and not (is_old and self._hosts == 0):
            # RFC 9112, section 3.2: who stands in front may have chosen another of them.
            raise InvalidField([Violation("Host", f"it has the header {self._hosts} times; send it once")])
        keep_alive = not is_old and self._parser.should_keep_alive()
        method = self._parser.get_method().decode()
        coming = self._coming = Exchange(self, method, self._target(), self._headers, keep_alive=keep_alive, is_old=is_old)
        if self._expects and not is_old:
            coming.expect()
        if self._running is None and self.writable is None:
            self._begin(coming)
            return
        self._waiting.append(coming)
        self._pause_reading()
        if len(self._waiting) > MAX_PIPELINED:
            raise TooLarge("The connection", limit=MAX_PIPELINED, given=len(self._waiting), unit="requests without an answer")

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
            raise InvalidField([Violation("", "it asks for what is no path; it must begin with `/`, and have only ASCII in it")])
        return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        self._unknown = 0
        coming = self._coming
        if coming is not None and not coming.complete and coming.came(body) > MAX_UNREAD_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        coming.came_whole()
        self._awaited = NEXT if coming.complete else NOTHING

    def _begin(self, exchange: Exchange) -> None:
        self._running = exchange
        exchange.task = self.loop.create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            if not exchange.gone:
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
            if exchange is self._running:
                self._running = None
                if self._is_lost:
                    self._shared.discard(self)
                elif not self._is_over:
                    # What it began has no end, and must not be taken for whole.
                    self.transport.abort()

    def answered(self, exchange: Exchange) -> None:
        """An exchange has its answer: the next one's turn."""
        if exchange is not self._running or self._is_lost:
            return
        self._running = None
        if self._is_over or self.transport.is_closing():
            return
        if exchange.keep_alive:
            if self._awaited == NOTHING and not self._waiting:
                self._await(NEXT)
            self._go_on()
        else:
            self._linger()

    def _go_on(self) -> None:
        """With what waits, unless the caller does not read what it was sent before: that would pile up here."""
        if self.writable is not None or self._is_over or self.transport.is_closing():
            return
        if self._waiting:
            self._begin(self._waiting.popleft())
        elif self._refusal is not None:
            self._tell(self._refusal)
            return
        self.resume_reading()

    def drain(self) -> None:
        """No more requests: what has come is the last, as its answer says."""
        last = self._waiting[-1] if self._waiting else self._running
        if last is None:
            self._close()
        else:
            last.keep_alive = False

    def abort(self) -> None:
        """Ends it, and what runs for it."""
        running = self._running
        if running is not None and running.task is not None and not running.gone:
            # It is told once: a second time would cut short how it ends. And not before it has begun, else it had no end.
            running.gone = True
            self.loop.call_soon(running.task.cancel)
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
            # What could not come meanwhile is not late.
            self._await(self._awaited)

    def pause_writing(self) -> None:
        """The caller does not read what it is sent."""
        self.writable = self.loop.create_future()
        self._watch_unread()

    def resume_writing(self) -> None:
        """It does, or is gone."""
        if not self.transport.is_closing():
            self._unread_due = _NEVER
        writable, self.writable = self.writable, None
        if writable is not None:
            writable.set_result(None)
        if self._running is None:
            self._go_on()

    def _watch_unread(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._unread_due = self.loop.time() + UNREAD_SECONDS

    def expire(self, now: float) -> None:
        """Ends what is overdue; `now` is of the event loop's clock."""
        if now > self._unread_due:
            before = self._unread
            self._watch_unread()
            if self._unread >= before:
                self.transport.abort()
        elif now > self._due:
            if self._is_over and not self.transport.get_write_buffer_size():
                self.transport.abort()
            elif self._is_over or not self._began or self._awaited == NEXT or (self._awaited == BODY and self._running is None):
                # Nothing was asked, or it has its answer.
                self._close()
            elif not self._is_paused:
                seconds = HEAD_SECONDS if self._awaited == HEAD else BODY_SECONDS
                late = f"did not come whole within {seconds:g} s; send it faster, or less"
                self._refuse(InvalidField([Violation(self._awaited, late)]))

    def _refuse(self, error: PointsmanError) -> None:
        """Takes no more, and says why in its turn: no answer before it may be lost, nor this be taken for one of those."""
        self._is_deaf = True
        self._await(NOTHING)
        coming, self._coming = self._coming, None
        if coming is None or coming in self._waiting:
            if coming is not None:
                # It is the last.
                self._waiting.pop()
            self._refusal = error
            if self._running is None:
                self._go_on()
        elif coming.complete:
            self._linger()
        elif coming.started:
            self.transport.abort()
        else:
            self._tell(error)
            coming.went()

    def _tell(self, error: PointsmanError) -> None:
        body = error_body(error)
        head = head_of(error_headers(error))
        length = b"content-length: %d\r\n" % len(body)
        self.transport.write(b"".join((STATUS_LINES[error.http_status], self.date, head, length, CLOSE, b"\r\n", body)))
        self._linger()

    def _linger(self) -> None:
        """Ends it, but reads what is on its way: else a reset would take from the caller what it has not read yet."""
        self._is_deaf = self._is_over = True
        self._waiting.clear()
        self.resume_reading()
        self._due = self.loop.time() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _close(self) -> None:
        """Ends it once the caller has read what it was sent."""
        self._is_deaf = True
        self._due = _NEVER
        self.transport.close()
        if self._unread_due == _NEVER:
            self._watch_unread()


def _too_large() -> TooLarge:
    return TooLarge("The head of the request", limit=MAX_HEAD_BYTES, given=f"more than {MAX_HEAD_BYTES}")
