"""HTTP/1.1 as both servers speak it, byte by byte on real sockets: what a handler sees, and what its caller gets."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from pointsman import http1
from pointsman.asgi import asgi
from pointsman.exchange import HungUpError, head_of
from pointsman.http1 import Connection, Shared
from pointsman.settings import Address
from pointsman.web import HttpServer
from tests.eventually import eventually

TEXT = head_of([(b"content-type", b"text/plain")])
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(handler):
    server = HttpServer(handler)
    await server.start(Address("127.0.0.1", 0))
    try:
        yield server
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def connected(server):
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def told(server, *parts: bytes) -> bytes:
    """Everything that comes until the server closes."""
    async with connected(server) as (reader, writer), asyncio.timeout(10):
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read(-1)


async def answer_of(reader, *, is_head: bool = False) -> tuple[bytes, bytes]:
    """Head and body of one answer that tells its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
    return head, b"" if is_head else await reader.readexactly(length)


async def says(exchange):
    """What was asked, as text."""
    body = b""
    while part := await exchange.read():
        body += part
    exchange.answer(200, TEXT, b"%s %s?%s %s" % (exchange.method.encode(), exchange.path.encode(), exchange.query, body))


async def test_requests_on_one_connection_are_answered_in_turn():
    async with serving(says) as server, connected(server) as (reader, writer):
        for number in range(3):
            writer.write(b"POST /a%%20b/%d?q=%%20 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" % number)
            head, body = await answer_of(reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
            assert b"connection: close" not in head
            assert body == b"POST /a b/%d?q=%%20 hi" % number


async def test_requests_that_come_at_once_are_answered_in_their_order():
    async with serving(says) as server:
        asked = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5))
        found = await told(server, asked + LAST)
        bodies = [part.partition(b"HTTP/1.1")[0] for part in found.split(b"\r\n\r\n")[1:]]
        assert bodies == [*(b"GET /%d? " % number for number in range(5)), b"GET /? "]
        assert found.count(b"connection: close") == 1


