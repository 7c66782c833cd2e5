"""One conversation with a control plane: Hello, Welcome, then Prepare and Update as things change.

What is told is collected until everything in it is compiled, or known to be unusable here, and then takes effect at once and
together: an Update that needs nothing new flips where it arrives, and one that waits for bytes is overtaken, never reordered.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import grpc.aio
import structlog

from data_plane.holder import Change, Holder
from data_plane.loaded import ReleaseUnusableError
from data_plane.loading import Blobs, Compiler, Loader
from data_plane.sync_fetch import Fetcher
from data_plane.sync_messages import from_rejected, to_bound, to_policy, to_verifier
from data_plane.table import Bound, Key, Policy, Rejected
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import gateways_pb2_grpc
from pointsman.values import seconds_of

WELCOME_SECONDS = 10.0
HEARTBEAT_SECONDS = (0.05, 60.0)
# A control plane that says nothing for so many of its heartbeats is gone, whatever TCP believes.
SILENT_HEARTBEATS = 3
# So long the rest of an Update waits for bytes that do not come; it then takes effect without them, and they when they are here.
PATIENCE_SECONDS = 10.0
# Much longer than any control plane waits for the answer.
PREPARE_SECONDS = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """What this gateway says of itself."""

    gateway_id: str
    instance_id: str
    version: str
    apps: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    token: str = field(default="", repr=False)
    started: float = field(default_factory=time.monotonic)
    """A time.monotonic()."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is shown to the control plane with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


class SilentError(Exception):
    """The control plane said nothing for too long."""


class OtherStoreError(Exception):
    """The control plane has another store than the one that our state came from."""


class MovedError(Exception):
    """The control plane asked to connect elsewhere; `seconds_left` is what is left of the time to wait first."""

    def __init__(self, seconds_left: float) -> None:
        super().__init__("asked to move")
        self.seconds_left = seconds_left


class Link(Protocol):
    """What a stream needs of whoever keeps it."""

    compiler: Compiler
    blobs: Blobs | None
    jitter: Callable[[float, float], float]
    pause: Callable[[float], Awaitable[None]]

    def welcomed(self) -> None:
        """The stream is open."""

    def heard(self) -> None:
        """A sign of life."""

    def flipped(self) -> None:
        """The table has changed."""


