"""What the state directory says: the table of bindings as bytes with their sum, and the table that it becomes again.

<SHA-256 of the rest, in hex>
{"format": 1, "revision": 57, "store_id": "...", "apps": [], "environments": [], "bindings": [...]}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

import msgspec

from data_plane.loaded import LoadedRelease
from data_plane.table import Active, Bound, Key, Policy, Rejected, StaleAction, Table, Verifier

FORMAT = 1


class UnusableTableError(Exception):
    """The bytes are damaged, or are not ours; the message says which."""


class SavedRelease(msgspec.Struct, frozen=True, array_like=True):
    """A release, and the revision at which it was bound."""

    release: str
    digest: str
    revision: int


class SavedBinding(msgspec.Struct, frozen=True):
    """What was told, what was served when it was written if that was another one, and what stood by, newest first."""

    app: str
    environment: str
    told: SavedRelease
    served: SavedRelease | None = None
    standby: tuple[SavedRelease, ...] = ()

    def serve(self) -> tuple[SavedRelease, ...]:
        """What may be served after a start, best first. What stood by may not: it may have been rolled back from for a reason."""
        return (self.told,) if self.served is None else (self.told, self.served)

    def bound(self, found: SavedRelease) -> Bound:
        """The binding to one of its releases."""
        return Bound(app=self.app, environment=self.environment, release=found.release, digest=found.digest, revision=found.revision)


class SavedPolicy(msgspec.Struct, frozen=True):
    """How an environment treats staleness."""

    environment: str
    max_staleness_seconds: float
    action: StaleAction


class SavedTable(msgspec.Struct, frozen=True):
    """A table, and which part of all bindings the gateway had asked for (empty: all). Older ones have no policies and no tokens."""

    revision: int
    store_id: str
    apps: tuple[str, ...]
    environments: tuple[str, ...]
    bindings: tuple[SavedBinding, ...]
    policies: tuple[SavedPolicy, ...] = ()
    tokens: tuple[Verifier, ...] = ()
    format: int = FORMAT

    def digests(self) -> set[str]:
        """Of every release in it."""
        return {found.digest for binding in self.bindings for found in (*binding.serve(), *binding.standby)}

    def only(self, apps: tuple[str, ...], environments: tuple[str, ...]) -> SavedTable:
        """What of it a gateway needs that asks for these. When it asked for others before, everything is to be told anew."""
        if (sorted(apps), sorted(environments)) == (sorted(self.apps), sorted(self.environments)):
            return self
        wanted = [b for b in self.bindings if (not apps or b.app in apps) and (not environments or b.environment in environments)]
        policies = tuple(policy for policy in self.policies if not environments or policy.environment in environments)
        return SavedTable(0, self.store_id, apps, environments, tuple(wanted), policies, self.tokens)


def to_save(table: Table, apps: tuple[str, ...], environments: tuple[str, ...]) -> SavedTable:
    """What is written of a table."""
    bindings = [_saved(key, table) for key in {**table.active, **table.rejected}]
    policies = [SavedPolicy(p.environment, p.max_staleness_seconds, p.action) for p in table.policies.values()]
    return SavedTable(table.revision, table.store_id, apps, environments, tuple(bindings), tuple(policies), tuple(table.tokens.values()))


def encode(saved: SavedTable) -> bytes:
    """The bytes of a table."""
    return seal(msgspec.json.encode(saved))


def seal(body: bytes) -> bytes:
    """With its sum before it."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(data: bytes) -> bytes:
    """What was sealed. Raises UnusableTableError."""
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise UnusableTableError("it is damaged: its sum is wrong")
    return body


def decode(data: bytes) -> SavedTable:
    """The table of the bytes.

    Raises:
        UnusableTableError: one bit of it is wrong, or another program wrote it.
    """
    try:
        return msgspec.json.decode(unseal(data), type=SavedTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableTableError(f"it is not of this program, or of a newer one: {error}") from error


def restored(saved: SavedTable, loaded: Mapping[str, LoadedRelease], problems: Mapping[str, str], now: datetime) -> Table:
    """The table to start with, of the releases that could be loaded. `problems` has, by digest, why others could not."""
    active: dict[Key, Active] = {}
    rejected: dict[Key, Rejected] = {}
    for binding in saved.bindings:
        key = (binding.app, binding.environment)
        found = next((known for known in binding.serve() if known.digest in loaded), None)
        if found is not None:
            active[key] = Active(bound=binding.bound(found), loaded=loaded[found.digest], load_time=now)
        if found is not binding.told:
            reason = f"release {binding.told.release} of {binding.app} in {binding.environment}: {problems[binding.told.digest]}"
            rejected[key] = Rejected(bound=binding.bound(binding.told), reason=reason)
    policies = {p.environment: Policy(p.environment, p.max_staleness_seconds, p.action) for p in saved.policies}
    return Table(
        revision=saved.revision,
        store_id=saved.store_id,
        synced=True,
        active=active,
        rejected=rejected,
        policies=policies,
        tokens={verifier.token_id: verifier for verifier in saved.tokens},
    )


def _saved(key: Key, table: Table) -> SavedBinding:
    app, environment = key
    active, rejected = table.active.get(key), table.rejected.get(key)
    served = _release(active.bound) if active else None
    standby = tuple(_release(known.bound) for known in table.standby.get(key, ()))
    if rejected is not None:
        return SavedBinding(app, environment, _release(rejected.bound), served, standby)
    assert served is not None, "a key of the table is active, rejected or both"
    return SavedBinding(app, environment, served, None, standby)


def _release(bound: Bound) -> SavedRelease:
    return SavedRelease(bound.release, bound.digest, bound.revision)
