"""What gateways are told, in memory: the live bindings and how environments treat staleness; and who is told when that changes.

Level-triggered: a watcher holds no queue, only the revision up to which it has been told. When woken it takes whatever is newer,
so the latest wins, a slow or stuck watcher costs one integer, and any revision can be resumed from. The store is the truth; a
change is read back from it after its commit, whoever made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

import structlog

from control_plane.model import Binding, StalenessPolicy, Token
from control_plane.storage.base import ReadTransaction, Store
from pointsman.errors import StoreUnavailable

RETRY_SECONDS = (0.1, 5.0)
# How finely beats are told; a watcher may be late by this much.
TICK_SECONDS = 0.25
TICKS_BETWEEN_LOOKS = 4

log = structlog.get_logger()


class Watcher:
    """One reader of the hub. Woken by a change, and by the hub's ticker when it has not been woken for `beat_seconds`.

    A future and a shared ticker, where an Event and a timeout for each wait were a sixth of the cost of a fan-out to 1,000.
    """

    __slots__ = ("_beat_at", "_beat_seconds", "_waiter", "_woken")

    def __init__(self, beat_seconds: float) -> None:
        self._beat_seconds = beat_seconds
        self._beat_at = time.monotonic() + beat_seconds
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """There may be something new."""
        self._woken = True
        self._rouse()

    def beat_every(self, seconds: float) -> None:
        """Beats so often from now on."""
        if seconds != self._beat_seconds:
            self._beat_seconds = seconds
            self._beat_at = min(self._beat_at, time.monotonic() + seconds)

    def tick(self, now: float) -> None:
        """Ends a wait whose beat is due; `now` is a time.monotonic()."""
        if now >= self._beat_at:
            self._rouse()

    async def wait(self) -> bool:
        """Waits until woken since the last wait; False when the beat is due first."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        woken, self._woken = self._woken, False
        self._beat_at = time.monotonic() + self._beat_seconds
        return woken

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _News(NamedTuple):
    """What the store has newer."""

    revision: int
    bindings: Sequence[Binding] = ()
    policies: Sequence[StalenessPolicy] = ()
    tokens: Sequence[Token] = ()


class Hub:
    """All bindings, as of `revision`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = 0
        self.closing = False
        # In the order of their revisions, oldest first: what is newer than a revision is at the end.
        self._bindings: dict[tuple[str, str], Binding] = {}
        self._policies: dict[str, StalenessPolicy] = {}
        self.tokens: dict[str, Token] = {}
        """By token_id, revoked ones included."""
        self.shortest_staleness_seconds = math.inf
        """The shortest max_staleness of any environment: who is told less often takes itself for stale."""
        self._watchers: set[Watcher] = set()
        self._doorbell = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def live_bindings(self) -> int:
        """How many bindings there are now."""
        return sum(binding.deployment is not None for binding in self._bindings.values())

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    async def start(self) -> None:
        """Reads the present state and follows the store from then on."""
        await self.refresh()
        self._store.on_change(self._doorbell.set)
        self._tasks = [asyncio.create_task(self._follow(), name="hub"), asyncio.create_task(self._tick(), name="hub ticker")]

    async def close(self) -> None:
        """Wakes every watcher, which then sees `closing`, and stops following."""
        self.closing = True
        self._wake_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def watcher(self, beat_seconds: float) -> AsyncIterator[Watcher]:
        """A watcher that is forgotten at the end. The hub is as new when it starts as anything acknowledged before."""
        await self.refresh()
        watcher = Watcher(beat_seconds)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def newer_than(self, revision: int, *, apps: Collection[str] = (), environments: Collection[str] = ()) -> list[Binding]:
        """Bindings set after the revision, oldest first, those that are gone included; of all apps and environments when empty."""
        found = []
        for binding in reversed(self._bindings.values()):
            if binding.revision <= revision:
                break
            if (not apps or binding.app in apps) and (not environments or binding.environment in environments):
                found.append(binding)
        found.reverse()
        return found

    def policies_newer_than(self, revision: int, *, environments: Collection[str] = ()) -> list[StalenessPolicy]:
        """Policies set after the revision, those of deleted environments included; of all environments when empty."""
        return [p for p in self._policies.values() if p.revision > revision and (not environments or p.environment in environments)]

    def tokens_newer_than(self, revision: int) -> list[Token]:
        """Tokens made or revoked after the revision."""
        return [token for token in self.tokens.values() if token.revision > revision]

    async def refresh(self) -> None:
        """Takes what the store has newer, and wakes the watchers when there is something. Raises StoreUnavailable."""

        async def work(tx: ReadTransaction) -> _News:
            revision = await tx.revision()
            if revision <= self.revision:
                return _News(revision)
            since = self.revision
            bindings, policies = await tx.bindings_since(since), await tx.staleness_policies_since(since)
            return _News(revision, bindings, policies, await tx.tokens_since(since))

        async with self._refreshing:
            news = await self._store.read(work)
            if news.revision <= self.revision:
                return
            for binding in news.bindings:
                self._bindings.pop((binding.app, binding.environment), None)
                self._bindings[binding.app, binding.environment] = binding
            self.tokens |= {token.token_id: token for token in news.tokens}
            if news.policies:
                self._policies |= {policy.environment: policy for policy in news.policies}
                limits = (policy.max_staleness for policy in self._policies.values() if policy.max_staleness)
                self.shortest_staleness_seconds = min((limit.total_seconds() for limit in limits), default=math.inf)
            self.revision = news.revision
        self._wake_all()

    async def catch_up(self) -> None:
        """As refresh(), for who has just changed something: a store that cannot be read right now is followed later, as ever."""
        try:
            await self.refresh()
        except StoreUnavailable as error:
            log.warning("cannot read what was just changed; it is followed later", error=error.message)
            self._doorbell.set()

    def _wake_all(self) -> None:
        for watcher in self._watchers:
            watcher.wake()

    async def _tick(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            if tick % TICKS_BETWEEN_LOOKS == 0:
                # A store in a file tells nobody of what another process writes, such as a first token.
                self._doorbell.set()
            for watcher in self._watchers:
                watcher.tick(now)

    async def _follow(self) -> None:
        delay, longest = RETRY_SECONDS
        while True:
            await self._doorbell.wait()
            self._doorbell.clear()
            try:
                await self.refresh()
                delay = RETRY_SECONDS[0]
            except StoreUnavailable as error:
                log.warning("cannot read changes; trying again", error=error.message, retry_seconds=round(delay, 1))
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
                delay = min(delay * 2, longest)
                self._doorbell.set()
