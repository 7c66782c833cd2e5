"""The tools of the tests do what they claim: the waiting, and the proxy with its faults."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tests.eventually import eventually
from tests.proxy import Proxy


@pytest.fixture
async def echo():
    """host:port of a server that sends back what it is sent."""

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


@contextlib.asynccontextmanager
async def connection(proxy):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def asked(reader, writer, data=b"hello"):
    writer.write(data)
    return await asyncio.wait_for(reader.read(1000), 5)


async def test_it_forwards_and_survives_a_restart_on_the_same_port(echo):
    async with Proxy(echo) as proxy:
        port = proxy.port
        async with connection(proxy) as (reader, writer):
            assert await asked(reader, writer) == b"hello"
            await proxy.stop()
            with contextlib.suppress(ConnectionResetError):
                assert await asked(reader, writer) == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.restart()
        assert proxy.port == port
        async with connection(proxy) as (reader, writer):
            assert await asked(reader, writer) == b"hello"


async def test_deaf_it_swallows_without_closing(echo):
    async with Proxy(echo) as proxy, connection(proxy) as (reader, writer):
        assert await asked(reader, writer) == b"hello"
        proxy.deaf = True
        writer.write(b"lost")
        done, pending = await asyncio.wait([asyncio.create_task(reader.read(10))], timeout=0.2)
        assert not done
        for task in pending:
            task.cancel()
        proxy.deaf = False
        assert await asked(reader, writer, b"heard") == b"heard"


async def test_slow_it_holds_back(echo):
    async with Proxy(echo) as proxy, connection(proxy) as (reader, writer):
        proxy.delay_seconds = 0.1
        started = time.monotonic()
        assert await asked(reader, writer) == b"hello"
        assert time.monotonic() - started >= 0.2


async def test_cut_it_stops_after_so_many_bytes(echo):
    async with Proxy(echo) as proxy, connection(proxy) as (reader, writer):
        proxy.cut_after_bytes = 7
        assert await asked(reader, writer, b"01234") == b"01234"
        got = b""
        writer.write(b"56789")
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.wait_for(reader.read(1000), 5):
                got += data
        assert got in (b"56", b"")


async def test_eventually_gives_the_value_or_says_what_it_was():
    values = iter([0, "", "there"])
    assert await eventually(lambda: next(values)) == "there"
    with pytest.raises(AssertionError, match=r"not so within 0\.1 s; the last time it was \[\]"):
        await eventually(list, 0.1)

    async def fails():
        raise AssertionError("not yet")

    with pytest.raises(AssertionError, match="not yet"):
        await eventually(fails, 0.1)
