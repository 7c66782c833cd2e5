"""The use case of a gateway: running a trigger on the release that is active when it starts. Knows neither gRPC nor HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from data_plane.events import Emit, Event
from data_plane.holder import Holder
from data_plane.limits import Limits
from data_plane.loaded import LoadedEndpoint
from data_plane.lookup import Asked, Here, find_endpoint, find_release
from data_plane.pipeline import Run, Trigger, run
from data_plane.record import SUCCEEDED, Answer, Record
from data_plane.replays import Replays
from data_plane.staleness import Staleness
from data_plane.steps.base import Clients
from data_plane.table import Active, Table
from data_plane.tracing import CURRENT, EXECUTION_ID, Trace
from pointsman.errors import Internal, InvalidField, InvalidInput, PointsmanError, Violation
from pointsman.ids import new_id
from pointsman.values import has_long_integer

MAX_FENCE_SECONDS = 2.0

log = structlog.get_logger()
_JSON_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}


class Gateway:
    """Runs triggers on what the holder holds."""

    def __init__(
        self,
        holder: Holder,
        staleness: Staleness,
        clients: Clients,
        here: Here,
        *,
        on_end: Callable[[Record], None] = lambda _record: None,
        trace: Callable[[Asked], Trace | None] | None = None,
    ) -> None:
        """`on_end` is told of every trigger, whatever its end; `trace` begins a span for each."""
        self.gateway_id = here.gateway_id
        self.unready = False
        """Load balancers shall send no more; what comes is still served."""
        self.here = here
        self._holder = holder
        self._staleness = staleness
        self._clients = clients
        self._limits = Limits()
        self._on_end = on_end
        self._trace = trace or (lambda asked: asked.trace)
        self._replays = Replays()
        self._in_flight = 0

    @property
    def table(self) -> Table:
        """What it serves now."""
        return self._holder.table

    @property
    def in_flight(self) -> int:
        """How many triggers run now, or wait for their turn."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """How many of them wait for their turn."""
        return self._limits.waiting

    async def trigger(self, asked: Asked, emit: Emit | None = None) -> Answer:
        """Runs one endpoint, wholly on one release. A caller that is cancelled leaves no step running.

        With `emit` it tells how it goes, from execution_started, once nothing stands in the way of a start, to the last step.

        Raises:
            PointsmanError: any reason that TriggerService.Trigger documents; its metadata say which execution it was, where, and once
                a release was found, of what.
        """
        if not asked.idempotency_key:
            return await self._trigger(asked, emit)
        if emit is not None:
            violation = Violation("Idempotency-Key", "a stream cannot be told again; ask without the key, or without streaming")
            error = InvalidField([violation])
            self.refuse(asked, error)
            raise error
        try:
            return await self._replays.once(asked, partial(self._trigger, asked))
        except InvalidField as error:
            if "execution_id" not in error.metadata:
                self.refuse(asked, error)
            raise

    async def _trigger(self, asked: Asked, emit: Emit | None = None) -> Answer:
        record = Record(new_id(), asked, time.time(), trace=self._trace(asked))
        EXECUTION_ID.set(record.execution_id)
        CURRENT.set(record.trace)
        started = time.monotonic()
        self._in_flight += 1
        try:
            if asked.min_revision > self._holder.table.revision and self._holder.table.synced:
                left = MAX_FENCE_SECONDS if asked.seconds_left is None else asked.seconds_left
                await self._holder.wait_for(asked.min_revision, min(left, MAX_FENCE_SECONDS))
            if self._staleness.stale:
                record.stale_seconds = self._staleness.admit(asked.environment or self.here.default_environment)
                emit = _flagging(emit, record.stale_seconds)
            record.active = find_release(asked, self._holder.table, self.here)
            output = record.output = await self._run(record, record.active, started, emit)
            record.outcome = SUCCEEDED
            return Answer(execution_id=record.execution_id, active=record.active, output=output, stale_seconds=record.stale_seconds)
        except PointsmanError as error:
            self._attribute(error, record)
            raise
        except Exception as defect:
            log.exception("a trigger failed", request_id=record.execution_id)
            internal = Internal(record.execution_id)
            self._attribute(internal, record)
            raise internal from defect
        finally:
            self._in_flight -= 1
            record.seconds = time.monotonic() - started
            self._on_end(record)

    def refuse(self, asked: Asked, error: PointsmanError) -> None:
        """A door could not read the trigger: that is on record too, and the error says under which id."""
        record = Record(new_id(), asked, time.time(), trace=self._trace(asked))
        self._attribute(error, record)
        self._on_end(record)

    async def _run(self, record: Record, active: Active, started: float, emit: Emit | None) -> Any:
        asked = record.asked
        endpoint = find_endpoint(asked, active)
        given = _typed(asked.input, endpoint) if asked.method == "GET" else asked.input
        _check_input(endpoint, given)
        seconds = endpoint.timeout_seconds if asked.seconds_left is None else min(endpoint.timeout_seconds, asked.seconds_left)
        trigger = Trigger(
            execution_id=record.execution_id,
            app=active.bound.app,
            environment=active.bound.environment,
            release=active.bound.release,
            input=given,
            deadline=started + seconds,
        )
        running = Run(trigger, self._clients, emit=emit, trace=record.trace)
        if endpoint.max_concurrency:
            async with self._limits.turn(endpoint, trigger.app, trigger.environment, trigger.deadline):
                return await self._begin(endpoint, record, active, running)
        return await self._begin(endpoint, record, active, running)

    async def _begin(self, endpoint: LoadedEndpoint, record: Record, active: Active, running: Run) -> Any:
        record.running = running
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

    def _attribute(self, error: PointsmanError, record: Record) -> None:
        record.ended(error)
        execution_id, active = record.execution_id, record.active
        if record.stale_seconds is not None:
            error.metadata.setdefault("stale_seconds", str(record.stale_seconds))
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
                number = msgspec.json.decode(text, type=int | float | bool)
                # Else it stays text, which the schema refuses.
                value = text if has_long_integer(number) else number
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
