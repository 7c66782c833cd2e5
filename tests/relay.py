"""Stands between a gateway and its control plane and knows the messages of their stream: holds them, or cuts it between any two of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import gateways_pb2_grpc
from pointsman.v1.executions_pb2 import ReportExecutionsRequest, ReportExecutionsResponse
from tests.clients import OWN_CONNECTION

BEATS = ("heartbeat",)


class Relay(gateways_pb2_grpc.GatewayServiceServicer):
    """Passes everything on to the control plane at `upstream`.

    `passed` names what went either way, but for what keeps a stream alive; `cut_after` n: the streams end after the next n of these,
    once; `held` names kinds that are not passed on, nor what comes after them on their way.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.address = ""
        self.passed: list[str] = []
        self.cut_after: int | None = None
        self.held: set[str] = set()
        self.holding = asyncio.Event()
        """Set once something is held."""
        self._cut = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listens until the end."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        gateways_pb2_grpc.add_GatewayServiceServicer_to_server(self, server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    async def Sync(self, requests: AsyncIterator[pb.SyncRequest], context: Any) -> AsyncIterator[pb.SyncResponse]:
        cut = self._cut
        down: asyncio.Queue[pb.SyncResponse | None] = asyncio.Queue()
        async with grpc.aio.insecure_channel(self._upstream, OWN_CONNECTION) as channel:
            call = gateways_pb2_grpc.GatewayServiceStub(channel).Sync()
            work = [
                asyncio.create_task(self._up(requests, call)),
                asyncio.create_task(self._down(call, down)),
                asyncio.create_task(cut.wait()),
            ]
            for task in work:
                task.add_done_callback(lambda _: down.put_nowait(None))
            try:
                while (message := await down.get()) is not None:
                    yield message
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def _up(self, requests: AsyncIterator[pb.SyncRequest], call: Any) -> None:
        async for message in requests:
            await self._pass(message.WhichOneof("kind"))
            await call.write(message)

    async def _down(self, call: Any, down: asyncio.Queue[pb.SyncResponse | None]) -> None:
        async for message in call:
            beat = message.HasField("update") and not (message.update.bindings or message.update.synced)
            await self._pass("heartbeat" if beat else message.WhichOneof("kind"))
            down.put_nowait(message)

    async def _pass(self, kind: str | None) -> None:
        if kind in self.held:
            self.holding.set()
            await asyncio.Event().wait()
        if kind in BEATS:
            return
        if self.cut_after == 0:
            self.cut_after = None
            cut, self._cut = self._cut, asyncio.Event()
            cut.set()
            await asyncio.Event().wait()
        if self.cut_after is not None:
            self.cut_after -= 1
        self.passed.append(str(kind))

    async def FetchSnapshot(self, request: pb.FetchSnapshotRequest, _context: Any) -> AsyncIterator[pb.FetchSnapshotResponse]:
        async with grpc.aio.insecure_channel(self._upstream, OWN_CONNECTION) as channel:
            async for message in gateways_pb2_grpc.GatewayServiceStub(channel).FetchSnapshot(request):
                yield message

    async def ReportExecutions(self, request: ReportExecutionsRequest, _context: Any) -> ReportExecutionsResponse:
        async with grpc.aio.insecure_channel(self._upstream, OWN_CONNECTION) as channel:
            return await gateways_pb2_grpc.GatewayServiceStub(channel).ReportExecutions(request)
