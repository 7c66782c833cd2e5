"""GatewayService: the Sync stream, snapshots by digest, the list of gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog

from control_plane.gateways import REBALANCE_WITHIN_SECONDS, Gateways, Session
from control_plane.hub import Hub
from control_plane.model import Identity, Prepare, Rejection
from control_plane.rpc import convert
from control_plane.rpc.executions import report_of
from control_plane.rpc.peer_names import check_gateway_id
from control_plane.rpc.snapshots import Snapshots
from control_plane.service.audit import Audit
from control_plane.service.calls import Call
from control_plane.service.executions import Executions
from control_plane.service.paging import PageRequest
from control_plane.service.releases import Releases
from pointsman.errors import InvalidField, RevisionConflict, ShuttingDown, Violation
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import gateways_pb2_grpc
from pointsman.v1.executions_pb2 import ReportExecutionsRequest, ReportExecutionsResponse
from pointsman.values import seconds_of

HEARTBEAT_INTERVAL_SECONDS = 5.0
# A peer that says nothing for so long is gone, whatever TCP believes: a half-open connection is noticed within 20 s.
SILENCE_SECONDS = 3 * HEARTBEAT_INTERVAL_SECONDS
# So often at least does a gateway hear of us within the shortest max_staleness: one late word makes nobody stale.
WORDS_WITHIN_STALENESS = 3
MOVE_WITHIN_SECONDS = 2.0

log = structlog.get_logger()


class GatewayServicer(gateways_pb2_grpc.GatewayServiceServicer):
    """Speaks the Sync protocol with each gateway."""

    def __init__(self, gateways: Gateways, hub: Hub, releases: Releases, executions: Executions, audit: Audit, store_id: str) -> None:
        self._gateways = gateways
        self._hub = hub
        self._snapshots = Snapshots(releases)
        self._executions = executions
        self._audit = audit
        self._store_id = store_id
        self._updates = _Updates(hub)

    async def Sync(  # type: ignore[override]  # GrpcServer lets serialised messages through
        self, requests: AsyncIterator[pb.SyncRequest], context: Any
    ) -> AsyncIterator[bytes]:
        """See gateways.proto. Yields serialised messages: one serialisation serves every gateway."""
        hello = await _hello(requests)
        check_gateway_id(hello.gateway_id, context)
        async with self._hub.watcher(HEARTBEAT_INTERVAL_SECONDS) as watcher:
            self._check_store(hello)
            identity = Identity(
                gateway_id=hello.gateway_id,
                instance_id=hello.instance_id,
                version=hello.version,
                apps=frozenset(hello.apps),
                environments=frozenset(hello.environments),
                peer=context.peer(),
                uptime_seconds=seconds_of(hello.uptime) if hello.HasField("uptime") else None,
            )
            with self._gateways.connected(identity, watcher, revision=hello.revision, held=hello.held_digests) as session:
                reader = asyncio.create_task(self._listen(requests, session), name=f"sync {hello.gateway_id}")
                reader.add_done_callback(lambda _: watcher.wake())
                try:
                    yield self._welcome()
                    async for message in self._messages(session, reader, hello.revision):
                        yield message
                finally:
                    reader.cancel()

    async def _messages(self, session: Session, reader: asyncio.Task[None], told: int) -> AsyncIterator[bytes]:
        synced = False
        while not reader.done() and not session.superseded and not self._silent(session):
            if self._hub.closing:
                yield _move(MOVE_WITHIN_SECONDS)
                raise ShuttingDown("This control plane is shutting down; connect again, to another replica if there is one.")
            if session.move_within is not None:
                # The stream goes on until the gateway has left, so that nothing is missed meanwhile.
                within, session.move_within = session.move_within, None
                yield _move(within)
            prepares, session.prepares = session.prepares, []
            for prepare in prepares:
                yield _prepare(prepare)
            if not synced or self._hub.revision > told:
                revision = self._hub.revision
                yield self._updates.since(told, session.identity, synced=not synced)
                told, synced = revision, True
                session.watcher.beat_every(min(HEARTBEAT_INTERVAL_SECONDS, self._hub.shortest_staleness_seconds / WORDS_WITHIN_STALENESS))
            elif not await session.watcher.wait():
                yield self._updates.since(told, session.identity, synced=False)
        if reader.done() and not reader.cancelled():
            reader.result()

    @staticmethod
    def _silent(session: Session) -> bool:
        """Whether the gateway has said nothing for too long; looked at whenever there is something to tell it, at least a heartbeat."""
        seconds = time.monotonic() - session.heard_at
        if seconds > SILENCE_SECONDS:
            log.warning("gateway went silent", gateway_id=session.identity.gateway_id, seconds=round(seconds, 1))
        return seconds > SILENCE_SECONDS

    async def _listen(self, requests: AsyncIterator[pb.SyncRequest], session: Session) -> None:
        """Takes what the gateway says until it ends its side."""
        async for message in requests:
            self._take(session, message)

    def _take(self, session: Session, message: pb.SyncRequest) -> None:
        self._gateways.heard(session)
        match message.WhichOneof("kind"):
            case "prepared":
                self._gateways.prepared(session, message.prepared.prepare_id, list(map(_rejection, message.prepared.rejections)))
            case "applied":
                self._gateways.applied(session, message.applied.revision, map(_rejection, message.applied.rejections))
            case "held":
                session.held.difference_update(message.held.dropped)
                session.held.update(message.held.added)
            case "hello":
                raise InvalidField([Violation("hello", "comes first, and only once")])

    def _check_store(self, hello: pb.SyncRequest.Hello) -> None:
        """A gateway never mixes two stores, and never goes back."""
        if hello.store_id and hello.store_id != self._store_id:
            raise RevisionConflict(
                f"Gateway {hello.gateway_id!r} holds the state of store {hello.store_id}; this control plane has store {self._store_id}. "
                "Point the gateway at its own control plane, or give it an empty --state-dir to start anew here.",
                gateway_id=hello.gateway_id,
                expected=hello.store_id,
                current=self._store_id,
            )
        if hello.revision > self._hub.revision:
            raise RevisionConflict(
                f"Gateway {hello.gateway_id!r} is at revision {hello.revision}, and this store only at {self._hub.revision}: the store was "
                "restored from an older copy. Give the gateway an empty --state-dir to start anew.",
                gateway_id=hello.gateway_id,
                expected=hello.revision,
                current=self._hub.revision,
            )

    def _welcome(self) -> bytes:
        interval = convert.duration(HEARTBEAT_INTERVAL_SECONDS)
        return pb.SyncResponse(welcome=pb.SyncResponse.Welcome(store_id=self._store_id, heartbeat_interval=interval)).SerializeToString()

    async def FetchSnapshot(  # type: ignore[override]  # GrpcServer lets serialised messages through
        self, request: pb.FetchSnapshotRequest, _context: Any
    ) -> AsyncIterator[bytes]:
        """See gateways.proto."""
        async for message in self._snapshots.stream(request.digest):
            yield message

    async def ReportExecutions(self, request: ReportExecutionsRequest, context: Any) -> ReportExecutionsResponse:
        """See gateways.proto."""
        check_gateway_id(request.gateway_id, context)
        return ReportExecutionsResponse(stored=await self._executions.report(await report_of(request)))

    async def ListGateways(self, request: pb.ListGatewaysRequest, _context: Any) -> pb.ListGatewaysResponse:
        """See gateways.proto."""
        page_request: PageRequest = convert.page_of(request)
        after = page_request.after("gateways", kinds=(str, str))
        found = await self._gateways.known(after, page_request.limit + 1)
        page = page_request.page(found, lambda info: info.identity.key, "gateways")
        gateways = []
        for info in page.items:
            known = info.identity
            bindings = self._hub.newer_than(0, apps=known.apps, environments=known.environments)
            gateways.append(convert.gateway(info, sorted(bindings, key=lambda b: (b.app, b.environment))))
        return pb.ListGatewaysResponse(gateways=gateways, next_page_token=page.next_page_token)

    async def RebalanceGateways(self, request: pb.RebalanceGatewaysRequest, context: Any) -> pb.RebalanceGatewaysResponse:
        """See gateways.proto."""
        attempt = convert.attempt_of_call(request, context)
        await self._audit.done(Call(actor=attempt.actor, attempt=attempt))
        connected = self._gateways.connected_count
        within = request.within.ToTimedelta().total_seconds() if request.HasField("within") else REBALANCE_WITHIN_SECONDS
        moving = self._gateways.rebalance(request.percent, within)
        log.info("gateways were asked to move", moving=len(moving), connected=connected, within_seconds=within)
        return pb.RebalanceGatewaysResponse(gateways_connected=connected, gateways_moving=moving)


async def _hello(requests: AsyncIterator[pb.SyncRequest]) -> pb.SyncRequest.Hello:
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            first = await anext(aiter(requests))
    except (StopAsyncIteration, TimeoutError) as error:
        raise InvalidField([Violation("hello", "absent; a gateway says Hello first")]) from error
    if first.WhichOneof("kind") != "hello":
        raise InvalidField([Violation("hello", f"absent; a gateway says Hello first, not {first.WhichOneof('kind')}")])
    return first.hello


def _prepare(found: Prepare) -> bytes:
    targets = [
        pb.SyncResponse.Prepare.Target(app=t.app, environment=t.environment, release=t.release, digest=t.digest) for t in found.targets
    ]
    return pb.SyncResponse(prepare=pb.SyncResponse.Prepare(prepare_id=found.prepare_id, targets=targets)).SerializeToString()


def _move(within_seconds: float) -> bytes:
    return pb.SyncResponse(move=pb.SyncResponse.Move(within=convert.duration(within_seconds))).SerializeToString()


def _rejection(found: pb.SyncRequest.Rejection) -> Rejection:
    return Rejection(app=found.app, environment=found.environment, digest=found.digest, reason=found.reason)


class _Updates:
    """Serialised Update messages of the hub's present revision, by what they start from and who subscribes to what."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._revision = -1
        self._serialised: dict[tuple[int, frozenset[str], frozenset[str], bool], bytes] = {}

    def since(self, told: int, identity: Identity, *, synced: bool) -> bytes:
        """Everything newer than `told`; a gateway that was told nothing yet does not need to hear of what is gone."""
        if self._hub.revision != self._revision:
            self._revision = self._hub.revision
            self._serialised.clear()
        key = (told, identity.apps, identity.environments, synced)
        found = self._serialised.get(key)
        if found is None:
            bindings = self._hub.newer_than(told, apps=identity.apps, environments=identity.environments)
            # A gateway may know bindings from before there were policies: it is told all of them first.
            policies = self._hub.policies_newer_than(0 if synced else told, environments=identity.environments)
            update = pb.SyncResponse.Update(
                revision=self._revision,
                bindings=[convert.binding(b) for b in bindings if told or b.deployment is not None],
                synced=synced,
                staleness_policies=map(convert.staleness_policy, policies),
                tokens=map(convert.verifier, self._hub.tokens_newer_than(told)),
            )
            found = self._serialised[key] = pb.SyncResponse(update=update).SerializeToString()
        return found
