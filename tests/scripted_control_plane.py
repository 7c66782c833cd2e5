"""A control plane that says what a test tells it to, over a real connection: for tests of gateways, and of their faults.

async with ScriptedControlPlane().running() as plane:
    stream = await plane.stream()        # of a gateway that has said Hello and was welcomed
    await stream.update(7, ("shop", "production", "v1", digest), synced=True)
    assert (await stream.heard("applied")).revision == 7
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

from pointsman.v1 import deployments_pb2, executions_pb2, gateways_pb2_grpc, tokens_pb2
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1.config_pb2 import AppConfig
from tests.sample_apps import Config

CHUNK_BYTES = 1000
WAIT_SECONDS = 10.0
Told = tuple[str, str, str, str]
"""(app, environment, release, digest); an empty release: the binding is gone."""
Policies = dict[str, tuple[float, str]]
"""Environment -> (max_staleness in seconds, stale_action); 0 seconds: no limit."""


def snapshot_of(config: Config) -> tuple[str, bytes]:
    """(digest, bytes) as a control plane makes them."""
    data = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    return "sha256:" + hashlib.sha256(data).hexdigest(), data


class Ended(Exception):
    """The stream shall end so."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class ScriptedStream:
    """One gateway's stream. What it says is kept by kind, in order, until a test asks for it."""

    def __init__(self, hello: pb.SyncRequest.Hello) -> None:
        self.hello = hello
        self.order: list[str] = []
        self.over = asyncio.Event()
        self.outgoing: asyncio.Queue[pb.SyncResponse | Ended | None] = asyncio.Queue()
        self._said: dict[str, asyncio.Queue[Any]] = {}

    def took(self, message: pb.SyncRequest) -> None:
        kind = message.WhichOneof("kind") or ""
        self.order.append(kind)
        self._said.setdefault(kind, asyncio.Queue()).put_nowait(getattr(message, kind))

    async def heard(self, kind: str) -> Any:
        """The next of its messages of a kind."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._said.setdefault(kind, asyncio.Queue()).get()

    def welcome(self, store_id: str, heartbeat_seconds: float) -> None:
        found = pb.SyncResponse.Welcome(store_id=store_id)
        found.heartbeat_interval.FromTimedelta(timedelta(seconds=heartbeat_seconds))
        self.outgoing.put_nowait(pb.SyncResponse(welcome=found))

    def tell(
        self,
        revision: int,
        *told: Told,
        synced: bool = False,
        policies: Policies | None = None,
        tokens: Iterable[tokens_pb2.TokenVerifier] = (),
    ) -> None:
        """An Update; every binding is set at its revision."""
        bindings = [deployments_pb2.Binding(app=a, environment=e, release=r, digest=d, revision=revision) for a, e, r, d in told]
        update = pb.SyncResponse.Update(revision=revision, bindings=bindings, synced=synced, tokens=tokens)
        for environment, (seconds, action) in (policies or {}).items():
            policy = update.staleness_policies.add(environment=environment, stale_action=action)
            if seconds:
                policy.max_staleness.FromTimedelta(timedelta(seconds=seconds))
        self.outgoing.put_nowait(pb.SyncResponse(update=update))

    async def update(self, revision: int, *told: Told, synced: bool = False, policies: Policies | None = None) -> pb.SyncRequest.Applied:
        """An Update and its answer."""
        self.tell(revision, *told, synced=synced, policies=policies)
        return await self.applied(revision)

    async def applied(self, revision: int) -> pb.SyncRequest.Applied:
        """The first answer that has reached the revision."""
        while (found := await self.heard("applied")).revision < revision:
            pass
        return found

    async def prepare(self, prepare_id: str, *told: Told) -> pb.SyncRequest.Prepared:
        """A Prepare and its answer."""
        targets = [pb.SyncResponse.Prepare.Target(app=a, environment=e, release=r, digest=d) for a, e, r, d in told]
        self.outgoing.put_nowait(pb.SyncResponse(prepare=pb.SyncResponse.Prepare(prepare_id=prepare_id, targets=targets)))
        found = await self.heard("prepared")
        assert found.prepare_id == prepare_id
        return found

    def move(self, within_seconds: float) -> None:
        found = pb.SyncResponse.Move()
        found.within.FromTimedelta(timedelta(seconds=within_seconds))
        self.outgoing.put_nowait(pb.SyncResponse(move=found))

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """Ends it: well, or with a status."""
        self.outgoing.put_nowait(Ended(code, details) if code else None)


class ScriptedControlPlane(gateways_pb2_grpc.GatewayServiceServicer):
    """`snapshots` is what can be fetched; `faulty_fetch` may take the place of a fetch: called with the digest and how often it was asked for."""

    def __init__(self, *, store_id: str = "store-1", heartbeat_seconds: float = 5.0, welcoming: bool = True) -> None:
        self.store_id = store_id
        self.heartbeat_seconds = heartbeat_seconds
        self.welcoming = welcoming
        self.snapshots: dict[str, bytes] = {}
        self.fetches: Counter[str] = Counter()
        self.faulty_fetch: Callable[[str, int], Iterable[pb.FetchSnapshotResponse] | Ended | asyncio.Event | None] = (
            lambda _digest, _count: None
        )
        self.streams: list[ScriptedStream] = []
        self.address = ""
        self.shown: list[str] = []
        """The authorization of every call."""
        self.executions: dict[str, executions_pb2.Execution] = {}
        self.reports: list[executions_pb2.ReportExecutionsRequest] = []
        self.faulty_report: Callable[[executions_pb2.ReportExecutionsRequest], Ended | None] = lambda _request: None
        self._new: asyncio.Queue[ScriptedStream] = asyncio.Queue()

    def release(self, config: Config) -> str:
        """Makes a snapshot that can be fetched; its digest."""
        digest, data = snapshot_of(config)
        self.snapshots[digest] = data
        return digest

    @contextlib.asynccontextmanager
    async def running(self, address: str = "127.0.0.1:0") -> AsyncIterator[ScriptedControlPlane]:
        """Listens until the end; may be run again on the address it had."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        gateways_pb2_grpc.add_GatewayServiceServicer_to_server(self, server)
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    async def stream(self) -> ScriptedStream:
        """The next stream that a gateway opens, or has opened and no test has asked for."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._new.get()

    async def Sync(self, requests: AsyncIterator[pb.SyncRequest], context: Any) -> AsyncIterator[pb.SyncResponse]:
        self._note(context)
        messages = aiter(requests)
        stream = ScriptedStream((await anext(messages)).hello)
        self.streams.append(stream)
        self._new.put_nowait(stream)
        if self.welcoming:
            stream.welcome(self.store_id, self.heartbeat_seconds)
        reader = asyncio.create_task(self._read(messages, stream))
        try:
            while (message := await stream.outgoing.get()) is not None:
                if isinstance(message, Ended):
                    await context.abort(message.code, message.details)
                yield message
        finally:
            reader.cancel()
            stream.over.set()

    def _note(self, context: Any) -> None:
        self.shown += [value for key, value in context.invocation_metadata() if key == "authorization"]

    async def _read(self, messages: AsyncIterator[pb.SyncRequest], stream: ScriptedStream) -> None:
        async for message in messages:
            stream.took(message)
        stream.end()

    async def ReportExecutions(
        self, request: executions_pb2.ReportExecutionsRequest, context: Any
    ) -> executions_pb2.ReportExecutionsResponse:
        self._note(context)
        fault = self.faulty_report(request)
        if fault is not None:
            await context.abort(fault.code, fault.details)
        self.reports.append(request)
        known = len(self.executions)
        self.executions.update({execution.execution_id: execution for execution in request.executions})
        return executions_pb2.ReportExecutionsResponse(stored=len(self.executions) - known)

    async def FetchSnapshot(self, request: pb.FetchSnapshotRequest, context: Any) -> AsyncIterator[pb.FetchSnapshotResponse]:
        self._note(context)
        self.fetches[request.digest] += 1
        fault = self.faulty_fetch(request.digest, self.fetches[request.digest])
        if isinstance(fault, asyncio.Event):
            await fault.wait()
        elif isinstance(fault, Ended):
            await context.abort(fault.code, fault.details)
        elif fault is not None:
            for chunk in fault:
                yield chunk
            return
        data = self.snapshots.get(request.digest)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no release with digest {request.digest}.")
        for chunk in chunks(data):
            yield chunk


def chunks(data: bytes, *, size_bytes: int | None = None) -> list[pb.FetchSnapshotResponse]:
    """The bytes as a control plane sends them."""
    found = [pb.FetchSnapshotResponse(data=data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]
    found[0].size_bytes = len(data) if size_bytes is None else size_bytes
    return found