async def test_a_chunked_body_comes_whole_and_what_stands_after_it_is_no_header():
    seen = []

    async def handler(exchange):
        await says(exchange)
        seen.extend(exchange.headers)

    async with serving(handler) as server:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        found = await told(server, head, b"2\r\nab\r\n", b"3\r\ncde\r\n0\r\nX-App: other\r\n\r\n")
        assert found.endswith(b"POST /? abcde")
        assert b"x-app" not in dict(seen)


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://other/where?q", b"/where?q"), (b"http://other", b"/?"), (b"*", b"*?"), (b"a:1", None)]
)
async def test_what_is_asked_for_is_a_path(target, path):
    async with serving(says) as server:
        found = await told(server, b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
        if path is None:
            assert found.startswith(b"HTTP/1.1 400 ")
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"] == "INVALID_FIELD"
        else:
            assert found.endswith(b"GET " + path + b" ")


async def test_an_answer_to_head_has_the_length_and_no_body():
    async with serving(says) as server, connected(server) as (reader, writer):
        writer.write(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        head, _ = await answer_of(reader, is_head=True)
        assert b"content-length: 8\r\n" in head
        assert (await answer_of(reader))[1] == b"GET /? "


async def test_http_1_0_gets_its_answer_and_the_end():
    async def streams(exchange):
        exchange.start(200, TEXT)
        await exchange.write(b"one ")
        await exchange.write(b"two")
        exchange.end()

    old = b"GET / HTTP/1.0\r\n\r\n"
    async with serving(says) as server:
        assert (await told(server, old)).endswith(b"\r\n\r\nGET /? ")
    async with serving(streams) as server:
        found = await told(server, old)
        assert found.endswith(b"\r\n\r\none two")
        assert b"chunked" not in found
        assert (await told(server, LAST)).endswith(b"\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_a_body_that_waits_to_be_asked_for():
    async def refuses(exchange):
        exchange.answer(403, TEXT, b"no")

    expecting = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with serving(says) as server, connected(server) as (reader, writer):
        writer.write(expecting)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await answer_of(reader))[1] == b"POST /? hi"
    async with serving(refuses) as server:
        # Nobody knows whether the body comes now, so the connection ends.
        found = await told(server, expecting)
        assert found.startswith(b"HTTP/1.1 403 ")
        assert b"connection: close" in found


async def test_who_asks_for_another_protocol_is_answered_in_this_one():
    async with serving(says) as server:
        upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        found = await told(server, upgrade)
        assert found.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in found


async def test_an_answer_may_come_before_the_body_and_the_next_request_after_it():
    async def answers_at_once(exchange):
        exchange.answer(200, TEXT, exchange.path.encode())

    async with serving(answers_at_once) as server, connected(server) as (reader, writer):
        writer.write(b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
        assert (await answer_of(reader))[1] == b"/first"
        writer.write(b"x" * 300_000 + b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await answer_of(reader))[1] == b"/second"


async def test_a_body_that_nobody_reads_is_not_taken():
    go = asyncio.Event()

    async def waits(exchange):
        await go.wait()
        await says(exchange)

    size = 50_000_000
    async with serving(waits) as server, connected(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await eventually(lambda: server.connections == 1)
        go.set()
        assert len((await answer_of(reader))[1]) == size + len(b"POST /? ")


async def test_who_hangs_up_is_noticed():
    gone, running = [], asyncio.Event()

    async def handler(exchange):
        exchange.on_gone = exchange.task.cancel
        running.set()
        try:
            await (exchange.read() if exchange.path == "/read" else asyncio.Event().wait())
        except HungUpError:
            gone.append("hung up")
            raise
        except asyncio.CancelledError:
            gone.append("cancelled")
            raise

    async with serving(handler) as server:
        for head in (GET, b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"):
            running.clear()
            async with connected(server) as (_, writer):
                writer.write(head)
                await running.wait()
            await eventually(lambda: server.connections == 0)
        assert gone[0] == "cancelled"
        assert len(gone) == 2


async def test_what_a_handler_raises_is_internal_and_what_it_began_has_no_end(capsys):
    async def fails(exchange):
        raise RuntimeError("with a secret in it")

    async def breaks_off(exchange):
        exchange.start(200, TEXT)
        await exchange.write(b"half")
        raise RuntimeError("in the midst")

    async def forgets(exchange):
        exchange.start(200, TEXT)
        await exchange.write(b"half")

    async with serving(fails) as server:
        found = await told(server, LAST)
        told_error = json.loads(found.partition(b"\r\n\r\n")[2])
        assert (told_error["error"], told_error["status_code"]) == ("INTERNAL", 500)
        assert b"secret" not in found
        # The log has more, under the same id.
        assert told_error["details"]["request_id"] in "".join(capsys.readouterr())
    for handler in (breaks_off, forgets):
        async with serving(handler) as server, connected(server) as (reader, writer):
            writer.write(GET)
            found = b""
            with contextlib.suppress(ConnectionResetError):
                while part := await reader.read(65536):
                    found += part
            assert b"0\r\n\r\n" not in found


async def test_an_answer_is_as_long_as_it_says():
    async def too_long(exchange):
        exchange.start(200, TEXT, length=3)
        await exchange.write(b"abc")
        with pytest.raises(ValueError, match="longer than it said"):
            exchange.push(b"d")
        exchange.end()

    async def too_short(exchange):
        exchange.start(200, TEXT, length=9)
        await exchange.write(b"abc")
        exchange.end()

    async with serving(too_long) as server:
        assert (await told(server, LAST)).endswith(b"\r\n\r\nabc")
    async with serving(too_short) as server:
        # The next answer must not be taken for the rest.
        assert (await told(server, GET + GET)).endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("value", [b"a\r\nx-other: b", b"a\nb", b"a\rb", b"a\0"])
def test_no_header_can_become_two(value):
    with pytest.raises(ValueError, match="line break"):
        head_of([(b"x-app", value)])


async def test_a_kept_connection_ends_when_nothing_is_asked_for_long(monkeypatch):
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 0.3)
    async with serving(says) as server, connected(server) as (reader, writer):
        writer.write(GET)
        await answer_of(reader)
        async with asyncio.timeout(10):
            assert await reader.read(1) == b""


async def test_a_server_that_stops_lets_what_runs_end_and_says_that_it_is_the_last():
    go, running = asyncio.Event(), asyncio.Event()

    async def waits(exchange):
        if exchange.path == "/wait":
            running.set()
            await go.wait()
        await says(exchange)

    async with serving(waits) as server, connected(server) as (reader, writer), connected(server) as (idle, idle_writer):
        idle_writer.write(GET)
        await answer_of(idle)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await running.wait()
        stopping = asyncio.create_task(server.stop(20))
        assert await idle.read(1) == b""
        go.set()
        head, body = await answer_of(reader)
        assert body == b"GET /wait? "
        assert b"connection: close" in head
        await stopping
        assert server.connections == 0


async def test_a_server_that_stops_ends_what_takes_longer_than_its_grace():
    running, ended = asyncio.Event(), asyncio.Event()

    async def waits(_exchange):
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(waits) as server, connected(server) as (_, writer):
        writer.write(GET)
        await running.wait()
        await server.stop(0.1)
        assert ended.is_set()


async def test_an_asgi_app_sees_who_goes():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["method"], scope["path"], scope["raw_path"], scope["query_string"], scope["http_version"]))
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-A", b"b")]})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        seen.append((await receive())["type"])

    async with serving(asgi(app)) as server, connected(server) as (reader, writer):
        writer.write(b"POST /a%20b?q HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        assert b"x-a: b\r\n" in await reader.readuntil(b"part\r\n")
        writer.transport.abort()
        await eventually(lambda: len(seen) == 3)
    assert seen == [("POST", "/a b", b"/a%20b", b"q", "1.1"), b"hi", "http.disconnect"]


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
            found = await told(server, bad, b"x" * 3_000_000)
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
    await eventually(lambda: connection.running is None)
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
async def test_of_another_version_one_request_is_answered(line):
    async with serving(says) as server:
        found = await told(server, line)
        assert found.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in found


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
        await eventually(lambda: any(connection.running is not None for connection in server._shared.connections))
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
    await eventually(lambda: connection.running is not None and b"200 OK" in wire.written)
    assert b"TOO_LARGE" not in wire.written
    # What a chunk says of itself is.
    connection.data_received(b"x" * 0x8000 + b"\r\n1;")
    connection.data_received(b"x" * http1.MAX_HEAD_BYTES)
    assert b"TOO_LARGE" in wire.written


async def test_each_request_has_its_own_time(monkeypatch):
    connection, wire = wired(says)
    monkeypatch.setattr(http1, "HEAD_SECONDS", 1)
    connection.data_received(b"GET / HTTP/1.1\r\n")
    monkeypatch.setattr(http1, "HEAD_SECONDS", 100)
    connection.data_received(b"Host: a\r\n\r\nGET /")
    await eventually(lambda: connection.running is None)
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
    assert connection.running is None
    assert wire.written == told_before


async def test_a_server_that_stops_takes_no_connection_that_was_on_its_way():
    shared, wire = Shared(says), Wire()
    shared.is_stopping = True
    Connection(shared).connection_made(wire)
    assert wire.is_closing()


@pytest.mark.parametrize("turns", [0, 2])
async def test_a_server_that_stops_ends_what_has_hardly_begun_and_only_once(turns):
    cancelled, ended = [], asyncio.Event()

    async def cleans_up(exchange):
        exchange.on_gone = exchange.task.cancel
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(exchange)
            # A second time would cut this short.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ended.set()

    connection, wire = wired(cleans_up)
    connection.data_received(GET)
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.abort()
    assert wire.is_aborted
    await eventually(lambda: cancelled)
    connection.connection_lost(None)
    async with asyncio.timeout(10):
        await connection._shared.are_gone()
    assert ended.is_set()


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
