"""HTTP/1.1 as both servers speak it, byte by byte on real sockets: what a handler sees, and what its caller gets."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from pointsman import http1
from pointsman.asgi import asgi
from pointsman.exchange import HungUpError, head_of
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
