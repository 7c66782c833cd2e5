"""uvicorn's HTTP protocol with the limits that it has no settings for: times, sizes of heads, connections, requests in line.

What is refused, and what is not HTTP, has the one JSON shape of errors.
"""

from __future__ import annotations

import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pointsman.errors import InvalidField, PointsmanError, RateLimited, TooLarge, Violation
from pointsman.joined_writes import JoinedWrites
from pointsman.web_errors import error_body, error_headers

MAX_CONNECTIONS = 10_000
# As much as gRPC's metadata may have.
MAX_HEAD_BYTES = 64 * 1024
# What a header costs beside its bytes, as HTTP/2 counts it (RFC 9113, section 6.5.2).
HEADER_BYTES = 32
# Requests that wait for their turn on one connection; hardly any client sends a second one before the answer to the first.
MAX_PIPELINED = 32
HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
# Of an answer that its caller does not read on; how long a stream is silent does not matter.
UNREAD_SECONDS = 60.0
# What is still on its way from who was refused is read for so long: a reset would take the refusal from it.
LINGER_SECONDS = 1.0
RETRY_AFTER_SECONDS = 1.0

_NEVER = math.inf


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `expire` must be called every now and then."""

    _awaited = ""
    """The part of a request that has begun to come and is not whole: `head`, `body`, or none."""
    _timed = ""
    """The part that `_due` is of."""
    _due = _NEVER
    _unread_due = _NEVER
    _began = False
    """Something has come."""
    _counted = 0
    """Bytes of the URL and the headers that are known."""
    _unknown = 0
    """Bytes since the last thing that was known."""
    _in_head = False
    """In headers, those after the last chunk of a body too."""
    _refused = False
    _refusal: PointsmanError | None = None

    def connection_made(self, transport: Any) -> None:
        """The first head is waited for from now on."""
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]
        self._awaited = self._timed = "head"
        self._due = self.loop.time() + HEAD_SECONDS
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(
                RateLimited(
                    f"There are {MAX_CONNECTIONS} connections already, and no more may be open at the same time. Try again later.",
                    limit=MAX_CONNECTIONS,
                    given=MAX_CONNECTIONS + 1,
                    of="connections at the same time",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            )

    def data_received(self, data: bytes) -> None:
        """Looks whether what it was part of is whole now."""
        if self._refused:
            return
        in_head, self._began = self._in_head, True
        super().data_received(data)
        self._unknown = self._unknown + len(data) if in_head and self._in_head else 0
        if self._refused:
            return
        if self._unknown > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif self._awaited != self._timed:
            self._timed = self._awaited
            seconds = {"": _NEVER, "head": HEAD_SECONDS, "body": BODY_SECONDS}[self._awaited]
            self._due = self.loop.time() + seconds

    def on_message_begin(self) -> None:
        """A request's first bytes."""
        super().on_message_begin()
        self._awaited, self._in_head, self._counted = "head", True, 0

    def on_url(self, url: bytes) -> None:
        """A part of it."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the head, or after the last chunk."""
        self._count(len(name) + len(value) + HEADER_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._awaited, self._in_head = "body", False
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._refusal = TooLarge("The connection", limit=MAX_PIPELINED, given=len(self.pipeline), unit="requests without an answer")
            raise self._refusal

    def on_chunk_header(self) -> None:
        """After the last chunk come headers again."""
        self._in_head = True

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._awaited, self._in_head = "", False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called when the parser, or what it calls here, has raised."""
        self._refuse(self._refusal or InvalidField([Violation("", f"it is not HTTP/1.1: {msg}")]))

    def pause_writing(self) -> None:
        """The caller does not read what it is sent."""
        super().pause_writing()
        self._unread_due = self.loop.time() + UNREAD_SECONDS

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._unread_due = _NEVER

    def expire(self, now: float) -> None:
        """Ends what is overdue; `now` is of the event loop's clock."""
        if now > self._unread_due:
            self.transport.abort()
        elif now > self._due:
            if self._refused:
                self.transport.abort()
            elif not self._began or (self.cycle is not None and self.cycle.response_complete and self._awaited == "body"):
                # Nothing was asked, or it has its answer.
                self.transport.close()
            elif not self.flow.read_paused:
                seconds = HEAD_SECONDS if self._awaited == "head" else BODY_SECONDS
                late = f"did not come whole within {seconds:g} s; send it faster, or less"
                self._refuse(InvalidField([Violation(self._awaited, late)]))

    def _count(self, size: int) -> None:
        self._counted += size
        self._unknown = 0
        if self._counted > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal

    def _refuse(self, error: PointsmanError) -> None:
        """Answers, and ends the connection. Where it could be taken for another request's answer, or one has begun, it only ends it."""
        self._refused = True
        running = self.cycle is not None and not self.cycle.response_complete
        if running and (self.cycle.response_started or self.pipeline or not self.cycle.more_body):
            self.transport.abort()
            return
        if running:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(error)
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        self.transport.write(b"".join([STATUS_LINE[error.http_status], *(b"%s: %s\r\n" % pair for pair in headers), b"\r\n", body]))
        self.flow.resume_reading()
        self._due = self.loop.time() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


def _too_large() -> TooLarge:
    return TooLarge("The head of the request", limit=MAX_HEAD_BYTES, given=f"more than {MAX_HEAD_BYTES}")
