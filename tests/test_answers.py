"""What upstreams answer is read with bounds: packed or not, whole or line by line, and every cut is noticed."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from data_plane.steps.answers import read_body, read_events, retry_after, send
from data_plane.steps.base import MAX_ANSWER_BYTES, Clients, StepError
from pointsman.asgi import asgi
from pointsman.settings import Address
from pointsman.web import HttpServer
from tests.test_tool_call import clients as clients  # noqa: PLC0414 -- a fixture


@contextlib.asynccontextmanager
async def answering(clients: Clients, *pieces: bytes, encoding: str = "") -> AsyncIterator:
    """The response of a server that answers these pieces; its request is the last of `asked`."""

    async def answer(_request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return StreamingResponse(body(), headers={"content-encoding": encoding} if encoding else {})

    server = HttpServer(asgi(Starlette(routes=[Route("/", answer)])))
    await server.start(Address("127.0.0.1", 0))
    response = await send(clients, clients.http.build_request("GET", f"http://{server.address}/"), "it", retryable=True)
    try:
        yield response
    finally:
        await response.aclose()
        await server.stop()


async def body_of(clients: Clients, *pieces: bytes, encoding: str = "") -> bytes:
    async with answering(clients, *pieces, encoding=encoding) as response:
        return await read_body(response, "it", retryable=True)


async def events_of(clients: Clients, *pieces: bytes, encoding: str = "") -> list[bytes]:
    async with answering(clients, *pieces, encoding=encoding) as response:
        return [data async for data in read_events(response, "it")]


def split(packed: bytes, size: int = 7) -> list[bytes]:
    return [packed[at : at + size] for at in range(0, len(packed), size)]


TEXT = b"All that was said. " * 50
PACKED = gzip.compress(TEXT)


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_packed_answers_are_unpacked_however_they_are_cut(clients, size):
    assert await body_of(clients, *split(PACKED, size), encoding="gzip") == TEXT
    assert await body_of(clients, *split(zlib.compress(TEXT), size), encoding="deflate") == TEXT
    members = gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])
    assert await body_of(clients, *split(members, size), encoding="gzip") == TEXT
    assert await body_of(clients, *split(TEXT, size), encoding="identity") == TEXT
    assert await body_of(clients, encoding="gzip") == b""


async def test_a_small_answer_that_unpacks_to_a_large_one_is_refused_and_not_unpacked(clients):
    bomb = gzip.compress(b"\0" * 50_000_000, 9)
    assert len(bomb) < 50_000
    for packed in (bomb, gzip.compress(b"\0" * MAX_ANSWER_BYTES) + bomb):
        with pytest.raises(StepError, match=f"it answered more than {MAX_ANSWER_BYTES} bytes"):
            await body_of(clients, packed, encoding="gzip")
    largest = gzip.compress(b"\0" * MAX_ANSWER_BYTES)
    assert len(await body_of(clients, largest, encoding="gzip")) == MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("packed", "encoding", "says", "retryable"),
    [
        (PACKED[:-9], "gzip", "the answer was cut: its gzip has no end", True),
        (PACKED + PACKED[:9], "gzip", "the answer was cut: its gzip has no end", True),
        (b"not packed at all", "gzip", "answered gzip that is broken", False),
        (TEXT, "br", "in the encoding 'br', and was asked for gzip or none", False),
    ],
    ids=["cut", "second member cut", "not gzip", "another encoding"],
)
async def test_what_cannot_be_unpacked_is_told(clients, packed, encoding, says, retryable):
    with pytest.raises(StepError, match=says) as failed:
        await body_of(clients, packed, encoding=encoding)
    assert failed.value.retryable is retryable


async def test_events_are_events_wherever_a_piece_ends_and_however_lines_do(clients):
    text = b"\xef\xbb\xbfdata: one\n\n: a comment\n\nevent: more\ndata:two\nid: 2\ndata:  three\n\n\ndata:\n\nretry: 5\n\ndata: the rest"
    for ending in (b"\n", b"\r\n"):
        written = text.replace(b"\n", ending)
        for size in (1, 2, 3, 5, 11, 500):
            assert await events_of(clients, *split(written, size)) == [b"one", b"two\n  three", b"the rest"]
        assert await events_of(clients, *split(gzip.compress(written)), encoding="gzip") == [b"one", b"two\n  three", b"the rest"]


async def test_a_stream_may_be_long_and_an_event_may_not(clients):
    line = b"data:" + b"x" * 1_000_000 + b"\n"
    assert len(await events_of(clients, *[line + b"\n"] * 6)) == 6
    for pieces in ([line] * 6, [b"x" * 1_000_000] * 6):
        with pytest.raises(StepError, match=f"an event of more than {MAX_ANSWER_BYTES} bytes"):
            await events_of(clients, *pieces)


async def test_a_byte_order_mark_is_no_part_of_an_answer(clients):
    assert await body_of(clients, b"\xef\xbb", b"\xbf{}") == b"{}"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("-7", None),
        ("nan", None),
        ("1e999", None),
        ("soon", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(asked, seconds):
    assert retry_after(httpx2.Response(429, headers={"retry-after": asked})) == seconds


@pytest.mark.parametrize("ending", ["GMT", "-0000"])
def test_retry_after_as_a_date_is_counted_from_now(ending):
    at = datetime.now(UTC) + timedelta(minutes=2)
    asked = httpx2.Response(429, headers={"retry-after": at.strftime(f"%a, %d %b %Y %H:%M:%S {ending}")})
    assert 110 < retry_after(asked) <= 120
