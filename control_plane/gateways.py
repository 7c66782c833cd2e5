"""The connected gateways: who subscribes to what, who has applied what; prepare before a commit, rollouts after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from control_plane.hub import Watcher
from control_plane.model import Binding
from control_plane.service.calls import Clock
from pointsman.errors import ReleaseRejected

DEFAULT_WAIT_SECONDS = 5.0
# Gateways that were connected once and are gone are remembered for ListGateways, the oldest forgotten first.
MAX_REMEMBERED_GATEWAYS = 10_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A release that is going to be bound."""

    app: str
    environment: str
    release: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A release that a gateway cannot run, and why."""

    app: str
    environment: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Asks a gateway to get targets ready; answered under `prepare_id`."""

    prepare_id: str
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Which of the connected gateways that subscribe to a change serve it."""

    revision: int
    total: int
    applied: int
    pending: list[str]
    rejected: list[tuple[str, str]]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a gateway says of itself in Hello."""

    gateway_id: str
    instance_id: str
    version: str
    apps: frozenset[str]
    environments: frozenset[str]
    peer: str


@dataclass(eq=False, slots=True, kw_only=True)
class Session:
    """One stream of one gateway process, from its Hello on. Remembered after its end as disconnected."""

    identity: Identity
    connect_time: datetime
    last_heard_time: datetime
    watcher: Watcher
    revision: int
    held: set[str]
    heard_at: float = field(default_factory=time.monotonic)
    """last_heard_time as a time.monotonic(), which no change of the clock moves."""
    rejections: dict[tuple[str, str], Rejection] = field(default_factory=dict)
    prepares: list[Prepare] = field(default_factory=list)
    connected: bool = True
    superseded: bool = False
    """The same process has opened a newer stream; this one shall end."""

    def subscribes(self, app: str, environment: str) -> bool:
        """Whether it wants to know of this binding."""
        known = self.identity
        return (not known.apps or app in known.apps) and (not known.environments or environment in known.environments)

    def rejection_of(self, binding: Binding) -> str | None:
        """Why it does not serve this binding, if it said so."""
        rejection = self.rejections.get((binding.app, binding.environment))
        live = binding.deployment
        return rejection.reason if rejection and live and rejection.digest == live.digest else None


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
    """All sessions of this control plane."""

    def __init__(self, clock: Clock, prepare_timeout_seconds: float) -> None:
        self._clock = clock
        self._prepare_timeout_seconds = prepare_timeout_seconds
        self._known: dict[str, list[Session]] = {}
        self._connected: set[Session] = set()
        self._prepares: dict[str, _PrepareRound] = {}
        self._rollouts: set[_RolloutRound] = set()

    @property
    def any_connected(self) -> bool:
        """Whether any gateway is connected."""
        return bool(self._connected)

    def sessions(self) -> list[Session]:
        """Every gateway process known, by gateway id."""
        return [session for _, sessions in sorted(self._known.items()) for session in sessions]

    @contextlib.contextmanager
    def connected(self, identity: Identity, watcher: Watcher, *, revision: int, held: Collection[str]) -> Iterator[Session]:
        """A session for as long as its stream is open."""
        now = self._clock()
        session = Session(identity=identity, connect_time=now, last_heard_time=now, watcher=watcher, revision=revision, held=set(held))
        self._remember(session)
        self._connected.add(session)
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
        """Has every subscribed gateway fetch and compile what it does not hold yet.

        A silent one is waited for so long, and no longer than the prepare timeout; it catches up by itself.

        Raises:
            ReleaseRejected: when any of them cannot run a target.
        """
        asked: dict[Session, Prepare] = {}
        prepare_id = str(uuid.uuid4())
        for session in self._connected:
            missing = tuple(t for t in targets if t.digest not in session.held and session.subscribes(t.app, t.environment))
            if missing:
                asked[session] = Prepare(prepare_id=prepare_id, targets=missing)
        if not asked:
            return
        waiting = self._prepares[prepare_id] = _PrepareRound(asked)
        try:
            for session, message in asked.items():
                session.prepares.append(message)
                session.watcher.wake()
            await waiting.wait(min(seconds, self._prepare_timeout_seconds))
        finally:
            del self._prepares[prepare_id]
        if waiting.rejections:
            raise _rejected(targets, waiting.rejections)

    async def rollout(self, bindings: Sequence[Binding], wait_seconds: float, *, started: float) -> Rollout:
        """Waits until every connected subscriber serves the bindings, at most so long; then tells who does.

        `started` is the time.monotonic() of the commit.
        """
        revision = max(binding.revision for binding in bindings)
        subscribed = (s for s in self._connected if any(s.subscribes(b.app, b.environment) for b in bindings))
        waiting = _RolloutRound(subscribed, revision)
        if waiting.pending and wait_seconds > 0:
            self._rollouts.add(waiting)
            try:
                await waiting.wait(wait_seconds)
            finally:
                self._rollouts.discard(waiting)
        rejected = {}
        for session in waiting.members - waiting.pending:
            reasons = [reason for binding in bindings if (reason := session.rejection_of(binding)) is not None]
            if reasons:
                rejected[session.identity.gateway_id] = "; ".join(reasons)
        return Rollout(
            revision=revision,
            total=len(waiting.members),
            applied=len(waiting.members) - len(waiting.pending) - len(rejected),
            pending=sorted(session.identity.gateway_id for session in waiting.pending),
            rejected=sorted(rejected.items()),
            seconds=time.monotonic() - started,
        )

    def _remember(self, session: Session) -> None:
        """A new stream replaces what its process, or a process before it, left behind; other live processes may share the id."""
        kept = []
        for known in self._known.get(session.identity.gateway_id, ()):
            if known.identity.instance_id == session.identity.instance_id:
                known.superseded = True
                known.watcher.wake()
            elif known.connected:
                kept.append(known)
        self._known[session.identity.gateway_id] = [*kept, session]
        if len(self._known) > MAX_REMEMBERED_GATEWAYS:
            gone = (key for key, sessions in self._known.items() if not any(s.connected for s in sessions))
            for key in list(itertools.islice(gone, 1)):
                del self._known[key]


def _rejected(targets: Sequence[Target], rejections: dict[str, list[Rejection]]) -> ReleaseRejected:
    releases = ", ".join(dict.fromkeys(target.release for target in targets))
    causes = {gateway_id: "; ".join(rejection.reason for rejection in found) for gateway_id, found in sorted(rejections.items())}
    told = "; ".join(f"{gateway_id}: {cause}" for gateway_id, cause in causes.items())
    return ReleaseRejected(
        f"Release {releases} was rejected, so nothing was changed anywhere. {told}. "
        "Fix the release or the gateway, or deploy with force to skip this check.",
        release=releases,
        app=targets[0].app,
        environment=targets[0].environment,
        gateways=list(causes),
        causes=told,
    )
