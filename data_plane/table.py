"""What this gateway serves: one immutable table, replaced as a whole by one assignment, so that bindings of one revision flip together."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from data_plane.loaded import LoadedRelease

Key = tuple[str, str]
"""(app, environment)"""


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A binding as the control plane told it."""

    app: str
    environment: str
    release: str
    digest: str
    revision: int

    @property
    def key(self) -> Key:
        """(app, environment)"""
        return self.app, self.environment


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """A release that is served, under the binding that made it so."""

    bound: Bound
    loaded: LoadedRelease
    load_time: datetime


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A binding that this gateway was told to serve and cannot."""

    bound: Bound
    reason: str


class StaleAction(enum.Enum):
    """What to do in an environment that is stale; those of environments.proto."""

    SERVE = "SERVE"
    FLAG = "FLAG"
    UNREADY = "UNREADY"
    REFUSE = "REFUSE"


class Policy(msgspec.Struct, frozen=True):
    """How an environment treats staleness. One that has no limit has no policy."""

    environment: str
    max_staleness_seconds: float
    action: StaleAction


class Role(enum.Enum):
    """What a token allows; those of tokens.proto. NONE is one that is not known here, of a newer control plane."""

    NONE = "NONE"
    VIEWER = "VIEWER"
    DEVELOPER = "DEVELOPER"
    DEPLOYER = "DEPLOYER"
    TRIGGER = "TRIGGER"
    GATEWAY = "GATEWAY"
    ADMIN = "ADMIN"


class RateLimit(msgspec.Struct, frozen=True):
    """Triggers on average, and at once (at least 1)."""

    requests_per_second: float
    burst: int


EVERY: frozenset[str] = frozenset()
"""No limit; one object for all, since each would take 216 bytes."""


# There may be thousands: Python shall not look through them for cycles, which took 7 % of a trigger's time with 10,000.
class Verifier(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What is known of a token. One that was revoked has no secret_hash and stays: that there were tokens closes the doors for good.

    Empty `apps`, `environments`, `endpoints`: all. `expire_time` is a time.time().
    """

    token_id: str
    secret_hash: bytes
    role: Role
    apps: frozenset[str] = EVERY
    environments: frozenset[str] = EVERY
    endpoints: frozenset[str] = EVERY
    rate_limit: RateLimit | None = None
    expire_time: float | None = None

    def covers(self, app: str, environment: str, endpoint: str) -> bool:
        """Whether its limits leave this one in."""
        return (
            (not self.apps or app in self.apps)
            and (not self.environments or environment in self.environments)
            and (not self.endpoints or endpoint in self.endpoints)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything at one revision. `synced` is False until a control plane, or a copy from disk, has said what is bound."""

    revision: int = 0
    store_id: str = ""
    synced: bool = False
    active: Mapping[Key, Active] = field(default_factory=dict)
    rejected: Mapping[Key, Rejected] = field(default_factory=dict)
    standby: Mapping[Key, tuple[Active, ...]] = field(default_factory=dict)
    """Releases that were served before and are still compiled, newest first: rollbacks and pins find them here."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    """By environment."""

    tokens: Mapping[str, Verifier] = field(default_factory=dict)
    """By token_id."""

    only_app: str = field(init=False)
    """Of triggers that name none; empty when there are several apps, or none."""

    def __post_init__(self) -> None:
        apps = {app for app, _ in (*self.active, *self.rejected)}
        object.__setattr__(self, "only_app", apps.pop() if len(apps) == 1 else "")

    @property
    def ready(self) -> bool:
        """Whether something is served for everything that is bound."""
        return self.synced and all(key in self.active for key in self.rejected)

    def told_revision(self, key: Key) -> int:
        """At which the binding was set that was told last for the key, served or rejected; 0 when none is."""
        rejected, active = self.rejected.get(key), self.active.get(key)
        return max(rejected.bound.revision if rejected else 0, active.bound.revision if active else 0)

    def held(self) -> dict[str, LoadedRelease]:
        """Every compiled release of this table, by digest."""
        found = {active.loaded.digest: active.loaded for active in self.active.values()}
        for actives in self.standby.values():
            found.update({active.loaded.digest: active.loaded for active in actives})
        return found
