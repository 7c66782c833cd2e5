"""The connections of the gateway's HTTP client, against real sockets: TLS, ends, cuts, idle connections that are over, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import httpcore2
import httpx2
import pytest

from data_plane.connections import MAX_UNREAD_BYTES, Connection
from data_plane.steps.base import Clients
from tests.certificates import Certificates
from tests.eventually import eventually

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SENT_BYTES = 32 * 1024 * 1024

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that handles each connection so."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            if not writer.is_closing():
                writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def http():
    clients = Clients.open()
    yield clients.http
    await clients.aclose()


@pytest.fixture(scope="module")
async def certificates(tmp_path_factory):
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    await made.make()
    return made


def server_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.path("server"), certificates.path("server-key"))
    return context


async def opened(port: int) -> Connection:
    return await Connection.open("127.0.0.1", port, 5.0, None, None)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_over_tls_to_the_end(certificates):
    async with serving(echo, server_context(certificates)) as port:
        plain = await opened(port)
        connection = await plain.start_tls(certificates.context(), "localhost", 5.0)
        assert connection.get_extra_info("ssl_object").version().startswith("TLS")
        sent = bytes(range(256)) * 1000
        await connection.write(sent)
        found = b""
        while len(found) < len(sent):
            found += await connection.read(65536)
        assert found == sent
        await connection.aclose()


async def test_a_certificate_of_somebody_else_is_refused(certificates):
    async with serving(echo, server_context(certificates)) as port:
        with pytest.raises(httpcore2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await (await opened(port)).start_tls(ssl.create_default_context(), "localhost", 5.0)
        with pytest.raises(httpcore2.ConnectError, match="elsewhere"):
            await (await opened(port)).start_tls(certificates.context(), "elsewhere.example", 5.0)


async def test_a_handshake_that_is_not_answered_ends_in_time():
    async with serving(lambda reader, _: reader.read()) as port:
        with pytest.raises(httpcore2.ConnectTimeout, match="TLS handshake did not end"):
            await (await opened(port)).start_tls(ssl.create_default_context(), "localhost", 0.05)


async def test_nobody_there_and_nothing_in_time():
    async with serving(lambda reader, _: reader.read()) as port:
        connection = await opened(port)
        with pytest.raises(httpcore2.ReadTimeout, match="nothing came in time"):
            await connection.read(10, 0.05)
        await connection.aclose()
    with pytest.raises(httpcore2.ConnectError, match=r"^Connection refused$"):
        await opened(port)


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_an_idle_connection_that_is_over_is_not_used_again(http, last_words):
    over, connections = asyncio.Event(), 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await over.wait()
        writer.write(last_words)
        writer.close()

    async with serving(once) as port:
        url = f"http://127.0.0.1:{port}/"
        assert (await http.get(url)).text == "ok"
        over.set()
        # The end has to arrive: until then nobody can know. A connection of ours sees it no later.
        await eventually(http._transport._pool.connections[0].has_expired)
        assert (await http.get(url)).text == "ok"
        assert connections == 2


async def test_a_connection_is_used_again(http):
    connections = 0

    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)

    async with serving(forever) as port:
        for _ in range(3):
            assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
    assert connections == 1


async def test_what_is_cut_is_an_error(http):
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:-1])
        await writer.drain()
        writer.transport.abort()

    async with serving(cut) as port:
        with pytest.raises(httpx2.TransportError):
            await http.get(f"http://127.0.0.1:{port}/")


async def test_a_sender_waits_for_a_reader_that_is_slow():
    sent = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < SENT_BYTES:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        writer.close()

    async with serving(pour) as port:
        connection = await opened(port)
        await eventually(lambda: len(connection._protocol._unread) > MAX_UNREAD_BYTES)
        # One more read of the event loop at most, of 256 KiB.
        assert len(connection._protocol._unread) <= MAX_UNREAD_BYTES + 256 * 1024
        assert not connection._protocol.transport.is_reading()
        assert sent < SENT_BYTES
        found = 0
        while piece := await connection.read(65536):
            found += len(piece)
        assert found == SENT_BYTES
        await connection.aclose()


async def test_a_writer_waits_for_a_peer_that_is_slow_and_is_told_when_it_goes():
    go = asyncio.Event()

    async def leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.transport.abort()

    async with serving(leave) as port:
        connection = await opened(port)
        writing = asyncio.create_task(connection.write(bytes(SENT_BYTES)))
        await eventually(lambda: connection._protocol._sending is not None)
        with pytest.raises(httpcore2.WriteTimeout):
            await connection.write(b"more", 0.05)
        assert not writing.done()
        go.set()
        await writing
        with pytest.raises(httpcore2.WriteError):
            await connection.write(b"more")
        with pytest.raises(httpcore2.ReadError):
            await connection.read(10)
