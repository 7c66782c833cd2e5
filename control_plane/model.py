"""The nouns of the control plane: frozen values, no I/O. Times are aware datetimes in UTC."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec


def digest_of(snapshot: bytes) -> str:
    """`sha256:` and 64 hex digits: the identity of a snapshot everywhere."""
    return "sha256:" + hashlib.sha256(snapshot).hexdigest()


class App(msgspec.Struct, frozen=True, kw_only=True):
    """What is released. `draft_version` is 0, and `draft_update_time` None, while the draft is still empty."""

    app: str
    description: str
    create_time: datetime
    created_by: str
    draft_version: int = 0
    draft_update_time: datetime | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An app's working configuration: the bytes that a release of it would have."""

    config: bytes
    version: int
    update_time: datetime | None


class StaleAction(enum.Enum):
    """What a gateway does that has not heard of the control plane for longer than it may."""

    SERVE = "SERVE"
    FLAG = "FLAG"
    UNREADY = "UNREADY"
    REFUSE = "REFUSE"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """A name that traffic asks for. `max_staleness` is None where gateways are never stale."""

    environment: str
    description: str
    create_time: datetime
    created_by: str
    max_staleness: timedelta | None = None
    stale_action: StaleAction = StaleAction.SERVE


class StalenessPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What gateways are told of an environment, set at `revision`. Kept when the environment is gone, without a limit."""

    environment: str
    revision: int
    max_staleness: timedelta | None = None
    stale_action: StaleAction = StaleAction.SERVE


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot's name and origin; the bytes are kept by digest."""

    app: str
    tag: str
    description: str
    digest: str
    size_bytes: int
    create_time: datetime
    created_by: str


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a release that was pruned: the record that it was there, and what it held."""

    app: str
    tag: str
    digest: str
    size_bytes: int
    prune_time: datetime
    pruned_by: str


class ReleaseState(enum.Enum):
    """Where a release stands; derived from bindings, never stored."""

    READY = "READY"
    DEPLOYED = "DEPLOYED"
    SUPERSEDED = "SUPERSEDED"


class Action(enum.Enum):
    """How a binding came about."""

    DEPLOY = "DEPLOY"
    PROMOTE = "PROMOTE"
    ROLLBACK = "ROLLBACK"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the append-only history of a binding.

    `beneath` is the deployment_id that a rollback from this one walks back to, empty when there is none. Deploying puts the new
    entry on top of the live one; rolling back puts the *target's* beneath under the new entry, so that walking back never
    returns to what was left.
    """

    deployment_id: str
    app: str
    environment: str
    action: Action
    release: str
    digest: str
    previous_release: str
    revision: int
    actor: str
    reason: str
    create_time: datetime
    forced: bool = False
    beneath: str = ""


class Unbinding(msgspec.Struct, frozen=True, kw_only=True):
    """A binding was removed, with its environment."""

    revision: int
    unbind_time: datetime


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """(app, environment) -> the deployment that is live there since `revision`; `deployment` is None when the binding is gone."""

    app: str
    environment: str
    revision: int
    deployment: Deployment | None


class RememberedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer to a `request_id`. `fingerprint` hashes method and body; `answer` is the serialised response."""

    caller: str
    request_id: str
    fingerprint: str
    answer: bytes
    create_time: datetime


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A release that is going to be bound."""

    app: str
    environment: str
    release: str
    digest: str


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A release that a gateway cannot run, and why."""

    app: str
    environment: str
    digest: str
    reason: str

    def why_not(self, binding: Binding) -> str | None:
        """The reason, if it is this binding's release that was refused."""
        live = binding.deployment
        same = live is not None and (self.app, self.environment, self.digest) == (binding.app, binding.environment, live.digest)
        return self.reason if same else None


class Prepare(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a gateway to get targets ready; answered under `prepare_id`."""

    prepare_id: str
    targets: tuple[Target, ...]


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the connected gateways that subscribe to a change serve it, on all replicas."""

    revision: int
    total: int
    applied: int
    pending: list[str]
    rejected: list[tuple[str, str]]
    seconds: float


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of itself in Hello."""

    gateway_id: str
    instance_id: str
    version: str
    apps: frozenset[str]
    environments: frozenset[str]
    peer: str
    uptime_seconds: float | None = None
    """When its stream was opened; None when it did not say."""

    @property
    def key(self) -> tuple[str, str]:
        """Tells it from other processes, also from those that were given the same name; lists are in this order."""
        return self.gateway_id, self.instance_id


class GatewayInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway process as its replica of the control plane knows it."""

    identity: Identity
    connected: bool
    connect_time: datetime
    last_heard_time: datetime
    revision: int
    rejections: tuple[Rejection, ...]

    @property
    def start_time(self) -> datetime | None:
        """Of its process, by our clock; None when it did not say."""
        uptime = self.identity.uptime_seconds
        return None if uptime is None else self.connect_time - timedelta(seconds=uptime)

    def rejection_of(self, binding: Binding) -> str | None:
        """Why it does not serve this binding, if it said so."""
        return next((reason for rejection in self.rejections if (reason := rejection.why_not(binding)) is not None), None)


class Role(enum.Enum):
    """What a token allows; those of tokens.proto."""

    VIEWER = "VIEWER"
    DEVELOPER = "DEVELOPER"
    DEPLOYER = "DEPLOYER"
    TRIGGER = "TRIGGER"
    GATEWAY = "GATEWAY"
    ADMIN = "ADMIN"


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Triggers to each gateway, on average and at once (0: as many as in one second)."""

    requests_per_second: float
    burst: int


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants to change what, and from where, as the audit log tells it. `detail` is JSON."""

    actor: str
    token_id: str = ""
    peer: str = ""
    method: str
    app: str = ""
    environment: str = ""
    detail: str = ""
    reason: str = ""


class AuditEntry(Attempt, frozen=True, kw_only=True):
    """What became of an attempt: done, or refused `count` times. The store gives it position and hash; see pointsman.audit."""

    position: int = 0
    entry_time: datetime
    before_revision: int = 0
    revision: int = 0
    outcome: str
    message: str = ""
    count: int = 1
    hash: bytes = b""


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are wanted; empty: all. The outcome `REFUSED` is all but `OK`; an `actor` is a name or a token_id."""

    app: str = ""
    environment: str = ""
    actor: str = ""
    method: str = ""
    outcome: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a secret allows whose SHA-256 is `secret_hash`; empty `apps`, `environments`, `endpoints`: all.

    One that was revoked has no secret_hash. `revision` is that at which it was made or revoked.
    """

    token_id: str
    secret_hash: bytes = field(repr=False)
    name: str
    role: Role
    apps: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None
    expire_time: datetime | None = None
    create_time: datetime
    created_by: str
    revision: int
    revoke_time: datetime | None = None
    last_used_time: datetime | None = None
