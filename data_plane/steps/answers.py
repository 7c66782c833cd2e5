"""Reading what upstreams answer: never more than there is room for, however it is packed, and every way of breaking off as a StepError."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from data_plane.hosts import HostRefusedError
from data_plane.steps.base import MAX_ANSWER_BYTES, MAX_SHOWN_CHARS, Clients, StepError
from data_plane.tracing import pass_on

# Of a stream, which is read event by event and never held whole.
MAX_STREAM_BYTES = 256 * 1024 * 1024
# zlib: gzip or zlib, told from the header.
_EITHER_WRAPPER = 32 + zlib.MAX_WBITS


async def send(clients: Clients, request: httpx2.Request, who: str, *, retryable: bool) -> httpx2.Response:
    """The head of the answer; the caller closes it. Raises StepError; `retryable` is for what may pass, such as a lost connection."""
    pass_on(request.headers)
    try:
        return await clients.http.send(request, stream=True)
    except HostRefusedError as error:
        raise StepError(f"{who}: {error}") from None
    except httpx2.TransportError as error:
        may_pass = retryable and not isinstance(error, httpx2.LocalProtocolError)
        raise StepError(f"{who} cannot be reached: {_cause(error)}", retryable=may_pass) from None


async def read_body(response: httpx2.Response, who: str, *, retryable: bool) -> bytes:
    """The whole body, unpacked, without a byte order mark, up to MAX_ANSWER_BYTES.

    Raises StepError; `retryable` is for an answer that was cut.
    """
    body = bytearray()
    async for piece in _pieces(response, who, MAX_ANSWER_BYTES, retryable=retryable):
        body += piece
    return bytes(body).removeprefix(codecs.BOM_UTF8)


async def read_events(response: httpx2.Response, who: str) -> AsyncGenerator[bytes]:
    """The data of each server-sent event (the HTML standard, section 9.2) that has any, without white space around it.

    The last one may lack the empty line that ends it. Raises StepError, also when the stream is cut.
    """
    waiting, event = bytearray(), bytearray()
    is_first = True
    async for piece in _pieces(response, who, MAX_STREAM_BYTES, retryable=True):
        seen = len(waiting)
        waiting += piece
        begin = 0
        while (end := waiting.find(b"\n", max(begin, seen))) >= 0:
            line = bytes(waiting[begin:end]).removesuffix(b"\r")
            begin = end + 1
            if is_first:
                line, is_first = line.removeprefix(codecs.BOM_UTF8), False
            if line:
                event += _data(line)
                continue
            if data := bytes(event).strip():
                yield data
            event.clear()
        del waiting[:begin]
        if len(waiting) + len(event) > MAX_ANSWER_BYTES:
            raise StepError(f"{who} answered an event of more than {MAX_ANSWER_BYTES} bytes")
    if data := bytes(event + _data(bytes(waiting))).strip():
        yield data


def _data(line: bytes) -> bytes:
    """What a line adds to the data of its event. Ends of lines are white space of JSON, so one more does no harm."""
    return line[5:] + b"\n" if line.startswith(b"data:") else b""


async def _pieces(response: httpx2.Response, who: str, limit: int, *, retryable: bool) -> AsyncIterator[bytes]:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "deflate"):
        raise StepError(f"{who} answered in the encoding {encoding[:MAX_SHOWN_CHARS]!r}, and was asked for gzip or none")
    # httpx2 would unpack a whole piece at once, and a small one can hold gigabytes.
    unpacker = _Unpacker() if encoding in ("gzip", "deflate") else None
    left = limit
    try:
        async for packed in response.aiter_raw():
            piece = unpacker.unpack(packed, left + 1) if unpacker else packed
            left -= len(piece)
            if left < 0:
                raise StepError(f"{who} answered more than {limit} bytes")
            if piece:
                yield piece
    except httpx2.TransportError as error:
        raise StepError(f"{who}: the answer was cut: {_cause(error)}", retryable=retryable) from None
    except zlib.error as error:
        raise StepError(f"{who} answered {encoding} that is broken: {error}") from None
    if unpacker and not unpacker.is_whole:
        raise StepError(f"{who}: the answer was cut: its {encoding} has no end", retryable=retryable)


class _Unpacker:
    """gzip of one member or several behind one another (RFC 1952, section 2.2), or zlib."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_EITHER_WRAPPER)
        self._began = False

    @property
    def is_whole(self) -> bool:
        """Whether all that began has its end."""
        return self._member.eof or not self._began

    def unpack(self, packed: bytes, most: int) -> bytes:
        """What is in it, or its first `most` bytes, which is then too much. Raises zlib.error."""
        found = bytearray()
        while packed and len(found) < most:
            if self._member.eof:
                self._member, self._began = zlib.decompressobj(_EITHER_WRAPPER), False
            self._began = True
            found += self._member.decompress(packed, most - len(found))
            packed = self._member.unused_data
        return bytes(found)


def _cause(error: Exception) -> str:
    """Some of httpx2's errors say nothing but their name."""
    return str(error) or type(error).__name__


def retry_after(response: httpx2.Response) -> float | None:
    """How many seconds Retry-After (RFC 9110, section 10.2.3) asks to wait, by a number or by a date; None without one."""
    asked = response.headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            date = parsedate_to_datetime(asked)
        except ValueError:
            return None
        seconds = max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return seconds if 0 <= seconds < float("inf") else None
