"""One HTTP request and its answer, as a handler sees them; what a connection is like is none of its business (http1.py)."""

from __future__ import annotations

import asyncio
import http
import math
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman.http1 import Connection

CLOSE = b"connection: close\r\n"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}

Header = tuple[bytes, bytes]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
# Their answers have no body, and tell no length (RFC 9110, section 8.6).
_WITHOUT_BODY = frozenset({204, 304})
_UNKNOWN = math.inf


class HungUpError(Exception):
    """The caller is gone: there is nobody to answer."""


def head_of(headers: Sequence[Header]) -> bytes:
    """Headers as they are sent. Raises ValueError when one of them would end its line, and be taken for two."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not lines.count(b"\n") == lines.count(b"\r") == len(headers) or b"\0" in lines:
        raise ValueError("a header has a line break or a NUL in it")
    return lines


class Exchange:
    """One request, and its answer: answer(), or start(), write() and end().

    `headers`: names in small letters. `path` is decoded, `query` is not. `on_gone` is called when the caller goes before the end.
    """

    __slots__ = (
        "_connection",
        "_expects",
        "_framed",
        "_left",
        "_pending",
        "_reader",
        "_unread",
        "_unread_bytes",
        "_whole",
        "complete",
        "gone",
        "headers",
        "is_old",
        "keep_alive",
        "method",
        "on_gone",
        "path",
        "query",
        "started",
        "target",
        "task",
    )

    def __init__(
        self, connection: Connection, method: str, target: bytes, headers: list[Header], *, keep_alive: bool, is_old: bool
    ) -> None:
        """`is_old`: of another version than 1.1, so that nothing is known of what it takes."""
        self._connection = connection
        self.method = method
        self.target = target
        path, _, self.query = target.partition(b"?")
        self.path = urllib.parse.unquote_to_bytes(path).decode(errors="replace") if b"%" in path else path.decode("ascii")
        self.headers = headers
        self.keep_alive = keep_alive
        self.is_old = is_old
        self.on_gone: Callable[[], object] | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = self.complete = self.gone = False
        self._expects = False
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._whole = False
        self._reader: asyncio.Future[None] | None = None
        self._pending = b""
        self._framed = False
        self._left = _UNKNOWN

    @property
    def connection(self) -> Connection:
        """Where it came from."""
        return self._connection

    def expect(self) -> None:
        """The caller waits to be told to send the body (RFC 9110, section 10.1.1)."""
        self._expects = True

    def came(self, part: bytes) -> int:
        """A part of the body; how much is not read yet."""
        self._expects = False
        self._unread.append(part)
        self._unread_bytes += len(part)
        self._wake()
        return self._unread_bytes

    def came_whole(self) -> None:
        """The body has ended."""
        self._expects = False
        self._whole = True
        self._wake()

    @property
    def is_whole(self) -> bool:
        """The body has come, all of it."""
        return self._whole

    def went(self) -> None:
        """The caller has gone."""
        if self.gone:
            return
        self.gone = True
        self._wake()
        if self.on_gone is not None and not self.complete:
            self.on_gone()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.set_result(None)

    async def _woken(self) -> None:
        if self._reader is None:
            self._reader = self._connection.loop.create_future()
        # Shielded: others may wait for the same.
        await asyncio.shield(self._reader)

    async def read(self) -> bytes:
        """What has come of the body, at least one byte; nothing at its end.

        Raises:
            HungUpError: the caller went before the end.
        """
        while not self._unread:
            if self._whole:
                return b""
            if self.gone:
                raise HungUpError
            if self._expects and not self.started:
                self._expects = False
                self._connection.transport.write(_CONTINUE)
            self._connection.resume_reading()
            await self._woken()
        parts, self._unread, self._unread_bytes = self._unread, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def until_gone(self) -> None:
        """Returns when the caller has gone, or has its answer."""
        while not (self.gone or self.complete):
            await self._woken()

    def answer(self, status: int, head: bytes, body: bytes, length: int | None = None) -> None:
        """All of it at once. `head` is made by head_of, without a length; `length`, where a HEAD tells that of a body that is not sent."""
        self._head_is_due()
        if self.gone:
            self._finish()
            return
        told = b"" if status in _WITHOUT_BODY else b"content-length: %d\r\n" % (len(body) if length is None else length)
        sent = b"" if self.method == "HEAD" or status in _WITHOUT_BODY else body
        close = b"" if self.keep_alive else CLOSE
        self._connection.transport.write(b"".join((STATUS_LINES[status], self._connection.date, head, told, close, b"\r\n", sent)))
        self._finish()

    def start(self, status: int, head: bytes, length: int | None = None) -> None:
        """An answer whose body comes bit by bit; its head is sent with the first. `length` of it, if that is known."""
        self._head_is_due()
        if status in _WITHOUT_BODY:
            self._left, told = 0, b""
        elif length is not None:
            self._left, told = length, b"content-length: %d\r\n" % length
        elif self.is_old:
            # Its end is that of the connection.
            self.keep_alive, told = False, b""
        else:
            self._framed, told = True, _CHUNKED
        close = b"" if self.keep_alive else CLOSE
        self._pending = b"".join((STATUS_LINES[status], self._connection.date, head, told, close, b"\r\n"))

    @property
    def is_stuck(self) -> bool:
        """The caller does not read what is written, and has much of it before it."""
        return self._connection.writable is not None

    def when_writable(self, call: Callable[[], object]) -> None:
        """Calls when the caller reads again, or is gone."""
        assert self._connection.writable is not None, "it is stuck"
        self._connection.writable.add_done_callback(lambda _: call())

    async def writable(self) -> None:
        """Returns when the caller reads again, or is gone."""
        if self._connection.writable is not None:
            # Shielded: others wait for the same.
            await asyncio.shield(self._connection.writable)

    async def write(self, part: bytes) -> None:
        """Waits while the caller does not read. For who is gone it does nothing. Raises ValueError beyond the length."""
        self.push(part)
        await self.writable()

    def push(self, part: bytes) -> None:
        """The same without waiting."""
        assert self.started, "an answer begins with its head"
        assert not self.complete, "it has ended"
        pending, self._pending = self._pending, b""
        self._left -= len(part)
        if self._left < 0:
            raise ValueError("an answer is longer than it said")
        if self.gone:
            return
        if self.method == "HEAD":
            part = b""
        elif self._framed and part:
            part = b"%x\r\n%b\r\n" % (len(part), part)
        if pending or part:
            self._connection.transport.write(pending + part)

    def end(self) -> None:
        """After the last part."""
        if not self.gone:
            last = b"0\r\n\r\n" if self._framed and self.method != "HEAD" else b""
            if self._pending or last:
                self._connection.transport.write(self._pending + last)
            if 0 < self._left < _UNKNOWN and self.method != "HEAD":
                # The rest will not come, and must not be taken for it.
                self.keep_alive = False
        self._finish()

    def _head_is_due(self) -> None:
        assert not self.started, "one answer a request"
        self.started = True
        if self._expects:
            # It was not told to send the body, and may or may not do so.
            self.keep_alive = False

    def _finish(self) -> None:
        self.complete = True
        self._wake()
        self._connection.answered(self)
