"""Gets releases ready and flips to them: the only writer of the table that triggers read.

A flip to a release that is compiled already is one assignment, made where the message arrives. Everything else (fetch, verify,
compile) happens before, beside the triggers: fetching once for each digest, compiling on a worker thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import structlog

from data_plane.loaded import LoadedRelease, ReleaseUnusableError, compile_release
from data_plane.secrets import Secrets
from data_plane.table import Active, Bound, Key, Rejected, Table
from pointsman.errors import Behind

Fetch = Callable[[str], Awaitable[bytes]]
"""digest -> bytes. Raises ReleaseUnusableError when they are not to be had, and whatever the connection raises when it broke."""


class Blobs(Protocol):
    """Where snapshots are kept between two lives of the process."""

    def read_blob(self, digest: str) -> bytes | None:
        """The snapshot, if it is there and whole. May block."""

    def write_blob(self, digest: str, data: bytes) -> None:
        """Keeps a verified snapshot. May block; raises OSError."""


STANDBY_RELEASES = 3
STANDBY_BYTES = 256 * 1024 * 1024
PREPARED_RELEASES = 16

log = structlog.get_logger()


class Holder:
    """Owns the table. `table` is replaced, never changed; whoever reads it once has one consistent view."""

    def __init__(self, secrets: Secrets, clock: Callable[[], datetime], blobs: Blobs | None = None) -> None:
        self.table = Table()
        self._blobs = blobs
        self._secrets = secrets
        self._clock = clock
        # Compiled for a Prepare and not in the table yet, oldest first.
        self._prepared: dict[str, LoadedRelease] = {}
        self._loading: dict[str, asyncio.Task[LoadedRelease]] = {}
        self._flipped = asyncio.Event()

    def held(self) -> dict[str, LoadedRelease]:
        """Every compiled release, by digest: a flip to one of these needs no waiting."""
        return {**self._prepared, **self.table.held()}

    def wanted(self) -> set[str]:
        """Digests that are held or being loaded."""
        return {*self.held(), *self._loading}

    async def prepare(self, wanted: Sequence[Bound], fetch: Fetch) -> list[Rejected]:
        """Gets releases ready for a flip that may come; those that cannot be run here are told."""
        rejected = []
        for bound in wanted:
            try:
                self._prepared[bound.digest] = await self._get(bound.digest, fetch)
            except ReleaseUnusableError as error:
                rejected.append(Rejected(bound=bound, reason=_reason(bound, error)))
        for digest in list(self._prepared)[:-PREPARED_RELEASES]:
            del self._prepared[digest]
        return rejected

    async def apply(self, revision: int, bindings: Sequence[Bound], fetch: Fetch) -> None:
        """Flips to the bindings, all at once, and moves the table to the revision.

        A binding with an empty release is gone. One that cannot be run here is rejected: the release before it goes on. When the
        connection breaks while fetching nothing is flipped, and the exception is passed on.
        """
        ready: dict[Key, LoadedRelease] = {}
        rejected: dict[Key, Rejected] = {}
        held = self.held()
        for bound in bindings:
            if not bound.release:
                continue
            try:
                ready[bound.key] = held.get(bound.digest) or await self._get(bound.digest, fetch)
            except ReleaseUnusableError as error:
                rejected[bound.key] = Rejected(bound=bound, reason=_reason(bound, error))
                log.warning("cannot serve a release", app=bound.app, environment=bound.environment, reason=str(error))
        self._flip(_flipped(self.table, revision, bindings, ready, rejected, self._clock()))

    def restore(self, table: Table) -> None:
        """Starts from a table that was kept on disk."""
        self._flip(table)

    def adopt(self, store_id: str) -> None:
        """The table belongs to this store from now on."""
        self.table = replace(self.table, store_id=store_id)

    async def wait_for(self, revision: int, seconds: float) -> None:
        """Until the table has reached the revision, at most so long. Raises Behind."""
        try:
            async with asyncio.timeout(seconds):
                while self.table.revision < revision:
                    await self._flipped.wait()
        except TimeoutError:
            has = self.table.revision
            raise Behind(
                f"This gateway is at revision {has} and has not reached {revision} yet; try again.", asked=revision, has=has
            ) from None

    async def compiled(self, digest: str, snapshot: bytes) -> LoadedRelease:
        """Compiles on a worker thread. Raises ReleaseUnusableError."""
        return await asyncio.to_thread(compile_release, digest, snapshot, self._secrets)

    async def _get(self, digest: str, fetch: Fetch) -> LoadedRelease:
        """The compiled release; fetched and compiled once, however many ask at the same time."""
        found = self.held().get(digest)
        if found is not None:
            return found
        task = self._loading.get(digest)
        if task is None:
            task = self._loading[digest] = asyncio.create_task(self._load(digest, fetch))
            task.add_done_callback(lambda _: self._loading.pop(digest, None))
        return await asyncio.shield(task)

    async def _load(self, digest: str, fetch: Fetch) -> LoadedRelease:
        """From disk if it is there, else fetched, and then kept on disk before anyone is told that it is ready."""
        kept = await asyncio.to_thread(self._blobs.read_blob, digest) if self._blobs else None
        data = await fetch(digest) if kept is None else kept
        loaded = await self.compiled(digest, data)
        if self._blobs and kept is None:
            try:
                await asyncio.to_thread(self._blobs.write_blob, digest, data)
            except OSError as error:
                log.warning("cannot keep a release on disk; a restart would fetch it again", digest=digest, problem=str(error))
        return loaded

    def _flip(self, table: Table) -> None:
        self.table = table
        for digest in table.held():
            self._prepared.pop(digest, None)
        self._flipped.set()
        self._flipped = asyncio.Event()


def _reason(bound: Bound, error: ReleaseUnusableError) -> str:
    return f"release {bound.release} of {bound.app} in {bound.environment}: {error}"


def _flipped(
    table: Table,
    revision: int,
    bindings: Sequence[Bound],
    ready: Mapping[Key, LoadedRelease],
    rejected: Mapping[Key, Rejected],
    now: datetime,
) -> Table:
    """The table with the bindings set; what was active before is kept compiled, as far as the limits allow."""
    active, standby, refused = dict(table.active), dict(table.standby), dict(table.rejected)
    for bound in bindings:
        key = bound.key
        refused.pop(key, None)
        if key in rejected:
            refused[key] = rejected[key]
            continue
        before = active.pop(key, None)
        if not bound.release:
            standby.pop(key, None)
            continue
        active[key] = Active(bound=bound, loaded=ready[key], load_time=now)
        if before is not None:
            kept = [before, *(known for known in standby.get(key, ()) if known.bound.digest != before.bound.digest)]
            standby[key] = tuple(known for known in kept if known.bound.digest != bound.digest)[:STANDBY_RELEASES]
    _limit_bytes(standby)
    return Table(revision=revision, store_id=table.store_id, synced=True, active=active, rejected=refused, standby=standby)


def _limit_bytes(standby: dict[Key, tuple[Active, ...]]) -> None:
    """Drops the oldest ones when all together are larger than the limit."""
    sizes = {known.loaded.digest: known.loaded.size_bytes for kept in standby.values() for known in kept}
    excess = sum(sizes.values()) - STANDBY_BYTES
    if excess <= 0:
        return
    oldest_first = sorted(((known.load_time, key) for key, kept in standby.items() for known in kept), key=lambda item: item[0])
    for _, key in oldest_first:
        if excess <= 0:
            return
        *kept, dropped = standby[key]
        standby[key] = tuple(kept)
        excess -= dropped.loaded.size_bytes
