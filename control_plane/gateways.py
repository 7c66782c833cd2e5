"""The connected gateways: who subscribes to what, who has applied what; prepare before a commit, rollouts after it.

Each replica of the control plane has gateways of its own. What is asked of gateways here is asked of those of all replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
import uuid
from collections.abc import Collection, Coroutine, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
import structlog

from control_plane.hub import Watcher
from control_plane.model import Binding, GatewayInfo, Identity, Prepare, Rejection, Rollout, Target
from control_plane.peers import (
    A,
    Alone,
    Answer,
    Arrival,
    KnownAnswer,
    KnownRequest,
    Peers,
    PrepareAnswer,
    PrepareRequest,
    Replies,
    Request,
    RolloutAnswer,
    RolloutRequest,
)
from control_plane.service.calls import Clock
from pointsman.errors import ReleaseRejected

DEFAULT_WAIT_SECONDS = 5.0
# Those that are to go to other replicas do so one by one.
REBALANCE_WITHIN_SECONDS = 10.0
# For the lists of other replicas, which they have at hand.
KNOWN_SECONDS = 1.0
# Gateways that were connected once and are gone are remembered for ListGateways, the oldest forgotten first.
MAX_REMEMBERED_GATEWAYS = 10_000
# An error travels in gRPC's trailers, of which clients take 16 KiB, and says its causes three times there.
MAX_TOLD_GATEWAYS = 20
MAX_TOLD_CAUSES = 5
MAX_CAUSE_CHARS = 150

log = structlog.get_logger()


class Session(msgspec.Struct, eq=False, kw_only=True):
    """One stream of one gateway process, from its Hello on. Remembered after its end as disconnected."""

    identity: Identity
    connect_time: datetime
    last_heard_time: datetime
    watcher: Watcher
    revision: int
    held: set[str]
    heard_at: float = msgspec.field(default_factory=time.monotonic)
    """last_heard_time as a time.monotonic(), which no change of the clock moves."""
    rejections: dict[tuple[str, str], Rejection] = {}
    prepares: list[Prepare] = []
    connected: bool = True
    move_within: float | None = None
    """Seconds within which it shall connect elsewhere; None once it was told, or if it may stay."""
    superseded: bool = False
    """The same process has opened a newer stream; this one shall end."""

    def subscribes(self, app: str, environment: str) -> bool:
        """Whether it wants to know of this binding."""
        known = self.identity
        return (not known.apps or app in known.apps) and (not known.environments or environment in known.environments)

    def rejection_of(self, binding: Binding) -> str | None:
        """Why it does not serve this binding, if it said so."""
        rejection = self.rejections.get((binding.app, binding.environment))
        return rejection.why_not(binding) if rejection else None

    def info(self) -> GatewayInfo:
        """As it is now."""
        return GatewayInfo(
            identity=self.identity,
            connected=self.connected,
            connect_time=self.connect_time,
            last_heard_time=self.last_heard_time,
            revision=self.revision,
            rejections=tuple(self.rejections.values()),
        )


class _Round:
    """The sessions that still owe an answer; `done` is set when none does."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self.pending = set(sessions)
        self.done = asyncio.Event()
        self._check()

    def answered(self, session: Session) -> None:
        self.pending.discard(session)
        self._check()

    async def wait(self, seconds: float) -> None:
        """Until all have answered, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.done.wait()

    def _check(self) -> None:
        if not self.pending:
            self.done.set()


class _PrepareRound(_Round):
    def __init__(self, sessions: Iterable[Session]) -> None:
        super().__init__(sessions)
        self.rejections: dict[str, list[Rejection]] = {}


class _RolloutRound(_Round):
    """Counts who has reached a revision."""

    def __init__(self, sessions: Iterable[Session], revision: int) -> None:
        self.revision = revision
        self.members = set(sessions)
        super().__init__(session for session in self.members if session.revision < revision)

    def heard(self, session: Session) -> None:
        if session.revision >= self.revision:
            self.answered(session)

    def gone(self, session: Session) -> None:
        self.members.discard(session)
        self.answered(session)


class Gateways:
    """All sessions of this replica; through its peers, the gateways of all."""

    def __init__(self, clock: Clock, prepare_timeout_seconds: float, peers: Peers | None = None) -> None:
        self._clock = clock
        self._peers = peers or Alone()
        self._prepare_timeout_seconds = prepare_timeout_seconds
        self._known: dict[str, list[Session]] = {}
        self._connected: set[Session] = set()
        self._prepares: dict[str, _PrepareRound] = {}
        self._rollouts: set[_RolloutRound] = set()

    @property
    def any_connected(self) -> bool:
        """Whether any gateway may be connected, here or at another replica."""
        return bool(self._connected or self._peers.others)

    @property
    def has_elsewhere(self) -> bool:
        """Whether there is another replica that gateways could go to."""
        return bool(self._peers.others)

    @property
    def connected_count(self) -> int:
        """How many gateways are connected here."""
        return len(self._connected)

    @property
    def rejecting_count(self) -> int:
        """How many of them cannot run something that is bound."""
        return sum(bool(session.rejections) for session in self._connected)

    def behind_count(self, revision: int) -> int:
        """How many of them have not applied the revision yet."""
        return sum(session.revision < revision for session in self._connected)

    def rebalance(self, percent: int, within_seconds: float) -> list[str]:
        """Has so many of those that are connected here move elsewhere, each at a moment of its own; the ids of those that were asked."""
        count = math.ceil(len(self._connected) * percent / 100)
        moving = random.sample(sorted(self._connected, key=lambda session: session.identity.key), count)
        for session in moving:
            session.move_within = within_seconds
            session.watcher.wake()
        return sorted(session.identity.gateway_id for session in moving)

    async def known(self, after: tuple[str, ...], limit: int) -> list[GatewayInfo]:
        """At most `limit` gateway processes by their keys, those with a greater key than `after`; the connected, and those that were.

        A replica that cannot be asked, or does not answer, adds nothing.
        """
        request = KnownRequest(after, limit)
        replies = await self._everywhere(self._known_here(request), request, KnownAnswer, KNOWN_SECONDS)
        newest: dict[tuple[str, str], GatewayInfo] = {}
        for info in itertools.chain.from_iterable(answer.gateways for answer in replies.answers):
            before = newest.setdefault(info.identity.key, info)
            # A process that has moved is known to both replicas.
            if (info.connected, info.last_heard_time) > (before.connected, before.last_heard_time):
                newest[info.identity.key] = info
        return [info for _, info in sorted(newest.items())][:limit]

    @contextlib.contextmanager
    def connected(self, identity: Identity, watcher: Watcher, *, revision: int, held: Collection[str]) -> Iterator[Session]:
        """A session for as long as its stream is open."""
        now = self._clock()
        session = Session(identity=identity, connect_time=now, last_heard_time=now, watcher=watcher, revision=revision, held=set(held))
        self._remember(session)
        self._connected.add(session)
        self._peers.tell(Arrival(identity.gateway_id, identity.instance_id, now))
        log.info("gateway connected", gateway_id=identity.gateway_id, peer=identity.peer, revision=revision)
        try:
            yield session
        finally:
            session.connected = False
            self._connected.discard(session)
            for waiting in list(self._prepares.values()):
                waiting.answered(session)
            for rollout in list(self._rollouts):
                rollout.gone(session)
            log.info("gateway disconnected", gateway_id=identity.gateway_id, peer=identity.peer, revision=session.revision)

    def heard(self, session: Session) -> None:
        """A sign of life."""
        session.last_heard_time = self._clock()
        session.heard_at = time.monotonic()

    def applied(self, session: Session, revision: int, rejections: Iterable[Rejection]) -> None:
        """The gateway serves everything up to the revision, but for the rejections."""
        session.revision = max(session.revision, revision)
        session.rejections = {(rejection.app, rejection.environment): rejection for rejection in rejections}
        for rollout in list(self._rollouts):
            rollout.heard(session)

    def prepared(self, session: Session, prepare_id: str, rejections: Sequence[Rejection]) -> None:
        """The gateway's answer to a Prepare; one that comes too late is of no account."""
        waiting = self._prepares.get(prepare_id)
        if waiting is None:
            return
        if rejections and session in waiting.pending:
            waiting.rejections.setdefault(session.identity.gateway_id, []).extend(rejections)
        waiting.answered(session)

    async def prepare(self, targets: Sequence[Target], seconds: float) -> None:
        """Has every subscribed gateway of all replicas fetch and compile what it does not hold yet.

        A silent one is waited for so long, and no longer than the prepare timeout; it catches up by itself.

        Raises:
            ReleaseRejected: when any of them cannot run a target.
            StoreUnavailable: when other replicas could not be asked.
        """
        request = PrepareRequest(tuple(targets), min(seconds, self._prepare_timeout_seconds))
        replies = await self._everywhere(self._prepare_here(request), request, PrepareAnswer, request.seconds)
        if replies.failure is not None:
            raise replies.failure
        rejections: dict[str, list[Rejection]] = {}
        for answer in replies.answers:
            for gateway_id, found in answer.rejections.items():
                rejections.setdefault(gateway_id, []).extend(found)
        if rejections:
            raise _rejected(targets, rejections)

    async def rollout(self, bindings: Sequence[Binding], wait_seconds: float, *, started: float, revision: int = 0) -> Rollout:
        """Waits until every connected subscriber of all replicas serves the bindings, at most so long; then tells who does.

        Without bindings: until every gateway has applied the revision. `started` is the time.monotonic() of the commit. A replica that
        lives and does not answer is one that is pending.
        """
        revision = max((binding.revision for binding in bindings), default=revision)
        request = RolloutRequest(tuple(bindings), max(wait_seconds, 0.0), revision)
        replies = await self._everywhere(self._rollout_here(request), request, RolloutAnswer, request.seconds)
        pending = [gateway_id for answer in replies.answers for gateway_id in answer.pending]
        pending += [f"replica {address}" for address in replies.silent]
        rejected = [rejection for answer in replies.answers for rejection in answer.rejected.items()]
        total = sum(answer.members for answer in replies.answers) + len(replies.silent)
        return Rollout(
            revision=revision,
            total=total,
            applied=total - len(pending) - len(rejected),
            pending=sorted(pending),
            rejected=sorted(rejected),
            seconds=time.monotonic() - started,
        )

    async def answer(self, request: Request) -> Answer:
        """What another replica asks, for the gateways that are connected here."""
        match request:
            case PrepareRequest():
                return await self._prepare_here(request)
            case RolloutRequest():
                return await self._rollout_here(request)
            case KnownRequest():
                return await self._known_here(request)

    async def _everywhere(self, here: Coroutine[Any, Any, A], request: Request, answer_type: type[A], seconds: float) -> Replies[A]:
        """The answer from here among those of the other replicas."""
        if not self._peers.others:
            return Replies(answers=[await here])
        own: A
        replies: Replies[A]
        own, replies = await asyncio.gather(here, self._peers.ask(request, answer_type, seconds))
        replies.answers.append(own)
        return replies

    async def _prepare_here(self, request: PrepareRequest) -> PrepareAnswer:
        asked: dict[Session, Prepare] = {}
        prepare_id = str(uuid.uuid4())
        for session in self._connected:
            missing = tuple(t for t in request.targets if t.digest not in session.held and session.subscribes(t.app, t.environment))
            if missing:
                asked[session] = Prepare(prepare_id=prepare_id, targets=missing)
        if not asked:
            return PrepareAnswer({})
        waiting = self._prepares[prepare_id] = _PrepareRound(asked)
        try:
            for session, message in asked.items():
                session.prepares.append(message)
                session.watcher.wake()
            await waiting.wait(min(request.seconds, self._prepare_timeout_seconds))
        finally:
            del self._prepares[prepare_id]
        return PrepareAnswer(waiting.rejections)

    async def _rollout_here(self, request: RolloutRequest) -> RolloutAnswer:
        bindings = request.bindings
        subscribed = (s for s in self._connected if not bindings or any(s.subscribes(b.app, b.environment) for b in bindings))
        waiting = _RolloutRound(subscribed, request.revision)
        if waiting.pending and request.seconds > 0:
            self._rollouts.add(waiting)
            try:
                await waiting.wait(request.seconds)
            finally:
                self._rollouts.discard(waiting)
        rejected = {}
        for session in waiting.members - waiting.pending:
            # Most refuse nothing, and there may be many bindings.
            refused = [(b, why) for b in (bindings if session.rejections else ()) if (why := session.rejection_of(b)) is not None]
            if refused:
                told = (f"{b.app}: {why}" if len(bindings) > 1 else why for b, why in refused)
                rejected[session.identity.gateway_id] = "; ".join(told)
        return RolloutAnswer(len(waiting.members), [session.identity.gateway_id for session in waiting.pending], rejected)

    async def _known_here(self, request: KnownRequest) -> KnownAnswer:
        known = sorted((s for sessions in self._known.values() for s in sessions), key=lambda session: session.identity.key)
        later = (session.info() for session in known if session.identity.key > request.after)
        return KnownAnswer(list(itertools.islice(later, request.limit)))

    def arrived_elsewhere(self, arrival: Arrival) -> None:
        """A gateway has connected to another replica. A newer stream of the same process stays: it has come back meanwhile."""
        if arrival.gateway_id in self._known:
            self._known[arrival.gateway_id] = self._others_of(arrival.gateway_id, arrival.instance_id, arrival.connect_time)
            if not self._known[arrival.gateway_id]:
                del self._known[arrival.gateway_id]

    def _remember(self, session: Session) -> None:
        """A new stream replaces what its process, or a process before it, left behind; other live processes may share the id."""
        known = session.identity
        self._known[known.gateway_id] = [*self._others_of(known.gateway_id, known.instance_id), session]
        if len(self._known) > MAX_REMEMBERED_GATEWAYS:
            gone = (key for key, sessions in self._known.items() if not any(s.connected for s in sessions))
            for key in list(itertools.islice(gone, 1)):
                del self._known[key]

    def _others_of(self, gateway_id: str, instance_id: str, until: datetime | None = None) -> list[Session]:
        """The live sessions under this id; those of this process, if opened until then, shall end and are none of them."""
        kept = []
        for known in self._known.get(gateway_id, ()):
            if known.identity.instance_id == instance_id and (until is None or known.connect_time <= until):
                known.superseded = True
                known.watcher.wake()
            elif known.connected:
                kept.append(known)
        return kept


