"""The live bindings in memory, and who is told when they change.

Level-triggered: a watcher holds no queue, only the revision up to which it has been told. When woken it takes whatever is newer,
so the latest wins, a slow or stuck watcher costs one integer, and any revision can be resumed from. The store is the truth; a
change is read back from it after its commit, whoever made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Collection

import structlog

from control_plane.model import Binding
from control_plane.storage.base import ReadTransaction, Store
from pointsman.errors import StoreUnavailable

RETRY_SECONDS = (0.1, 5.0)

log = structlog.get_logger()


class Watcher:
    """One reader of the hub. `wake` is set whenever there may be something new for it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Waits until woken since the last wait; False when the seconds are over first."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True


class Hub:
    """All bindings, as of `revision`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = 0
        self.closing = False
        # In the order of their revisions, oldest first: what is newer than a revision is at the end.
        self._bindings: dict[tuple[str, str], Binding] = {}
        self._watchers: set[Watcher] = set()
        self._doorbell = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the present state and follows the store from then on."""
        await self.refresh()
        self._store.on_change(self._doorbell.set)
        self._task = asyncio.create_task(self._follow(), name="hub")

    async def close(self) -> None:
        """Wakes every watcher, which then sees `closing`, and stops following."""
        self.closing = True
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @contextlib.asynccontextmanager
    async def watcher(self) -> AsyncIterator[Watcher]:
        """A watcher that is forgotten at the end. The hub is as new then as anything acknowledged before."""
        await self.refresh()
        watcher = Watcher(self)
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

    async def refresh(self) -> None:
        """Takes what the store has newer, and wakes the watchers when there is something. Raises StoreUnavailable."""

        async def work(tx: ReadTransaction) -> tuple[int, list[Binding]]:
            revision = await tx.revision()
            return revision, await tx.bindings_since(self.revision) if revision > self.revision else []

        async with self._refreshing:
            revision, bindings = await self._store.read(work)
            if revision <= self.revision:
                return
            for binding in bindings:
                self._bindings.pop((binding.app, binding.environment), None)
                self._bindings[binding.app, binding.environment] = binding
            self.revision = revision
        self._wake_all()

    def _wake_all(self) -> None:
        for watcher in self._watchers:
            watcher.wake()

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
