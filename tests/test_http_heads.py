"""What is no request, or too much of one, is refused in the one shape of errors, and its connection closed."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from pointsman.http1 import MAX_HEAD_BYTES, MAX_PIPELINED
from pointsman.settings import Address
from pointsman.web import HttpServer


@pytest.fixture
async def held():
    """A server whose answers wait for the event."""
    go = asyncio.Event()

    async def handler(exchange):
        await go.wait()
        exchange.answer(200, b"", b"ok")

    server = HttpServer(handler)
    await server.start(Address("127.0.0.1", 0))
    yield server.address, go
    go.set()
    await server.stop(0)


async def answer(address, *parts: bytes) -> bytes:
    """Everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    found = b""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
        while data := await reader.read(65536):
            found += data
    writer.close()
    return found


def refusal(found: bytes) -> tuple[int, str, str]:
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    error = json.loads(body)
    assert set(error) == {"error", "message", "details", "status_code", "timestamp"}
    assert int(head.split()[1]) == error["status_code"]
    return error["status_code"], error["error"], error["message"]


@pytest.mark.parametrize(
    "junk",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_what_is_no_http_is_refused_in_words(held, junk):
    status, reason, message = refusal(await answer(held[0], junk))
    assert (status, reason) == (400, "INVALID_FIELD")
    assert "not HTTP/1.1" in message


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: a\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n"],
    ],
)
async def test_a_head_that_is_too_large_is_refused(held, parts):
    status, reason, message = refusal(await answer(held[0], *parts))
    assert (status, reason) == (413, "TOO_LARGE")
    assert f"more than {MAX_HEAD_BYTES} bytes" in message


async def test_a_head_without_an_end_is_cut_off(held):
    address, _ = held
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.1\r\nA: ")
    found = b""
    # Slowly enough that every part comes by itself.
    for _ in range(20):
        writer.write(b"a" * 10_000)
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                found += await reader.read(65536)
        if found:
            break
    assert refusal(found)[:2] == (413, "TOO_LARGE")
    writer.close()


async def test_a_head_of_a_fair_size_is_taken_in_any_parts(held):
    address, go = held
    go.set()
    head = b"GET /" + b"p" * 20_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: " + b"c" * 20_000 + b"\r\n\r\n"
    assert (await answer(address, head)).endswith(b"ok")
    assert (await answer(address, *(head[start : start + 997] for start in range(0, len(head), 997)))).endswith(b"ok")


async def test_of_many_requests_before_the_first_answer_the_last_is_refused(held):
    address, go = held
    go.set()
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = (await answer(address, one * (MAX_PIPELINED + 20))).split(b"HTTP/1.1 ")[1:]
    assert [found[:6] for found in answers[:-1]] == [b"200 OK"] * (MAX_PIPELINED + 1)
    assert refusal(b"HTTP/1.1 " + answers[-1])[:2] == (413, "TOO_LARGE")
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert (await answer(address, one * (MAX_PIPELINED - 1) + last)).count(b"200 OK") == MAX_PIPELINED


async def test_bodies_do_not_count(held):
    address, go = held
    go.set()
    chunks = b"".join(b"%x\r\n%s\r\n" % (1000, b"x" * 1000) for _ in range(200))
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: t\r\n\r\n"
    assert b"200 OK" in await answer(address, *(sent[start : start + 3001] for start in range(0, len(sent), 3001)))
