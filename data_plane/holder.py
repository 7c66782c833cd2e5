"""Owns what triggers read: the table, and every release that is compiled. Flips it, in one assignment.

A flip needs no waiting: everything that it needs has been compiled before (loading.py), or is known to be unusable here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import msgspec
import structlog

from data_plane.loaded import LoadedRelease
from data_plane.table import Active, Bound, Key, Policy, Rejected, Table, Verifier
from pointsman.errors import Behind

# What was served before stays compiled, so that a rollback is a message, not a transfer.
STANDBY_RELEASES = 3
STANDBY_BYTES = 256 * 1024 * 1024
# Compiled for a deploy that may come. Two of the largest DeployMany.
PREPARED_RELEASES = 1000
PREPARED_BYTES = 256 * 1024 * 1024

log = structlog.get_logger()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a control plane told: the bindings to flip to, all at once.

    A binding with an empty release is gone. `unusable` has, by digest, why a release cannot be run here: the release before it goes
    on. `policies` has those that are new, by environment, None where there is no limit any more. `complete`: what is not named is gone.
    """

    revision: int
    store_id: str
    bindings: Sequence[Bound]
    unusable: Mapping[str, str]
    policies: Mapping[str, Policy | None] = {}
    complete: bool = False


class Holder:
    """`table` and `held` are replaced, never changed; whoever reads one of them once has a consistent view."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.table = Table()
        self.held: Mapping[str, LoadedRelease] = {}
        """Every compiled release, by digest: a flip to one of these needs no waiting."""
        self.loading: set[str] = set()
        """Digests on their way in: their copies on disk are in use."""
        self._clock = clock
        # Compiled and not in the table, oldest first.
        self._prepared: dict[str, LoadedRelease] = {}
        self._flipped = asyncio.Event()

    def keep(self, loaded: LoadedRelease) -> None:
        """Holds a compiled release for a flip that may come. The oldest of those that wait go when they are too many or too large."""
        self._prepared.pop(loaded.digest, None)
        self._prepared[loaded.digest] = loaded
        size = sum(known.size_bytes for known in self._prepared.values())
        while len(self._prepared) > PREPARED_RELEASES or (size > PREPARED_BYTES and len(self._prepared) > 1):
            oldest = next(iter(self._prepared))
            size -= self._prepared.pop(oldest).size_bytes
        self._set(self.table)

    def flip(self, change: Change) -> None:
        """Serves the change from now on. Everything in it is held, or unusable."""
        self._set(_changed(self.table, change, self.held, self._clock()))
        self._flipped.set()
        self._flipped = asyncio.Event()

    def take_tokens(self, verifiers: Iterable[Verifier], *, complete: bool) -> None:
        """Judges callers by these too from now on; `complete`: by no others."""
        known = {} if complete else self.table.tokens
        self.table = replace(self.table, tokens={**known, **{verifier.token_id: verifier for verifier in verifiers}})

    def restore(self, table: Table) -> None:
        """Starts from a table that was kept on disk."""
        self._set(table)

    def add_standby(self, known: Active) -> None:
        """A release that was served before the process started, compiled again; the oldest of its binding."""
        key = known.bound.key
        active, kept = self.table.active.get(key), self.table.standby.get(key, ())
        if active is None or known.bound.digest in {active.bound.digest, *(other.bound.digest for other in kept)}:
            return
        self._set(replace(self.table, standby={**self.table.standby, key: (*kept, known)[:STANDBY_RELEASES]}))

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

    def _set(self, table: Table) -> None:
        self.table = table
        in_table = table.held()
        for digest in in_table.keys() & self._prepared.keys():
            del self._prepared[digest]
        self.held = {**self._prepared, **in_table}


def _changed(table: Table, change: Change, held: Mapping[str, LoadedRelease], now: datetime) -> Table:
    """The table with the change made; what was active before is kept compiled, as far as the limits allow."""
    active, standby, rejected = dict(table.active), dict(table.standby), dict(table.rejected)
    if change.complete:
        for key in {*active, *rejected} - {bound.key for bound in change.bindings}:
            _forget(key, active, standby, rejected)
    for bound in change.bindings:
        key = bound.key
        if bound.revision < table.told_revision(key):
            log.error(
                "an update is older than what was told before, and is not taken",
                app=bound.app,
                environment=bound.environment,
                revision=bound.revision,
                told=table.told_revision(key),
            )
        elif not bound.release:
            _forget(key, active, standby, rejected)
        elif bound.digest not in held:
            reason = f"release {bound.release} of {bound.app} in {bound.environment}: {change.unusable[bound.digest]}"
            log.warning("a release cannot be served here; the one before it goes on", reason=reason, serves=_serves(active.get(key)))
            rejected[key] = Rejected(bound=bound, reason=reason)
        else:
            rejected.pop(key, None)
            _activate(Active(bound=bound, loaded=held[bound.digest], load_time=now), active, standby)
    _limit_bytes(standby, active)
    return replace(
        table,
        revision=max(table.revision, change.revision),
        store_id=change.store_id,
        synced=True,
        active=active,
        rejected=rejected,
        standby=standby,
        policies=_policies({} if change.complete else table.policies, change.policies),
    )


def _policies(known: Mapping[str, Policy], new: Mapping[str, Policy | None]) -> Mapping[str, Policy]:
    return {environment: policy for environment, policy in {**known, **new}.items() if policy is not None}


def _activate(new: Active, active: dict[Key, Active], standby: dict[Key, tuple[Active, ...]]) -> None:
    key = new.bound.key
    before = active.get(key)
    if before is not None and before.bound == new.bound:
        return
    active[key] = new
    if before is not None:
        digests = {new.bound.digest, before.bound.digest}
        kept = [known for known in (before,) if known.bound.digest != new.bound.digest]
        kept += [known for known in standby.get(key, ()) if known.bound.digest not in digests]
        standby[key] = tuple(kept[:STANDBY_RELEASES])


def _forget(key: Key, active: dict[Key, Active], standby: dict[Key, tuple[Active, ...]], rejected: dict[Key, Rejected]) -> None:
    active.pop(key, None)
    standby.pop(key, None)
    rejected.pop(key, None)


def _serves(active: Active | None) -> str:
    return active.bound.release if active else ""


def _limit_bytes(standby: dict[Key, tuple[Active, ...]], active: Mapping[Key, Active]) -> None:
    """Drops those furthest back, of any binding, until what only the standby holds is within the limit."""
    serving = {known.loaded.digest for known in active.values()}
    uses: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for kept in standby.values():
        for known in kept:
            if known.loaded.digest not in serving:
                uses[known.loaded.digest] = uses.get(known.loaded.digest, 0) + 1
                sizes[known.loaded.digest] = known.loaded.size_bytes
    excess = sum(sizes.values()) - STANDBY_BYTES
    if excess <= 0:
        return
    furthest_first = sorted(
        ((at, known) for kept in standby.values() for at, known in enumerate(kept)), key=lambda item: item[0], reverse=True
    )
    for _, known in furthest_first:
        if excess <= 0:
            return
        digest, key = known.loaded.digest, known.bound.key
        if digest in uses:
            standby[key] = tuple(other for other in standby[key] if other is not known)
            uses[digest] -= 1
            excess -= 0 if uses[digest] else sizes[digest]
