"""Runs a trigger on one loaded release: stages, gates, steps, one deadline, retries. Knows neither gRPC nor HTTP.

A step whose runner needs no waiting costs a call; tasks and timers are made only for those that wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec

from data_plane.events import Emit, output_delta, step_finished, step_started
from data_plane.loaded import LoadedEndpoint, LoadedStage, LoadedStep
from data_plane.steps import StepError
from data_plane.steps.base import Clients, StepContext, Usage, Variables
from data_plane.tracing import Trace, enter_step
from pointsman.errors import PointsmanError, StepFailed, StepTimeout
from pointsman.expressions import Expression, ExpressionError

RETRY_BASE_SECONDS = 0.1
RETRY_MAX_SECONDS = 5.0
# Expressions quote what they are given, and upstreams say what they like.
MAX_CAUSE_CHARS = 2000

SUCCEEDED, FAILED, SKIPPED, CANCELLED = "SUCCEEDED", "FAILED", "SKIPPED", "CANCELLED"


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """One request to run an endpoint. `deadline` is a time.monotonic(); the endpoint's own timeout is in it already."""

    execution_id: str
    app: str
    environment: str
    release: str
    input: dict[str, Any]
    deadline: float


class StepRecord(msgspec.Struct):
    """What one step did. Times are time.time() and seconds."""

    stage: str
    name: str
    kind: str
    start_time: float
    outcome: str = FAILED
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""
    usage: Usage | None = None
    """Of steps that ask models."""
    given: Any = None
    """What a step that asks others asked."""
    span_id: str = ""
    """Where spans are exported."""


class Run(msgspec.Struct):
    """A run that has begun. `steps` grows as it goes, so that the record is there however it ends."""

    trigger: Trigger
    clients: Clients
    variables: dict[str, Any] = {}
    """What expressions see; made here."""
    steps: list[StepRecord] = []
    last_output: Any = None
    out_of_time: bool = False
    """A step was ended by the trigger's deadline. Timers may be early by a moment, so the clock alone does not tell."""
    emit: Emit | None = None
    trace: Trace | None = None
    excerpt: Callable[[str, int], str] | None = None
    """The endpoint's, once it runs."""
    pause: Callable[[float], Any] = asyncio.sleep
    jitter: Callable[[float, float], float] = random.uniform

    def context(self, step: LoadedStep, deadline: float) -> StepContext:
        """What the step is given."""
        emit = self.emit
        return StepContext(self.clients, deadline, None if emit is None else lambda text: emit(output_delta(step.name, text)))

    def keep(self, step: LoadedStep, output: Any) -> None:
        """For what comes later. Never in place: an expression may have given `steps` itself, which would then hold itself."""
        self.variables["steps"] = {**self.variables["steps"], step.name: output}

    def __post_init__(self) -> None:
        trigger = self.trigger
        self.variables = {"input": trigger.input, "steps": {}, "environment": trigger.environment, "release": trigger.release}


async def run(endpoint: LoadedEndpoint, running: Run) -> Any:
    """The pipeline's output, a plain value. A caller that is cancelled leaves no step running.

    Raises:
        StepFailed: a step, a gate or the output expression failed.
        StepTimeout: a step, or the trigger, ran out of time.
    """
    pipeline, running.excerpt = endpoint.pipeline, endpoint.excerpt
    for stage in pipeline.stages:
        if stage.gate is not None and not _decide(running, running.variables, stage.gate, stage.name):
            for step in stage.steps:
                _skip(running, stage, step)
        elif stage.parallel and len(stage.steps) > 1:
            await _parallel(stage, running)
        else:
            for step in stage.steps:
                await _step(stage, step, running, running.variables)
    if pipeline.output is None:
        return running.last_output
    try:
        return pipeline.output.evaluate(running.variables)
    except ExpressionError as error:
        raise _failed(running, "", "output", str(error)) from None


async def _parallel(stage: LoadedStage, running: Run) -> None:
    """All steps at once; the first one that fails cancels the others."""
    # What one of them gives is not seen by the others, whichever is quicker.
    before = dict(running.variables)
    try:
        async with asyncio.TaskGroup() as tasks:
            for step in stage.steps:
                tasks.create_task(_step(stage, step, running, before))
    except BaseExceptionGroup as group:
        # Not `except*`: before Python 3.11.4 what is raised in it comes out inside a group of its own.
        failures, others = group.split(PointsmanError)
        if failures is None or others is not None:
            raise
        raise failures.exceptions[0] from None
    ran = [record.name for record in running.steps if record.stage == stage.name and record.outcome == SUCCEEDED]
    last = next((step.name for step in reversed(stage.steps) if step.name in ran), None)
    if last is not None:
        running.last_output = running.variables["steps"][last]


