"""What strangers can take of a server, on real sockets: slow and endless senders, bombs, too many at once. Others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl

import grpc
import grpc.aio
import httpx2
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from pointsman import calls, http1, serving, serving_calls, web
from pointsman.asgi import asgi
from pointsman.calls import Calls
from pointsman.errors import RateLimited
from pointsman.serving import GrpcServer
from pointsman.settings import Address
from pointsman.tls import ServerTls, TlsFiles
from pointsman.tokens import new_secret, token_id_of
from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, deployments_pb2_grpc
from pointsman.web import HttpServer
from tests.clients import OWN_CONNECTION, refused
from tests.eventually import eventually
from tests.test_http_door import bare, door

__all__ = ["bare", "door"]
SERVICES = ["pointsman.v1.AppService", "pointsman.v1.DeploymentService"]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEAD = b"POST /read HTTP/1.1\r\nHost: here\r\n"


class Apps(apps_pb2_grpc.AppServiceServicer):
    """ListApps answers when it may."""

    def __init__(self):
        self.go, self.running = asyncio.Event(), 0
        self.go.set()

    async def ListApps(self, _request, _context):
        self.running += 1
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return apps_pb2.ListAppsResponse()


class Watching(deployments_pb2_grpc.DeploymentServiceServicer):
    """Says one thing, and the next when it may."""

    def __init__(self, go):
        self.go = go

    async def WatchBindings(self, _request, _context):
        yield deployments_pb2.WatchBindingsResponse()
        await self.go.wait()
        yield deployments_pb2.WatchBindingsResponse()


class Rpc:
    """A server, and calls to it."""

    def __init__(self, server, apps, channel):
        self.server, self.apps, self.channel = server, apps, channel
        self.stub = apps_pb2_grpc.AppServiceStub(channel)
        self.watches = deployments_pb2_grpc.DeploymentServiceStub(channel)

    def list(self, secret="", **more):
        metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
        return self.stub.ListApps(apps_pb2.ListAppsRequest(), metadata=metadata, **more)


@contextlib.asynccontextmanager
async def serving_grpc(**more):
    server, apps = GrpcServer(**more), Apps()
    apps_pb2_grpc.add_AppServiceServicer_to_server(apps, server.services)
    deployments_pb2_grpc.add_DeploymentServiceServicer_to_server(Watching(apps.go), server.services)
    await server.start(Address("127.0.0.1", 0), SERVICES)
    try:
        async with grpc.aio.insecure_channel(str(server.address), [*OWN_CONNECTION, ("grpc.max_send_message_length", -1)]) as channel:
            yield Rpc(server, apps, channel)
    finally:
        apps.go.set()
        await server.stop(0)


async def read_all(request):
    return PlainTextResponse(str(len(await request.body())))


async def large(_request: Request):
    async def parts():
        for _ in range(1000):
            yield b"x" * 65536

    return StreamingResponse(parts())


async def gone(_request, _error):
    return PlainTextResponse("")


async def quiet(request):
    async def parts():
        yield b"first\n"
        await request.app.state.go.wait()
        yield b"last\n"

    return StreamingResponse(parts())


@contextlib.asynccontextmanager
async def serving_http(**more):
    routes = [Route("/read", read_all, methods=["GET", "POST"]), Route("/large", large), Route("/quiet", quiet)]
    app = Starlette(routes=routes, exception_handlers={ClientDisconnect: gone})
    app.state.go = asyncio.Event()
    server = HttpServer(asgi(app), **more)
    await server.start(Address("127.0.0.1", 0))
    try:
        yield server, app
    finally:
        app.state.go.set()
        await server.stop(0)


async def until_closed(address, sent, context=None, *, wait_seconds=10.0):
    """What comes before the other side closes."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        writer.write(sent)
        async with asyncio.timeout(wait_seconds):
            return await reader.read(-1)
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def error_in(answer: bytes, status: int) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"connection: close" in head
    told = json.loads(body)
    assert set(told) == {"error", "message", "details", "status_code", "timestamp"}
    return told


async def is_served(server):
    async with httpx2.AsyncClient(trust_env=False) as http:
        return (await http.post(f"http://{server.address}/read", content=b"12345")).text == "5"


async def test_a_head_that_comes_too_slowly(monkeypatch):
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.3)
    async with serving_http() as (server, _):
        slow = asyncio.create_task(until_closed(server.address, HEAD))
        silent = asyncio.create_task(until_closed(server.address, b""))
        assert await is_served(server)
        told = error_in(await slow, 400)
        assert (told["error"], told["details"]["field"]) == ("INVALID_FIELD", "head")
        assert await silent == b""