def _rejected(targets: Sequence[Target], rejections: dict[str, list[Rejection]]) -> ReleaseRejected:
    refused = {(rejection.app, rejection.environment) for found in rejections.values() for rejection in found}
    guilty = [target for target in targets if (target.app, target.environment) in refused][:MAX_TOLD_CAUSES] or targets[:1]
    releases = ", ".join(f"{target.release} of {target.app}" if len(targets) > 1 else target.release for target in guilty)
    names = sorted(rejections)
    told = "; ".join(f"{name}: {_cause(rejections[name])}" for name in names[:MAX_TOLD_CAUSES])
    if len(names) > MAX_TOLD_CAUSES:
        told += f"; and {len(names) - MAX_TOLD_CAUSES} more gateways"
    return ReleaseRejected(
        f"Release {releases} was rejected, so nothing was changed anywhere. {told}. "
        "Fix the release or the gateway, or deploy with force to skip this check.",
        release=guilty[0].release,
        app=guilty[0].app,
        environment=guilty[0].environment,
        gateways=names[:MAX_TOLD_GATEWAYS],
        causes=told,
    )


def _cause(rejections: Sequence[Rejection]) -> str:
    cause = "; ".join(rejection.reason for rejection in rejections)
    return cause if len(cause) <= MAX_CAUSE_CHARS else f"{cause[:MAX_CAUSE_CHARS]}..."