async def _step(stage: LoadedStage, step: LoadedStep, running: Run, variables: Variables) -> None:
    """`variables`: what the step sees."""
    if step.when is not None and not _wanted(stage, step, running, variables):
        return
    record = StepRecord(stage.name, step.name, step.kind, time.time())
    running.steps.append(record)
    if running.trace is not None and running.trace.exported:
        record.span_id = enter_step(running.trace)
    if running.emit is not None:
        running.emit(step_started(stage.name, step.name, step.kind))
    started = time.monotonic()
    try:
        output = await _attempts(stage, step, running, variables, record, started)
        record.outcome = SUCCEEDED
        running.last_output = output
        running.keep(step, output)
    except asyncio.CancelledError:
        record.outcome = CANCELLED
        raise
    except PointsmanError as error:
        record.error = error.metadata["cause"]
        if running.out_of_time or time.monotonic() >= running.trigger.deadline or not step.continue_on_error:
            raise
        running.keep(step, None)
    finally:
        record.seconds = time.monotonic() - started
        if running.emit is not None:
            running.emit(
                step_finished(stage.name, step.name, record.outcome, attempts=record.attempts, seconds=record.seconds, error=record.error)
            )


async def _attempts(stage: LoadedStage, step: LoadedStep, running: Run, variables: Variables, record: StepRecord, started: float) -> Any:
    """The output of the first attempt that succeeds, within the step's time and the trigger's."""
    own_deadline = started + step.timeout_seconds
    deadline = min(own_deadline, running.trigger.deadline)
    if started >= deadline:
        # Steps that need no waiting are not interrupted, so the time can be over before one begins.
        raise _timed_out(running, stage.name, step, whole=True)
    context = running.context(step, deadline)
    while True:
        record.attempts += 1
        try:
            output = step.run(variables, context)
            if hasattr(output, "__await__"):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    output = await output
        except StepError as error:
            pause = _pause(error, record.attempts, running)
            if not error.retryable or record.attempts > step.max_retries or time.monotonic() + pause >= deadline:
                raise _failed(running, stage.name, step.name, str(error), attempts=record.attempts) from None
            await running.pause(pause)
        except TimeoutError:
            raise _timed_out(running, stage.name, step, whole=own_deadline > running.trigger.deadline) from None
        else:
            return output
        finally:
            record.usage, record.given = context.usage, context.given


def _pause(error: StepError, attempts: int, running: Run) -> float:
    """Exponential with jitter, and never less than the other side asked for."""
    longest = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2 ** (attempts - 1))
    return max(error.retry_after_seconds or 0.0, running.jitter(longest / 2, longest))


def _wanted(stage: LoadedStage, step: LoadedStep, running: Run, variables: Variables) -> bool:
    """Whether the step is to run. One that is not, or of which that cannot be said, is on record all the same."""
    assert step.when is not None, "asked only of steps that have one"
    try:
        wanted = _decide(running, variables, step.when, stage.name, step.name, "when")
    except StepFailed as error:
        running.steps.append(StepRecord(stage.name, step.name, step.kind, time.time(), error=error.metadata["cause"]))
        raise
    if not wanted:
        _skip(running, stage, step)
    return wanted


def _decide(running: Run, variables: Variables, expression: Expression, stage: str, step: str = "gate", what: str = "gate") -> bool:
    """A gate that errs is an error, never false."""
    try:
        return expression.evaluate_bool(variables)
    except ExpressionError as error:
        raise _failed(running, stage, step, f"its {what}: {error}") from None


def _skip(running: Run, stage: LoadedStage, step: LoadedStep) -> None:
    running.keep(step, None)
    running.steps.append(StepRecord(stage.name, step.name, step.kind, time.time(), outcome=SKIPPED))


def _failed(running: Run, stage: str, step: str, cause: str, *, attempts: int = 1) -> StepFailed:
    assert running.excerpt is not None, "it runs"
    cause = running.excerpt(cause, MAX_CAUSE_CHARS)
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return StepFailed(f"{_where(stage, step)} failed{tried}: {cause}.", cause=cause, **_metadata(running, stage, step))


def _timed_out(running: Run, stage: str, step: LoadedStep, *, whole: bool) -> StepTimeout:
    if whole:
        running.out_of_time = True
        cause = "the time of the whole trigger was over"
        message = f"{_where(stage, step.name)} was running when {cause}."
    else:
        cause = f"it took longer than its timeout of {step.timeout_seconds:g} s"
        message = f"{_where(stage, step.name)} did not end: {cause}."
    return StepTimeout(message, cause=cause, timeout=f"{step.timeout_seconds:g}s", **_metadata(running, stage, step.name))


def _where(stage: str, step: str) -> str:
    return f"Step {step!r} of stage {stage!r}" if stage else f"The pipeline's {step}"


def _metadata(running: Run, stage: str, step: str) -> dict[str, Any]:
    trigger = running.trigger
    return {
        "stage": stage,
        "step": step,
        "execution_id": trigger.execution_id,
        "app": trigger.app,
        "environment": trigger.environment,
        "release": trigger.release,
    }