async def test_a_body_that_comes_too_slowly(monkeypatch):
    monkeypatch.setattr(http1, "BODY_SECONDS", 0.3)
    async with serving_http() as (server, _):
        slow = asyncio.create_task(until_closed(server.address, HEAD + b"Content-Length: 100\r\n\r\nabc"))
        assert await is_served(server)
        told = error_in(await slow, 400)
        assert told["details"]["violations"][0]["field"] == "body"
        # Another request on the same connection has its own time.
        once = HEAD + b"Content-Length: 1\r\n\r\na"
        both = await until_closed(server.address, once + HEAD + b"Content-Length: 9\r\n\r\na")
        assert both.startswith(b"HTTP/1.1 200 OK")
        assert b"did not come whole within 0.3 s" in both


@pytest.mark.parametrize("ended", [True, False])
async def test_a_head_that_is_too_large(monkeypatch, ended):
    monkeypatch.setattr(http1, "MAX_HEAD_BYTES", 2000)
    async with serving_http() as (server, _):
        head = HEAD + b"".join(b"X-%d: %s\r\n" % (number, b"v" * 90) for number in range(40))
        told = error_in(await until_closed(server.address, head + (b"\r\n" if ended else b"")), 413)
        assert (told["error"], told["details"]["limit"]) == ("TOO_LARGE", "2000")
        # What is large is the body.
        large = HEAD + b"Connection: close\r\nContent-Length: 9000\r\n\r\n" + b"b" * 9000
        assert (await until_closed(server.address, large)).endswith(b"9000")


async def test_what_is_not_http():
    async with serving_http() as (server, _):
        for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", PREFACE):
            assert error_in(await until_closed(server.address, sent), 400)["error"] == "INVALID_FIELD"
        assert await is_served(server)


async def test_more_connections_than_there_may_be(monkeypatch):
    monkeypatch.setattr(http1, "MAX_CONNECTIONS", 2)
    async with serving_http() as (server, _):
        held = [await asyncio.open_connection(*server.address) for _ in range(2)]
        for _, writer in held:
            writer.write(HEAD + b"Content-Length: 1\r\n\r\na")
        assert [(await reader.read(15)) for reader, _ in held] == [b"HTTP/1.1 200 OK"] * 2
        told = error_in(await until_closed(server.address, b""), 429)
        assert (told["error"], told["details"]["limit"]) == ("RATE_LIMITED", "2")
        for _, writer in held:
            writer.close()
            await writer.wait_closed()

        await eventually(lambda: is_served(server))


