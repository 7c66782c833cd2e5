"""The Sync stream: connect, resume, prepare, flip, acknowledge; again after every failure, with jittered backoff.

Nothing here is on the way of a trigger: with the control plane gone the gateway goes on with what it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from data_plane.holder import Holder
from data_plane.loaded import ReleaseUnusableError
from data_plane.table import Bound, Rejected
from pointsman.settings import Address
from pointsman.v1 import deployments_pb2, gateways_pb2_grpc
from pointsman.v1 import gateways_pb2 as pb

BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
CONNECT_SECONDS = 10.0
FETCH_SECONDS = 60.0
# A control plane that says nothing for so many of its heartbeats is gone, whatever TCP believes.
SILENT_HEARTBEATS = 3
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# The control plane tolerates a ping every 8 s; proxies that cut idle connections do so after 60 s or more.
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    # Connecting again is this module's business, jittered; gRPC's own backoff on top of it would only add to it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """What this gateway says of itself."""

    gateway_id: str
    instance_id: str
    version: str
    apps: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


class _SilentError(Exception):
    """The control plane said nothing for too long."""


class _MoveError(Exception):
    """The control plane asks to connect elsewhere, within so many seconds."""

    def __init__(self, within_seconds: float) -> None:
        super().__init__("asked to move")
        self.within_seconds = within_seconds


class Sync:
    """Keeps the holder in step with a control plane. `last_heard` is a time.monotonic(), None before the first word."""

    def __init__(
        self,
        holder: Holder,
        me: Me,
        control_planes: Sequence[Address],
        *,
        on_flip: Callable[[], None] = lambda: None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.connected = False
        self.last_heard: float | None = None
        self._holder = holder
        self._me = me
        self._addresses = itertools.cycle(control_planes)
        self._on_flip = on_flip
        self._jitter = jitter
        self._last_problem = ""

    async def run(self) -> None:
        """Runs until cancelled."""
        backoff = BACKOFF_SECONDS
        while True:
            address = next(self._addresses)
            began = time.monotonic()
            try:
                await self._converse(address)
                pause = self._jitter(0, BACKOFF_SECONDS)
            except _MoveError as move:
                log.info("the control plane asks to move", control_plane=str(address), within_seconds=move.within_seconds)
                pause = self._jitter(0, move.within_seconds)
            except (grpc.aio.AioRpcError, _SilentError, TimeoutError) as error:
                self._tell(address, error)
                if time.monotonic() - began > MAX_BACKOFF_SECONDS:
                    backoff = BACKOFF_SECONDS
                pause = self._jitter(backoff / 2, backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            finally:
                self.connected = False
            await asyncio.sleep(pause)

    def _tell(self, address: Address, error: Exception) -> None:
        """One line for each problem, not one for each attempt."""
        problem = (
            f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error) or "no answer in time"
        )
        if problem != self._last_problem:
            self._last_problem = problem
            log.warning("no connection to the control plane; serving what is loaded", control_plane=str(address), problem=problem)

    async def _converse(self, address: Address) -> None:
        async with grpc.aio.insecure_channel(str(address), options=CHANNEL_OPTIONS) as channel:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
            await _Conversation(self, self._holder, self._me, channel).run()

    def welcomed(self, address_store_id: str) -> None:
        """The stream is open, and belongs to our store."""
        self.connected = True
        self._last_problem = ""
        if not self._holder.table.store_id:
            self._holder.adopt(address_store_id)
        log.info("connected to the control plane", revision=self._holder.table.revision)

    def heard(self) -> None:
        """A sign of life."""
        self.last_heard = time.monotonic()

    def flipped(self) -> None:
        """The table has changed."""
        self._on_flip()


class _Conversation:
    """One stream, from Hello to its end."""

    def __init__(self, sync: Sync, holder: Holder, me: Me, channel: grpc.aio.Channel) -> None:
        self._sync = sync
        self._holder = holder
        self._me = me
        self._stub = gateways_pb2_grpc.GatewayServiceStub(channel)
        self._call = self._stub.Sync()
        self._writing = asyncio.Lock()
        self._told_held: set[str] = set()
        self._heartbeat_seconds = CONNECT_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            await self._hello()
            while (message := await self._next()) is not None:
                self._sync.heard()
                match message.WhichOneof("kind"):
                    case "welcome":
                        self._welcome(message.welcome)
                    case "prepare":
                        self._start(self._prepare(message.prepare))
                    case "update":
                        await self._update(message.update)
                    case "move":
                        raise _MoveError(message.move.within.ToTimedelta().total_seconds())
        finally:
            for task in self._tasks:
                task.cancel()
            self._call.cancel()

    async def _next(self) -> pb.SyncResponse | None:
        try:
            async with asyncio.timeout(SILENT_HEARTBEATS * self._heartbeat_seconds):
                message = await self._call.read()
        except TimeoutError as error:
            raise _SilentError(f"it said nothing for {SILENT_HEARTBEATS * self._heartbeat_seconds:g} s") from error
        if isinstance(message, pb.SyncResponse):
            return message
        # The end: code() has the verdict, and an error becomes one here.
        if await self._call.code() is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                await self._call.code(),
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        return None

    async def _hello(self) -> None:
        table = self._holder.table
        self._told_held = set(self._holder.held())
        hello = pb.SyncRequest.Hello(
            gateway_id=self._me.gateway_id,
            instance_id=self._me.instance_id,
            version=self._me.version,
            apps=self._me.apps,
            environments=self._me.environments,
            # What was refused is asked for again: it may be sound now, or a damaged copy of it on disk may be gone.
            revision=min([table.revision, *(rejected.bound.revision - 1 for rejected in table.rejected.values())]),
            store_id=table.store_id,
            held_digests=sorted(self._told_held),
        )
        await self._say(pb.SyncRequest(hello=hello))

    def _welcome(self, welcome: pb.SyncResponse.Welcome) -> None:
        self._heartbeat_seconds = welcome.heartbeat_interval.ToTimedelta().total_seconds()
        self._sync.welcomed(welcome.store_id)
        self._start(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._say(pb.SyncRequest(heartbeat=pb.SyncRequest.Heartbeat()))

    async def _prepare(self, prepare: pb.SyncResponse.Prepare) -> None:
        wanted = [
            Bound(app=target.app, environment=target.environment, release=target.release, digest=target.digest, revision=0)
            for target in prepare.targets
        ]
        rejected = await self._holder.prepare(wanted, self._fetch)
        await self._say_held()
        await self._say(
            pb.SyncRequest(prepared=pb.SyncRequest.Prepared(prepare_id=prepare.prepare_id, rejections=map(_rejection, rejected)))
        )

    async def _update(self, update: pb.SyncResponse.Update) -> None:
        if not update.bindings and update.revision == self._holder.table.revision and not update.synced:
            return
        await self._holder.apply(update.revision, list(map(_bound, update.bindings)), self._fetch)
        await self._say_held()
        rejections = map(_rejection, self._holder.table.rejected.values())
        await self._say(pb.SyncRequest(applied=pb.SyncRequest.Applied(revision=update.revision, rejections=rejections)))
        if update.bindings or update.synced:
            self._sync.flipped()

    async def _fetch(self, digest: str) -> bytes:
        """The snapshot, whole. Raises ReleaseUnusableError when the control plane has none, AioRpcError when the connection broke."""
        data = bytearray()
        try:
            async for chunk in self._stub.FetchSnapshot(pb.FetchSnapshotRequest(digest=digest), timeout=FETCH_SECONDS):
                data += chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ReleaseUnusableError([error.details() or "the control plane has no such snapshot"]) from error
            raise
        return bytes(data)

    async def _say_held(self) -> None:
        held = set(self._holder.held())
        if held != self._told_held:
            message = pb.SyncRequest.Held(added=sorted(held - self._told_held), dropped=sorted(self._told_held - held))
            self._told_held = held
            await self._say(pb.SyncRequest(held=message))

    async def _say(self, message: pb.SyncRequest) -> None:
        async with self._writing:
            with contextlib.suppress(asyncio.InvalidStateError):
                # A stream that has ended says why when it is read.
                await self._call.write(message)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            self._call.cancel()
        elif error is not None:
            log.error("a part of the conversation failed", exc_info=error)
            self._call.cancel()


def _bound(binding: deployments_pb2.Binding) -> Bound:
    return Bound(
        app=binding.app, environment=binding.environment, release=binding.release, digest=binding.digest, revision=binding.revision
    )


def _rejection(rejected: Rejected) -> pb.SyncRequest.Rejection:
    bound = rejected.bound
    return pb.SyncRequest.Rejection(app=bound.app, environment=bound.environment, digest=bound.digest, reason=rejected.reason)