class Stream:
    """One stream, from Hello to its end."""

    def __init__(self, link: Link, holder: Holder, me: Me, channel: grpc.aio.Channel) -> None:
        self._link = link
        self._holder = holder
        self._me = me
        stub = gateways_pb2_grpc.GatewayServiceStub(channel)
        self._call = stub.Sync(metadata=me.metadata)
        self._loader = Loader(holder, link.compiler, Fetcher(stub, me.metadata, link.jitter, link.pause), link.blobs)
        self._outgoing: asyncio.Queue[pb.SyncRequest] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._defect: BaseException | None = None
        self._heartbeat_seconds: float | None = None
        self._leave_at: float | None = None
        self._store_id = ""
        self._told_held: set[str] = set()
        # Told and not flipped to yet.
        self._pending: dict[Key, Bound] = {}
        self._pending_policies: dict[str, Policy | None] = {}
        self._pending_revision: int | None = None
        self._complete = False
        self._unusable: dict[str, str] = {}
        self._awaited: set[str] = set()
        self._late: set[str] = set()
        self._patience: asyncio.TimerHandle | None = None
        self._preparing: Counter[str] = Counter()

    async def run(self) -> None:
        """Until the control plane ends it.

        Raises:
            MovedError, SilentError, OtherStoreError: see there.
            AioRpcError: it broke, or was refused.
        """
        try:
            self._hello()
            self._start(self._write())
            while (message := await self._next()) is not None:
                self._take(message)
                # Not before: another store's word, which _take refuses, is none.
                self._link.heard()
        except asyncio.CancelledError:
            # gRPC says so, too, to whoever reads a call that was cancelled here, as _ended does.
            if self._defect is not None:
                raise self._defect from None
            raise
        except grpc.aio.AioRpcError:
            self._raise_if_moved()
            raise
        finally:
            self._stop_waiting()
            for task in self._tasks:
                task.cancel()
            self._call.cancel()
            await self._loader.close()
        self._raise_if_moved()

    def _take(self, message: pb.SyncResponse) -> None:
        match message.WhichOneof("kind"):
            case "welcome":
                self._welcome(message.welcome)
            case "prepare":
                self._start(self._prepare(message.prepare))
            case "update":
                self._update(message.update)
            case "move" if self._leave_at is None:
                # Serving goes on, and so does listening: a flip that comes meanwhile is not missed.
                self._leave_at = time.monotonic() + self._link.jitter(0, seconds_of(message.move.within))

    async def _next(self) -> pb.SyncResponse | None:
        seconds = WELCOME_SECONDS if self._heartbeat_seconds is None else SILENT_HEARTBEATS * self._heartbeat_seconds
        patience = seconds if self._leave_at is None else max(0.0, min(seconds, self._leave_at - time.monotonic()))
        try:
            async with asyncio.timeout(patience):
                message = await self._call.read()
        except TimeoutError:
            self._raise_if_moved()
            raise SilentError(f"it said nothing for {seconds:g} s") from None
        return message if isinstance(message, pb.SyncResponse) else None

    def _raise_if_moved(self) -> None:
        if self._leave_at is not None:
            raise MovedError(max(0.0, self._leave_at - time.monotonic())) from None

    def _hello(self) -> None:
        table = self._holder.table
        self._told_held = set(self._holder.held)
        # What was refused is asked for again: it may be sound now, or the damaged copy of it on disk may be gone.
        revision = min([table.revision, *(rejected.bound.revision - 1 for rejected in table.rejected.values())])
        self._complete = revision == 0
        hello = pb.SyncRequest.Hello(
            gateway_id=self._me.gateway_id,
            instance_id=self._me.instance_id,
            version=self._me.version,
            apps=self._me.apps,
            environments=self._me.environments,
            revision=revision,
            store_id=table.store_id,
            held_digests=sorted(self._told_held),
        )
        hello.uptime.FromMilliseconds(round((time.monotonic() - self._me.started) * 1000))
        self._say(pb.SyncRequest(hello=hello))

    def _welcome(self, welcome: pb.SyncResponse.Welcome) -> None:
        known = self._holder.table.store_id
        if known and welcome.store_id != known:
            raise OtherStoreError(
                f"it has store {welcome.store_id}, and the state here came from store {known}; two stores are never mixed. "
                "Point this gateway at its own control plane, or give it an empty --state-dir to start anew here."
            )
        self._store_id = welcome.store_id
        shortest, longest = HEARTBEAT_SECONDS
        self._heartbeat_seconds = min(max(seconds_of(welcome.heartbeat_interval), shortest), longest)
        self._link.welcomed()
        self._start(self._beat(self._heartbeat_seconds))

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._say(pb.SyncRequest(heartbeat=pb.SyncRequest.Heartbeat()))

    async def _prepare(self, prepare: pb.SyncResponse.Prepare) -> None:
        """Loads the targets and says which cannot be run here; all at once, so that the slowest alone is waited for."""
        wanted = [Bound(app=t.app, environment=t.environment, release=t.release, digest=t.digest, revision=0) for t in prepare.targets]
        digests = {bound.digest for bound in wanted}
        self._preparing.update(digests)
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                found = await asyncio.gather(*map(self._unusable_because, digests))
        except TimeoutError:
            # Nobody waits for the answer any more; an Update may still ask for it.
            log.warning("a release could not be prepared in time", releases=[bound.release for bound in wanted], seconds=PREPARE_SECONDS)
            return
        finally:
            self._preparing.subtract(digests)
        causes = {digest: cause for digest, cause in zip(digests, found, strict=True) if cause}
        rejections = [from_rejected(Rejected(bound=bound, reason=causes[bound.digest])) for bound in wanted if bound.digest in causes]
        self._say_held()
        self._say(pb.SyncRequest(prepared=pb.SyncRequest.Prepared(prepare_id=prepare.prepare_id, rejections=rejections)))

    async def _unusable_because(self, digest: str) -> str:
        try:
            await self._loader.get(digest)
        except ReleaseUnusableError as error:
            return str(error)
        return ""

    def _update(self, update: pb.SyncResponse.Update) -> None:
        if not self._store_id:
            raise OtherStoreError("it sent an Update and no Welcome")
        if update.tokens or (update.synced and self._complete):
            # At once, whatever else the Update waits for: who was shut out shall not be let in for the sake of some bytes.
            self._holder.take_tokens(map(to_verifier, update.tokens), complete=update.synced and self._complete)
            self._link.flipped()
        news = update.bindings or update.staleness_policies or update.synced or update.revision > self._holder.table.revision
        if not news and self._pending_revision is None:
            return
        for binding in update.bindings:
            bound = to_bound(binding)
            self._pending[bound.key] = bound
        self._pending_policies |= {policy.environment: to_policy(policy) for policy in update.staleness_policies}
        self._pending_revision = max(update.revision, self._pending_revision or 0)
        self._flip_or_load()

    def _flip_or_load(self) -> None:
        """Flips to all that was told, or loads what is missing for it and gives up what is not needed any more."""
        needed = {bound.digest for bound in self._pending.values() if bound.release}
        self._late &= {rejected.bound.digest for rejected in self._holder.table.rejected.values()}
        wanted = needed | self._late | {digest for digest, count in self._preparing.items() if count > 0}
        self._loader.keep_only(wanted)
        self._awaited &= wanted
        missing = needed - self._holder.held.keys() - self._unusable.keys()
        for digest in missing - self._awaited:
            self._awaited.add(digest)
            self._start(self._load(digest))
        if missing and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._go_on_without)
        if not missing and self._pending_revision is not None:
            self._flip(self._pending_revision)

    async def _load(self, digest: str) -> None:
        try:
            cause = await self._unusable_because(digest)
        finally:
            self._awaited.discard(digest)
        if cause:
            self._unusable[digest] = cause
        else:
            self._unusable.pop(digest, None)
        if digest in self._late:
            self._late.discard(digest)
            for rejected in self._holder.table.rejected.values():
                if rejected.bound.digest == digest:
                    self._pending.setdefault(rejected.bound.key, rejected.bound)
            self._pending_revision = max(self._holder.table.revision, self._pending_revision or 0)
        self._flip_or_load()

    def _go_on_without(self) -> None:
        """What was told takes effect but for the bytes that do not come; they are rejected until they do."""
        self._patience = None
        for digest in self._awaited & {bound.digest for bound in self._pending.values()}:
            self._unusable[digest] = f"its bytes have not come within {PATIENCE_SECONDS:g} s; they are still being fetched"
        late = set(self._unusable) & self._awaited
        self._flip_or_load()
        self._late |= late

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _flip(self, revision: int) -> None:
        self._stop_waiting()
        change = Change(
            revision=revision,
            store_id=self._store_id,
            bindings=list(self._pending.values()),
            unusable=self._unusable,
            policies=self._pending_policies,
            complete=self._complete,
        )
        self._holder.flip(change)
        self._pending_policies = {}
        self._pending, self._pending_revision, self._unusable, self._complete = {}, None, {}, False
        self._say_held()
        rejections = map(from_rejected, self._holder.table.rejected.values())
        self._say(pb.SyncRequest(applied=pb.SyncRequest.Applied(revision=revision, rejections=rejections)))
        self._link.flipped()

    def _say_held(self) -> None:
        held = set(self._holder.held)
        if held != self._told_held:
            message = pb.SyncRequest.Held(added=sorted(held - self._told_held), dropped=sorted(self._told_held - held))
            self._told_held = held
            self._say(pb.SyncRequest(held=message))

    def _say(self, message: pb.SyncRequest) -> None:
        self._outgoing.put_nowait(message)

    async def _write(self) -> None:
        """Sends what is said, in its order, until the stream ends; why it ended is told to whoever reads it."""
        while True:
            message = await self._outgoing.get()
            try:
                await self._call.write(message)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect in a part ends the whole conversation; _next then meets a call that is cancelled."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = error
            self._call.cancel()
