"""HTTP/1.1 where it goes wrong: refusals, what comes too late, callers who do not read, the end of connections and of servers."""

from __future__ import annotations

import asyncio
import json

import pytest

from pointsman import http1
from pointsman.http1 import Connection
from pointsman.shared import Shared
from tests.eventually import eventually
from tests.test_http1 import GET, LAST, TEXT, answer_of, connected, says, serving, told


class Wire(asyncio.Transport):
    """What a connection does with it."""

    def __init__(self):
        super().__init__()
        self.written, self.unread, self.is_aborted, self._is_closing = b"", 0, False, False

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return self.unread

    def can_write_eof(self):
        return False

    def is_closing(self):
        return self._is_closing

    def close(self):
        self._is_closing = True

    def abort(self):
        self.is_aborted = self._is_closing = True

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


def wired(handler):
    """A connection on such a wire."""
    connection, wire = Connection(Shared(handler)), Wire()
    connection.connection_made(wire)
    return connection, wire


async def test_what_is_refused_is_told_after_the_answers_before_it():
    async with serving(says) as server:
        for bad in (b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX"):
            for parts in ([GET + GET + bad], [GET, GET, *(bytes([byte]) for byte in bad)]):
                found = await told(server, *parts)
                assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:4]] == [b"200", b"200", b"400"]
                assert json.loads(found.rpartition(b"\r\n\r\n")[2])["error"] == "INVALID_FIELD"
        # After the last request nothing is asked.
        assert (await told(server, LAST + b"nonsense")).endswith(b"GET /? ")


async def test_a_refusal_is_read_whatever_is_sent_after_it():
    async with serving(says) as server:
        bad = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nXX\r\n"
        for _ in range(10):
            found = await told(server, bad + b"x" * 3_000_000)
            assert found.startswith(b"HTTP/1.1 400 ")
            assert b"INVALID_FIELD" in found


async def test_a_last_answer_is_read_though_the_body_is_still_sent():
    async def refuses(exchange):
        exchange.answer(403, TEXT, b"no")

    async with serving(refuses) as server:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3000000\r\n\r\n"
        for _ in range(10):
            assert (await told(server, head, b"x" * 3_000_000)).endswith(b"\r\n\r\nno")


async def test_a_request_that_was_refused_or_left_does_not_run():
    ran = []

    async def handler(exchange):
        ran.append(exchange)

    connection, wire = wired(handler)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nXX")
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    connection, _ = wired(handler)
    connection.data_received(GET)
    connection.connection_lost(None)
    await eventually(lambda: connection._running is None)
    assert not ran