async def test_who_does_not_read_is_hung_up_on_and_a_silent_stream_is_not(monkeypatch):
    monkeypatch.setattr(http1, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http1, "BODY_SECONDS", 0.3)
    async with serving_http() as (server, app), httpx2.AsyncClient(trust_env=False) as http:
        async with http.stream("GET", f"http://{server.address}/quiet") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "first"
            reader, writer = await asyncio.open_connection(*server.address)
            reader._transport.pause_reading()
            writer.write(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")

            async def hung_up():
                # The stream that is left is the quiet one.
                return server.connections == 1

            await eventually(lambda: server.connections == 2)
            await eventually(hung_up)
            app.state.go.set()
            assert await anext(lines) == "last"
        writer.transport.abort()


@pytest.fixture
def own_tls(tmp_path):
    authority = trustme.CA()
    found = authority.issue_cert("127.0.0.1")
    found.private_key_pem.write_to_path(tmp_path / "key.pem")
    found.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ServerTls(TlsFiles(tmp_path / "certificate.pem", tmp_path / "key.pem")), context


async def test_tls_handshakes_that_do_not_end(monkeypatch, own_tls):
    monkeypatch.setattr(web, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(serving, "HANDSHAKE_SECONDS", 0.3)
    tls, context = own_tls
    async with serving_http(tls=tls) as (server, _), serving_grpc(tls=tls) as rpc:
        hello = bytes.fromhex("160301")
        for address in (server.address, rpc.server.address):
            assert await until_closed(address, hello) == b""
        asked = HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\na"
        assert (await until_closed(server.address, asked, context)).startswith(b"HTTP/1.1 200 OK")


async def test_http2_connections_that_say_nothing(monkeypatch):
    monkeypatch.setattr(serving, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.5)
    async with serving_grpc() as rpc:
        rpc.apps.go.clear()
        watch = rpc.watches.WatchBindings(deployments_pb2.WatchBindingsRequest())
        await watch.read()
        for sent in (b"", PREFACE, PREFACE + EMPTY_SETTINGS):
            await until_closed(rpc.server.address, sent)
        rpc.apps.go.set()
        # The stream was as silent all the while.
        assert await watch.read() is not grpc.aio.EOF


async def test_messages_and_what_they_unpack_to(monkeypatch):
    monkeypatch.setattr(serving_calls, "MAX_MESSAGE_BYTES", 1000)
    monkeypatch.setattr(serving, "HARD_MESSAGE_BYTES", 100_000)
    async with serving_grpc() as rpc:
        call = rpc.channel.unary_unary("/pointsman.v1.AppService/ListApps")
        told = await refused(call(b"\0" * 1001))
        assert (told.code, told.reason, told.metadata["limit"]) == ("RESOURCE_EXHAUSTED", "TOO_LARGE", "1000")
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
            # gRPC itself says so, before anything of ours is asked.
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\0" * 50_000_000, compression=compression)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "ecompressed message larger than max" in error.value.details()
        await rpc.list()


async def test_metadata_that_is_too_large():
    async with serving_grpc() as rpc:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.stub.ListApps(apps_pb2.ListAppsRequest(), metadata=(("x", "v" * 2 * serving.MAX_METADATA_BYTES),))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await rpc.list()


async def test_calls_of_a_connection_beyond_its_streams_wait(monkeypatch):
    monkeypatch.setattr(serving, "MAX_STREAMS_OF_CONNECTION", 2)
    async with serving_grpc() as rpc:
        # From then on the caller knows how many there may be.
        await rpc.list()
        rpc.apps.go.clear()
        lists = [asyncio.ensure_future(rpc.list()) for _ in range(5)]
        await eventually(lambda: rpc.apps.running == 2)
        async with grpc.aio.insecure_channel(str(rpc.server.address), OWN_CONNECTION) as another:
            other = asyncio.ensure_future(apps_pb2_grpc.AppServiceStub(another).ListApps(apps_pb2.ListAppsRequest()))
            await eventually(lambda: rpc.apps.running == 3)
            assert not any(done.done() for done in lists)
            rpc.apps.go.set()
            await other
            ends = await asyncio.gather(*lists, return_exceptions=True)
        # gRPC may refuse one that takes the place of another before that is quite gone; it may be sent again.
        refusals = [end for end in ends if isinstance(end, BaseException)]
        assert len(refusals) < len(ends)
        assert {end.code() for end in refusals} <= {grpc.StatusCode.UNAVAILABLE}
        await rpc.list()


async def test_grpc_connections_beyond_their_number(monkeypatch):
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 2)
    async with serving_grpc() as rpc:
        await rpc.list()
        _, held = await asyncio.open_connection(*rpc.server.address)
        assert await until_closed(rpc.server.address, b"") == b""
        await rpc.list()
        held.transport.abort()


async def test_calls_of_a_token_and_of_all(monkeypatch):
    monkeypatch.setattr(calls.Calls.__init__, "__defaults__", (4, 2))
    first, second = new_secret(), new_secret()
    async with serving_grpc(uncounted=["/pointsman.v1.DeploymentService/WatchBindings"]) as rpc:
        rpc.apps.go.clear()
        running = [asyncio.ensure_future(rpc.list(first)) for _ in range(2)]
        await eventually(lambda: rpc.apps.running == 2)
        told = await refused(rpc.list(first))
        assert (told.code, told.reason, told.metadata["token_id"]) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", token_id_of(first))
        assert "RetryInfo" in told.kinds
        assert first[-20:] not in str(told)
        # What does not count for the token counts for all.
        watch = rpc.watches.WatchBindings(deployments_pb2.WatchBindingsRequest(), metadata=(("authorization", f"Bearer {first}"),))
        await watch.read()
        running.append(asyncio.ensure_future(rpc.list(second)))
        await eventually(lambda: rpc.apps.running == 3)
        told = await refused(rpc.list(second))
        assert (told.reason, told.metadata["limit"]) == ("RATE_LIMITED", "4")
        rpc.apps.go.set()
        await asyncio.gather(*running)
        watch.cancel()
        await eventually(lambda: rpc.server.calls._running == 0)
        assert not rpc.server.calls._by_token
        await rpc.list(first)


async def test_a_call_without_a_deadline_gets_one(monkeypatch):
    monkeypatch.setattr(serving_calls, "DEFAULT_DEADLINE_SECONDS", 0.2)
    async with serving_grpc() as rpc:
        rpc.apps.go.clear()
        watch = rpc.watches.WatchBindings(deployments_pb2.WatchBindingsRequest())
        own = asyncio.ensure_future(rpc.list(timeout=30))
        await watch.read()
        told = await refused(rpc.list())
        assert (told.code, told.reason, told.metadata["timeout"]) == ("DEADLINE_EXCEEDED", "STEP_TIMEOUT", "0.2s")
        assert not own.done()
        rpc.apps.go.set()
        await own
        assert await watch.read() is not grpc.aio.EOF


async def test_what_ended_is_counted_no_more():
    counted = Calls(of_all=2, of_token=1)
    counted.enter("a")
    with pytest.raises(RateLimited):
        counted.enter("a")
    counted.enter("b")
    with pytest.raises(RateLimited):
        counted.enter("")
    for token_id in "ab":
        counted.leave(token_id)
    assert (counted._running, counted._by_token) == (0, {})


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_an_encoded_body_is_not_unpacked(door, encoding):
    headers = {"X-App": "shop", "Content-Encoding": encoding}
    answer = await door.refused(400, "INVALID_INPUT", "POST", "/v1/trigger/echo", content=gzip.compress(b"{}"), headers=headers)
    assert encoding in answer.json()["message"]
