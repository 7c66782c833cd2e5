"""Which release and which endpoint a trigger runs on: one look at one table, so that it is one release from the first step to the last."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NoReturn

import msgspec

from data_plane.loaded import LoadedEndpoint
from data_plane.table import Active, Key, Table
from data_plane.tracing import Trace
from pointsman.errors import (
    Behind,
    EndpointNotFound,
    InvalidField,
    NoReleaseDeployed,
    NotSynced,
    ReleaseNotLoaded,
    Violation,
    did_you_mean,
    near,
)
from pointsman.rules import PATTERNS

MAX_NAMED_ENDPOINTS = 5
_ID = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
_TAG = "^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$"


class Allowance(msgspec.Struct, frozen=True):
    """What is left of a token's rate limit: of so many at once, and in how many seconds all of them are there again."""

    limit: int
    remaining: int
    reset_seconds: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger as it came through a door. Empty `app`, `environment`, `release`: not named; `method` is None through gRPC.

    What is made for every trigger is a Struct and no dataclass: it takes a fifth of the time, and frozen a tenth.
    """

    endpoint: str
    input: Any
    app: str = ""
    environment: str = ""
    release: str = ""
    min_revision: int = 0
    method: str | None = None
    seconds_left: float | None = None
    idempotency_key: str = ""
    token_id: str = ""
    """Of the token that the caller showed."""
    allowance: Allowance | None = None
    """What is left of the token's rate limit."""
    trace: Trace | None = None
    """The caller's span, if it named one."""


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of itself when it refuses."""

    gateway_id: str
    default_environment: str
    control_plane: str


def find_release(asked: Asked, table: Table, here: Here) -> Active:
    """The release to run on.

    A gateway knows only what is bound, not what exists. So an app or environment that it does not know is NO_RELEASE_DEPLOYED, which
    names those that are bound and look alike: whether the id is misspelt or nothing was deployed yet, that is what the caller needs.

    Raises:
        PointsmanError: NotSynced, InvalidField, NoReleaseDeployed, ReleaseNotLoaded, Behind.
    """
    if not table.synced:
        raise NotSynced(
            f"Gateway {here.gateway_id!r} has not heard yet what to serve. Is the control plane at {here.control_plane} running?",
            gateway_id=here.gateway_id,
            control_plane=here.control_plane,
        )
    environment = asked.environment or here.default_environment
    app = asked.app or table.only_app or _no_app(table)
    key = (app, environment)
    active = table.active.get(key)
    if table.rejected and key in table.rejected:
        _check_rejected(asked, table, key)
    if active is None:
        _check_ids(asked)
        raise NoReleaseDeployed(app, environment, bound=table.active)
    if not asked.release or asked.release == active.bound.release:
        return active
    return _pinned(asked.release, active, table.standby.get(key, ()))


def find_endpoint(asked: Asked, active: Active) -> LoadedEndpoint:
    """The endpoint of the release. Raises EndpointNotFound, which names what looks alike, or the method that it takes."""
    endpoints = active.loaded.endpoints
    path = asked.endpoint.removeprefix("/")
    endpoint = endpoints.get(path)
    if endpoint is None:
        there = did_you_mean(path, endpoints) or _named(endpoints)
        release, app = active.bound.release, active.bound.app
        raise EndpointNotFound(
            f"Release {release!r} of app {app!r} has no endpoint {path!r}.{there}", endpoint=path, near=near(path, endpoints)
        )
    if asked.method not in (None, endpoint.method):
        message = f"Endpoint {path!r} takes {endpoint.method}, not {asked.method}."
        raise EndpointNotFound(message, endpoint=path, near=[], method=endpoint.method)
    return endpoint


def _no_app(table: Table) -> NoReturn:
    """A trigger names none. Raises InvalidField."""
    apps = {app for app, _ in (*table.active, *table.rejected)}
    there = f"this gateway serves {', '.join(sorted(apps))}" if apps else "this gateway serves no app yet; deploy a release first"
    raise InvalidField([Violation("app", f"absent, and {there}; name it in app, or in the header X-App")])


def _check_rejected(asked: Asked, table: Table, key: Key) -> None:
    """What is bound cannot be run here. The release before it goes on, but not for who asks for at least the newer one."""
    bound, reason, active = table.rejected[key].bound, table.rejected[key].reason, table.active.get(key)
    if active is None:
        raise ReleaseNotLoaded(
            f"Release {bound.release!r} is bound here, but this gateway cannot run it: {reason}. Fix that, or deploy another release.",
            app=bound.app,
            environment=bound.environment,
            release=bound.release,
            loaded="",
            cause=reason,
        )
    if asked.min_revision >= bound.revision and not asked.release:
        raise Behind(
            f"This gateway serves revision {active.bound.revision} of {bound.app!r} in {bound.environment!r}, older than the "
            f"{asked.min_revision} asked for, since it cannot run what is bound: {reason}. Another gateway may answer.",
            asked=asked.min_revision,
            has=active.bound.revision,
            app=bound.app,
            environment=bound.environment,
            cause=reason,
        )


def _pinned(release: str, active: Active, standby: Collection[Active]) -> Active:
    for known in standby:
        if known.bound.release == release:
            return known
    _check_ids(Asked(endpoint="", input=None, release=release))
    loaded = [active.bound.release, *(known.bound.release for known in standby)]
    raise ReleaseNotLoaded(
        f"Release {release!r} is not loaded here for app {active.bound.app!r} in {active.bound.environment!r}; loaded are "
        f"{', '.join(loaded)}. Deploy it, or drop the pin.",
        app=active.bound.app,
        environment=active.bound.environment,
        release=release,
        loaded=loaded,
    )


def _check_ids(asked: Asked) -> None:
    """Only of what was not found: a name that was found is a good one. Raises InvalidField."""
    rules = (("app", asked.app, _ID), ("environment", asked.environment, _ID), ("release", asked.release, _TAG))
    violations = [
        Violation(field, f"{given[:80]!r} must be {PATTERNS[rule]}") for field, given, rule in rules if given and not re.search(rule, given)
    ]
    if violations:
        raise InvalidField(violations)


def _named(endpoints: Collection[str]) -> str:
    if not endpoints:
        return " It has none."
    more = f" and {len(endpoints) - MAX_NAMED_ENDPOINTS} more" if len(endpoints) > MAX_NAMED_ENDPOINTS else ""
    return f" There are {', '.join(sorted(endpoints)[:MAX_NAMED_ENDPOINTS])}{more}."
