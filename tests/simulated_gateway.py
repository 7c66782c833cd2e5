"""A gateway that speaks the real Sync protocol and runs nothing, so that thousands fit in a process: for tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from data_plane.sync import backoff_seconds
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import gateways_pb2_grpc
from tests.eventually import eventually

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class SimulatedGateway:
    """One stream. `bindings` is what it was told, `history` every Update's revision, `flipped_at` when each arrived (monotonic).

    `verifiers` has the hashes of the tokens that count. It shows `token`, if there is one. With `fetch` it fetches and verifies what it
    is to prepare, and forgets the bytes.
    """

    def __init__(
        self,
        gateway_id: str,
        *,
        refuse: Callable[[str], str] = lambda _digest: "",
        apply: bool = True,
        fetch: bool = False,
        token: str = "",
        **hello: Any,
    ) -> None:
        self.gateway_id = gateway_id
        self.instance_id = str(uuid.uuid4())
        self.revision = 0
        self.store_id = ""
        self.bindings: dict[tuple[str, str], str] = {}
        self.verifiers: dict[str, bytes] = {}
        self.history: list[int] = []
        self.flipped_at: dict[int, float] = {}
        self.prepared: list[str] = []
        self.moved = False
        self.connected_now = False
        self.on_update: Callable[[pb.SyncResponse.Update], None] = lambda _update: None
        self._held: list[str] = []
        self._refuse = refuse
        self.apply = apply
        self._fetch = fetch
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._hello = hello

    @contextlib.asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[SimulatedGateway]:
        """A stream of its own connection, in sync with what the control plane had when this was called."""
        async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
            task = asyncio.create_task(self.run(channel))
            try:
                await eventually(lambda: task.done() or self.history, 30)
                if task.done():
                    task.result()
                yield self
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await task

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Speaks until the control plane ends the stream; raises what that ended it with."""
        hello = pb.SyncRequest.Hello(
            gateway_id=self.gateway_id,
            instance_id=self.instance_id,
            version="simulated",
            revision=self.revision,
            store_id=self.store_id,
            held_digests=self._held,
            **self._hello,
        )
        stub = gateways_pb2_grpc.GatewayServiceStub(channel)
        call = stub.Sync(metadata=self._metadata)
        await call.write(pb.SyncRequest(hello=hello))
        try:
            await self._converse(stub, call)
        finally:
            self.connected_now = False

    async def _converse(self, stub: gateways_pb2_grpc.GatewayServiceAsyncStub, call: Any) -> None:
        async for message in call:
            if self._fetch and message.HasField("prepare"):
                await self._fetch_all(stub, {target.digest for target in message.prepare.targets})
            answers = self._take(message)
            if message.HasField("prepare"):
                await self._before_answering()
            for answer in answers:
                await call.write(answer)

    async def _before_answering(self) -> None:
        """Called between a Prepare and its answer."""

    async def run_on(self, address: str) -> None:
        """Speaks, and comes back with a new connection after every failure as gateways do, until cancelled."""
        failures = 0
        while True:
            began = len(self.history)
            async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.run(channel)
            failures = failures + 1 if len(self.history) == began else 1
            await asyncio.sleep(backoff_seconds(failures, 1, random.uniform))

    async def _fetch_all(self, stub: gateways_pb2_grpc.GatewayServiceAsyncStub, digests: set[str]) -> None:
        for digest in digests - set(self._held):
            found = hashlib.sha256()
            async for chunk in stub.FetchSnapshot(pb.FetchSnapshotRequest(digest=digest), metadata=self._metadata):
                found.update(chunk.data)
            assert "sha256:" + found.hexdigest() == digest

    def _take(self, message: pb.SyncResponse) -> list[pb.SyncRequest]:
        match message.WhichOneof("kind"):
            case "welcome":
                self.store_id = message.welcome.store_id
            case "move":
                self.moved = True
            case "prepare":
                return self._prepare(message.prepare)
            case "update":
                return self._update(message.update)
        return []

    def _prepare(self, prepare: pb.SyncResponse.Prepare) -> list[pb.SyncRequest]:
        refused = [
            pb.SyncRequest.Rejection(app=t.app, environment=t.environment, digest=t.digest, reason=self._refuse(t.digest))
            for t in prepare.targets
            if self._refuse(t.digest)
        ]
        digests = [t.digest for t in prepare.targets if not self._refuse(t.digest)]
        self.prepared += digests
        self._held += digests
        held = pb.SyncRequest(held=pb.SyncRequest.Held(added=digests))
        return [held, pb.SyncRequest(prepared=pb.SyncRequest.Prepared(prepare_id=prepare.prepare_id, rejections=refused))]

    def _update(self, update: pb.SyncResponse.Update) -> list[pb.SyncRequest]:
        assert update.revision >= self.revision, f"went back from {self.revision} to {update.revision}"
        for binding in update.bindings:
            assert binding.revision > self.revision
            self.bindings[binding.app, binding.environment] = binding.release
        for told in update.tokens:
            if told.secret_hash:
                self.verifiers[told.token_id] = told.secret_hash
            else:
                self.verifiers.pop(told.token_id, None)
        if update.synced:
            self.connected_now = True
        self.flipped_at[update.revision] = time.monotonic()
        self.history.append(update.revision)
        self.on_update(update)
        if not self.apply:
            return []
        if update.revision == self.revision and not update.synced:
            return [pb.SyncRequest(heartbeat=pb.SyncRequest.Heartbeat())]
        self.revision = update.revision
        return [pb.SyncRequest(applied=pb.SyncRequest.Applied(revision=update.revision))]
