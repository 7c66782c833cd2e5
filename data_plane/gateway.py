"""The use case of a gateway: which release a trigger runs on, and running it. Knows neither gRPC nor HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from data_plane.holder import Holder
from data_plane.loaded import LoadedEndpoint
from data_plane.pipeline import Run, Trigger, run
from data_plane.steps.base import Clients
from data_plane.table import Active, Table
from pointsman.errors import (
    EndpointNotFound,
    InvalidField,
    InvalidInput,
    NoReleaseDeployed,
    NotSynced,
    PointsmanError,
    ReleaseNotLoaded,
    ShuttingDown,
    TooMany,
    Violation,
    did_you_mean,
    near,
)
from pointsman.ids import new_id

MAX_FENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trigger as it came through a door. Empty `app`, `environment`, `release`: not named; `method` is None through gRPC."""

    endpoint: str
    input: Any
    app: str = ""
    environment: str = ""
    release: str = ""
    min_revision: int = 0
    method: str | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What ran, and what it gave."""

    execution_id: str
    active: Active
    output: Any


class Gateway:
    """Runs triggers on what the holder holds."""

    def __init__(self, holder: Holder, clients: Clients, gateway_id: str, default_environment: str, control_plane: str) -> None:
        self.gateway_id = gateway_id
        self.default_environment = default_environment
        self._holder = holder
        self._clients = clients
        self._control_plane = control_plane
        self._running: dict[tuple[str, str, str], int] = {}
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.unready = False
        """Load balancers shall send no more; what comes is still served."""
        self.draining = False
        """Nothing new is served."""

    async def trigger(self, asked: Asked) -> Answer:
        """Runs one endpoint, wholly on the release that is active when it starts.

        Raises:
            PointsmanError: any reason that TriggerService.Trigger documents; `metadata` has the execution_id.
        """
        execution_id = new_id()
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._trigger(asked, execution_id)
        except PointsmanError as error:
            error.metadata.setdefault("execution_id", execution_id)
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drained(self, seconds: float) -> bool:
        """Waits until nothing runs any more; False when the seconds are over first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _trigger(self, asked: Asked, execution_id: str) -> Answer:
        started = time.monotonic()
        if self.draining:
            raise ShuttingDown("This gateway is shutting down; another will answer.")
        if asked.min_revision > self._holder.table.revision and self._holder.table.synced:
            left = MAX_FENCE_SECONDS if asked.seconds_left is None else asked.seconds_left
            await self._holder.wait_for(asked.min_revision, min(left, MAX_FENCE_SECONDS))
        active = self._find(asked, self._holder.table)
        endpoint = _endpoint(active, asked)
        given = _typed(asked.input, endpoint) if asked.method == "GET" else asked.input
        _check_input(endpoint, active, given)
        bound = active.bound
        seconds = endpoint.timeout_seconds if asked.seconds_left is None else min(endpoint.timeout_seconds, asked.seconds_left)
        trigger = Trigger(
            execution_id=execution_id,
            app=bound.app,
            environment=bound.environment,
            release=bound.release,
            input=given,
            deadline=started + seconds,
        )
        if not endpoint.max_concurrency:
            output = await run(endpoint, Run(trigger, self._clients))
        else:
            output = await self._limited(endpoint, active, trigger)
        return Answer(execution_id=execution_id, active=active, output=output)

    async def _limited(self, endpoint: LoadedEndpoint, active: Active, trigger: Trigger) -> Any:
        """Refuses what is more than the endpoint's max_concurrency at the same time."""
        key = (*active.bound.key, endpoint.path)
        if self._running.get(key, 0) >= endpoint.max_concurrency:
            raise TooMany(
                f"Endpoint {endpoint.path!r} runs {endpoint.max_concurrency} triggers at a time on this gateway, and they are all taken; "
                "try again later.",
                limit=endpoint.max_concurrency,
                given=endpoint.max_concurrency + 1,
                endpoint=endpoint.path,
                retry_after_seconds=1.0,
            )
        self._running[key] = self._running.get(key, 0) + 1
        try:
            return await run(endpoint, Run(trigger, self._clients))
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    def _find(self, asked: Asked, table: Table) -> Active:
        """The release to run on, captured once from one table."""
        if not table.synced:
            raise NotSynced(
                f"Gateway {self.gateway_id!r} has not heard yet what to serve. Is the control plane at {self._control_plane} running?",
                gateway_id=self.gateway_id,
                control_plane=self._control_plane,
            )
        environment = asked.environment or self.default_environment
        app = asked.app or self._only_app(table)
        active = table.active.get((app, environment))
        if active is None:
            rejected = table.rejected.get((app, environment))
            if rejected is not None:
                raise ReleaseNotLoaded(
                    f"Release {rejected.bound.release!r} is bound here, but this gateway cannot run it: {rejected.reason}. "
                    "Fix that, or deploy another release.",
                    app=app,
                    environment=environment,
                    release=rejected.bound.release,
                    loaded="",
                    cause=rejected.reason,
                )
            raise NoReleaseDeployed(app, environment)
        if not asked.release or asked.release == active.bound.release:
            return active
        return _pinned(asked.release, active, table.standby.get((app, environment), ()))

    def _only_app(self, table: Table) -> str:
        """Of a trigger that names none."""
        apps = {app for app, _ in (*table.active, *table.rejected)}
        if len(apps) == 1:
            return apps.pop()
        there = f"this gateway serves {', '.join(sorted(apps))}" if apps else "this gateway serves no app yet; deploy a release first"
        raise InvalidField([Violation("app", f"absent, and {there}; name it in app, or in the header X-App")])


