"""The use case of a gateway: running a trigger on the release that is active when it starts. Knows neither gRPC nor HTTP."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from data_plane.events import Emit, Event
from data_plane.holder import Holder
from data_plane.limits import Limits
from data_plane.loaded import LoadedEndpoint
from data_plane.lookup import Asked, Here, find_endpoint, find_release
from data_plane.pipeline import Run, Trigger, run
from data_plane.staleness import Staleness
from data_plane.steps.base import Clients
from data_plane.table import Active
from pointsman.errors import InvalidInput, PointsmanError, Violation
from pointsman.ids import new_id

MAX_FENCE_SECONDS = 2.0
_JSON_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What ran, and what it gave. `stale_seconds`: how long ago the control plane was last heard, where that is to be told."""

    execution_id: str
    active: Active
    output: Any
    stale_seconds: int | None = None


class Gateway:
    """Runs triggers on what the holder holds."""

    def __init__(
        self, holder: Holder, staleness: Staleness, clients: Clients, gateway_id: str, default_environment: str, control_plane: str
    ) -> None:
        self.gateway_id = gateway_id
        self.unready = False
        """Load balancers shall send no more; what comes is still served."""
        self._here = Here(gateway_id=gateway_id, default_environment=default_environment, control_plane=control_plane)
        self._holder = holder
        self._staleness = staleness
        self._clients = clients
        self._limits = Limits()
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """How many triggers run now, or wait for their turn."""
        return self._in_flight

    async def trigger(self, asked: Asked, emit: Emit | None = None) -> Answer:
        """Runs one endpoint, wholly on one release. A caller that is cancelled leaves no step running.

        With `emit` it tells how it goes, from execution_started, once nothing stands in the way of a start, to the last step.

        Raises:
            PointsmanError: any reason that TriggerService.Trigger documents; its metadata say which execution it was, where, and once
                a release was found, of what.
        """
        execution_id = new_id()
        active: Active | None = None
        stale_seconds: int | None = None
        self._in_flight += 1
        try:
            started = time.monotonic()
            if asked.min_revision > self._holder.table.revision and self._holder.table.synced:
                left = MAX_FENCE_SECONDS if asked.seconds_left is None else asked.seconds_left
                await self._holder.wait_for(asked.min_revision, min(left, MAX_FENCE_SECONDS))
            if self._staleness.stale:
                stale_seconds = self._staleness.admit(asked.environment or self._here.default_environment)
                emit = _flagging(emit, stale_seconds)
            active = find_release(asked, self._holder.table, self._here)
            output = await self._run(asked, active, execution_id, started, emit)
            return Answer(execution_id=execution_id, active=active, output=output, stale_seconds=stale_seconds)
        except PointsmanError as error:
            self._attribute(error, execution_id, active)
            if stale_seconds is not None:
                error.metadata.setdefault("stale_seconds", str(stale_seconds))
            raise
        finally:
            self._in_flight -= 1

    async def _run(self, asked: Asked, active: Active, execution_id: str, started: float, emit: Emit | None) -> Any:
        endpoint = find_endpoint(asked, active)
        given = _typed(asked.input, endpoint) if asked.method == "GET" else asked.input
        _check_input(endpoint, given)
        seconds = endpoint.timeout_seconds if asked.seconds_left is None else min(endpoint.timeout_seconds, asked.seconds_left)
        trigger = Trigger(
            execution_id=execution_id,
            app=active.bound.app,
            environment=active.bound.environment,
            release=active.bound.release,
            input=given,
            deadline=started + seconds,
        )
        running = Run(trigger, self._clients, emit=emit)
        if endpoint.max_concurrency:
            async with self._limits.turn(endpoint, trigger.app, trigger.environment, trigger.deadline):
                return await self._begin(endpoint, active, running)
        return await self._begin(endpoint, active, running)

    async def _begin(self, endpoint: LoadedEndpoint, active: Active, running: Run) -> Any:
        if running.emit is not None:
            running.emit(Event("execution_started", self._described(active, running.trigger.execution_id)))
        return await run(endpoint, running)

    def _described(self, active: Active, execution_id: str) -> dict[str, Any]:
        """What ran, as every answer tells it."""
        bound = active.bound
        return {
            "execution_id": execution_id,
            "app": bound.app,
            "environment": bound.environment,
            "release": bound.release,
            "digest": bound.digest,
            "revision": bound.revision,
            "gateway_id": self.gateway_id,
        }

    def _attribute(self, error: PointsmanError, execution_id: str, active: Active | None) -> None:
        known = {"execution_id": execution_id, "gateway_id": self.gateway_id}
        for key, value in (known if active is None else self._described(active, execution_id)).items():
            error.metadata.setdefault(key, str(value))


def _flagging(emit: Emit | None, stale_seconds: int | None) -> Emit | None:
    """The first event, too, says how stale its answer is."""
    if emit is None or stale_seconds is None:
        return emit

    def flagged(event: Event) -> None:
        event.stale_seconds = stale_seconds
        emit(event)

    return flagged


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


def _check_input(endpoint: LoadedEndpoint, given: Any) -> None:
    if not isinstance(given, dict):
        violations = [Violation("", f"the input is {_JSON_NAMES.get(type(given), 'null')}, and must be a JSON object")]
    else:
        violations = endpoint.schema.violations(given) if endpoint.schema else []
    if violations:
        raise InvalidInput(violations, endpoint=endpoint.path)