async def test_requests_of_who_does_not_read_the_answers_wait():
    answered = []

    async def large(exchange):
        answered.append(exchange.path)
        exchange.answer(200, TEXT, b"x" * 1_000_000)

    async with serving(large) as server, connected(server) as (reader, writer):
        reader._transport.pause_reading()
        for _ in range(20):
            writer.write(GET * 20)
            await writer.drain()
        await eventually(lambda: any(connection.writable is not None for connection in server._shared.connections))
        writer.write(GET * 20)
        # What another caller is told comes after what would be answered meanwhile.
        async with connected(server) as (other, other_writer):
            for _ in range(20):
                other_writer.write(GET)
                await answer_of(other)
        assert len(answered) < 20 + 20
        reader._transport.resume_reading()
        for _ in range(30):
            assert len((await answer_of(reader))[1]) == 1_000_000


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: a\r\n", b"Host: a\r\nHost: b\r\n"])
async def test_one_host_is_named(hosts):
    async with serving(says) as server:
        found = await told(server, b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")
        assert found.startswith(b"HTTP/1.1 400 ")
        assert json.loads(found.partition(b"\r\n\r\n")[2])["details"]["field"] == "Host"


@pytest.mark.parametrize("line", [b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n"])
async def test_of_another_version_one_request_is_answered_without_chunks(line):
    async def streams(exchange):
        exchange.start(200, TEXT)
        await exchange.write(b"one")
        exchange.end()

    async with serving(streams) as server:
        found = await told(server, line + line)
        assert found.startswith(b"HTTP/1.1 200 OK")
        assert found.endswith(b"connection: close\r\n\r\none")


async def test_who_sends_its_body_at_once_is_not_told_to():
    async with serving(says) as server, connected(server) as (reader, writer):
        for body in (b"", b"hi"):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head, found = await answer_of(reader)
            assert b"connection: close" not in head
            assert found == b"POST /? " + body
    async with serving(says) as server, connected(server) as (reader, writer):
        # HTTP/1.0 does not know such an answer.
        writer.write(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await eventually(lambda: any(connection._running is not None for connection in server._shared.connections))
        writer.write(b"hi")
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 OK")


async def test_an_answer_without_a_body_has_none_bit_by_bit_either():
    async def nothing(exchange):
        exchange.start(204, b"")
        exchange.end()

    async with serving(nothing) as server:
        found = await told(server, LAST)
        assert b"transfer-encoding" not in found
        assert found.endswith(b"connection: close\r\n\r\n")


async def test_a_body_is_not_counted_as_a_head():
    connection, wire = wired(says)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Le")
    connection.data_received(b"ngth: 100000\r\n\r\n" + b"x" * 100_000 + b"GET / HT")
    connection.data_received(b"TP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\n")
    for _ in range(5):
        connection.data_received(b"x" * 0x8000 + b"\r\n8000\r\n")
    await eventually(lambda: connection._running is not None and b"200 OK" in wire.written)
    assert b"TOO_LARGE" not in wire.written
    # What a chunk says of itself is.
    connection.data_received(b"x" * 0x8000 + b"\r\n1;")
    connection.data_received(b"x" * (http1.MAX_HEAD_BYTES + 1))
    assert b"TOO_LARGE" in wire.written


async def test_each_request_has_its_own_time(monkeypatch):
    connection, wire = wired(says)
    monkeypatch.setattr(http1, "HEAD_SECONDS", 1)
    connection.data_received(b"GET / HTTP/1.1\r\n")
    monkeypatch.setattr(http1, "HEAD_SECONDS", 100)
    connection.data_received(b"Host: a\r\n\r\nGET /")
    await eventually(lambda: connection._running is None)
    connection.expire(connection.loop.time() + 50)
    assert b"did not come whole" not in wire.written
    connection.expire(connection.loop.time() + 101)
    assert b"did not come whole" in wire.written


async def test_a_body_that_was_not_let_in_is_not_late(monkeypatch):
    go = asyncio.Event()

    async def waits(exchange):
        await go.wait()
        await says(exchange)

    connection, wire = wired(waits)
    monkeypatch.setattr(http1, "BODY_SECONDS", 1)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 99_999)
    connection.expire(connection.loop.time() + 50)
    monkeypatch.setattr(http1, "BODY_SECONDS", 100)
    go.set()
    await eventually(lambda: not connection._is_paused)
    connection.expire(connection.loop.time() + 50)
    assert wire.written == b""
    connection.data_received(b"x")
    await eventually(lambda: b"200 OK" in wire.written)


async def test_who_reads_slowly_is_not_who_does_not_read():
    connection, wire = wired(says)
    wire.unread = 4_000_000
    connection.pause_writing()
    for _ in range(3):
        wire.unread -= 1
        connection.expire(connection.loop.time() + http1.UNREAD_SECONDS + 1)
        assert not wire.is_aborted
    connection.expire(connection.loop.time() + http1.UNREAD_SECONDS + 1)
    assert wire.is_aborted


async def test_a_connection_ends_though_its_last_bytes_are_never_read():
    connection, wire = wired(says)
    connection.data_received(GET)
    await eventually(lambda: b"200 OK" in wire.written)
    # Too few for the transport to say that they pile up.
    wire.unread = 100
    connection.expire(connection.loop.time() + http1.KEEP_ALIVE_SECONDS + 1)
    assert wire.is_closing()
    assert not wire.is_aborted
    connection.expire(connection.loop.time() + http1.UNREAD_SECONDS + 1)
    assert wire.is_aborted


async def test_what_comes_after_the_end_asks_for_nothing():
    connection, wire = wired(says)
    connection.data_received(LAST)
    await eventually(wire.is_closing)
    told_before = wire.written
    # Under TLS more may come after it was closed.
    connection.data_received(GET)
    assert connection._running is None
    assert wire.written == told_before


async def test_a_server_that_stops_takes_no_connection_that_was_on_its_way():
    shared, wire = Shared(says), Wire()
    shared.is_stopping = True
    Connection(shared).connection_made(wire)
    assert wire.is_closing()


@pytest.mark.parametrize("turns", [0, 2])
async def test_a_server_that_stops_ends_what_has_hardly_begun_and_only_once(turns):
    cancelled, lost, ended = [], asyncio.Event(), asyncio.Event()

    async def cleans_up(exchange):
        exchange.on_gone = exchange.task.cancel
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(exchange)
            # A second time would cut this short.
            await lost.wait()
            ended.set()

    connection, wire = wired(cleans_up)
    connection.data_received(GET)
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.abort()
    assert wire.is_aborted
    if turns:
        await eventually(lambda: cancelled)
    connection.connection_lost(None)
    lost.set()
    async with asyncio.timeout(10):
        await connection._shared.are_gone()
    assert ended.is_set() == bool(turns)


async def test_all_who_wait_for_the_caller_to_go_are_told():
    told_so = []

    async def handler(exchange):
        await asyncio.gather(exchange.until_gone(), exchange.until_gone())
        told_so.append(exchange)

    connection, _ = wired(handler)
    connection.data_received(GET)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connection.connection_lost(None)
    async with asyncio.timeout(10):
        await connection._shared.are_gone()
    assert told_so