def _pinned(release: str, active: Active, standby: Collection[Active]) -> Active:
    for known in standby:
        if known.bound.release == release:
            return known
    loaded = [active.bound.release, *(known.bound.release for known in standby)]
    raise ReleaseNotLoaded(
        f"Release {release!r} is not loaded here for app {active.bound.app!r} in {active.bound.environment!r}; loaded are "
        f"{', '.join(loaded)}. Deploy it, or drop the pin.",
        app=active.bound.app,
        environment=active.bound.environment,
        release=release,
        loaded=loaded,
    )


def _endpoint(active: Active, asked: Asked) -> LoadedEndpoint:
    endpoints = active.loaded.endpoints
    path = asked.endpoint.removeprefix("/")
    endpoint = endpoints.get(path)
    bound = active.bound
    if endpoint is not None and asked.method in (None, endpoint.method):
        return endpoint
    metadata: dict[str, Any] = {"app": bound.app, "environment": bound.environment, "release": bound.release, "endpoint": path}
    if endpoint is not None:
        message = f"Endpoint {path!r} takes {endpoint.method}, not {asked.method}."
        raise EndpointNotFound(message, method=endpoint.method, near=[], **metadata)
    there = did_you_mean(path, endpoints) or (f" There are {', '.join(sorted(endpoints)[:5])}." if endpoints else " It has none.")
    raise EndpointNotFound(
        f"Release {bound.release!r} of app {bound.app!r} has no endpoint {path!r}.{there}", near=near(path, endpoints), **metadata
    )


def _typed(query: dict[str, Any], endpoint: LoadedEndpoint) -> dict[str, Any]:
    """A query has only text: what the schema calls a number, an integer or a boolean becomes one, if it reads as one."""
    properties = endpoint.schema.source.get("properties", {}) if endpoint.schema else {}
    typed = {}
    for name, text in query.items():
        schema = properties.get(name)
        wanted = schema.get("type") if isinstance(schema, dict) else None
        value: Any = text
        if wanted in ("integer", "number", "boolean") and isinstance(text, str):
            with contextlib.suppress(msgspec.DecodeError):
                value = msgspec.json.decode(text, type=int | float | bool)
        elif wanted == "array" and isinstance(text, str):
            value = [text]
        typed[name] = value
    return typed


def _check_input(endpoint: LoadedEndpoint, active: Active, given: Any) -> None:
    if not isinstance(given, dict):
        violations = [Violation("", f"the input is {_JSON_NAMES.get(type(given), 'null')}, and must be a JSON object")]
    else:
        violations = endpoint.schema.violations(given) if endpoint.schema else []
    if violations:
        bound = active.bound
        raise InvalidInput(violations, app=bound.app, environment=bound.environment, release=bound.release, endpoint=endpoint.path)


_JSON_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}
