"""The runner: stages, gates, deadlines, retries, cancellation, by scripted steps. test_runner_property.py compares it with a reference."""

import asyncio
import hashlib
import time
from typing import Any

import pytest
from google.protobuf import json_format

from data_plane.loaded import LoadedEndpoint, LoadedPipeline, LoadedStage, LoadedStep, ReleaseUnusableError, compile_release
from data_plane.pipeline import Run, Trigger, run
from data_plane.secrets import Secrets
from data_plane.steps import StepError
from data_plane.steps.base import Clients
from pointsman.errors import StepFailed, StepTimeout
from pointsman.expressions import compile_expression
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually

NO_CLIENTS: Clients = None  # type: ignore[assignment]  # scripted steps reach nothing outside


def digest_of(snapshot: bytes) -> str:
    return "sha256:" + hashlib.sha256(snapshot).hexdigest()


def trigger(seconds: float = 10.0, **given: Any) -> Trigger:
    deadline = time.monotonic() + seconds
    return Trigger(execution_id="x", app="shop", environment="staging", release="v1", input=given, deadline=deadline)


def step(name: str, runner: Any = lambda _variables, _clients: None, **more: Any) -> LoadedStep:
    fields = {"kind": "scripted", "when": None, "timeout_seconds": 5.0, "max_retries": 0, "continue_on_error": False} | more
    return LoadedStep(name=name, run=runner, **fields)


def stage(*steps: LoadedStep, name: str = "s", parallel: bool = False, gate: str = "") -> LoadedStage:
    return LoadedStage(name=name, parallel=parallel, gate=compile_expression(gate) if gate else None, steps=steps)


def endpoint(*stages: LoadedStage, output: str = "") -> LoadedEndpoint:
    loaded = LoadedPipeline(name="p", stages=stages, output=compile_expression(output) if output else None)
    return LoadedEndpoint(name="e", path="e", method="POST", timeout_seconds=60, max_concurrency=0, schema=None, pipeline=loaded)


def gives(value: Any) -> Any:
    return lambda _variables, _clients: value


def fails(*errors: Exception, then: Any = "done") -> Any:
    left = list(errors)

    def runner(_variables: Any, _clients: Any) -> Any:
        if left:
            raise left.pop(0)
        return then

    return runner


def recorded(running: Run) -> list[tuple[str, str, int]]:
    return [(record.name, record.outcome, record.attempts) for record in running.steps]


async def test_stages_run_in_order_and_the_last_output_is_the_answer():
    seen = []
    steps = [step(name, lambda variables, _clients, name=name: seen.append((name, sorted(variables["steps"]))) or name) for name in "abc"]
    running = Run(trigger(), NO_CLIENTS)
    assert await run(endpoint(stage(*steps[:2]), stage(steps[2], name="t")), running) == "c"
    assert seen == [("a", []), ("b", ["a"]), ("c", ["a", "b"])]
    assert recorded(running) == [("a", "SUCCEEDED", 1), ("b", "SUCCEEDED", 1), ("c", "SUCCEEDED", 1)]


async def test_an_output_expression_makes_the_answer():
    assert await run(endpoint(stage(step("a", gives(2))), output="{'a': steps.a, 'in': input.n}"), Run(trigger(n=7), NO_CLIENTS)) == {
        "a": 2,
        "in": 7,
    }


async def test_a_closed_gate_skips_its_stage_and_a_false_when_its_step():
    running = Run(trigger(), NO_CLIENTS)
    skipped = step("c", gives(3), when=compile_expression("steps.b != null"))
    answer = await run(endpoint(stage(step("a", gives(1))), stage(step("b", gives(2)), gate="steps.a > 1"), stage(skipped)), running)
    assert answer == 1
    assert recorded(running) == [("a", "SUCCEEDED", 1), ("b", "SKIPPED", 0), ("c", "SKIPPED", 0)]
    assert running.variables["steps"] == {"a": 1, "b": None, "c": None}


@pytest.mark.parametrize("expression", ["input.missing", "'no'"])
async def test_a_gate_that_errs_is_an_error_never_false(expression):
    with pytest.raises(StepFailed) as failed:
        await run(endpoint(stage(step("a"), gate=expression)), Run(trigger(), NO_CLIENTS))
    assert failed.value.metadata["stage"] == "s"
    running = Run(trigger(), NO_CLIENTS)
    with pytest.raises(StepFailed) as failed:
        await run(endpoint(stage(step("a", when=compile_expression(expression)))), running)
    assert failed.value.metadata["step"] == "a"
    assert recorded(running) == [("a", "FAILED", 0)]
    assert running.steps[0].error.startswith("its when: ")


async def test_a_step_that_gives_all_steps_does_not_give_itself():
    every = [step(name, lambda variables, _clients: compile_expression("{'all': steps}").evaluate(variables)) for name in "ab"]
    assert await run(endpoint(stage(*every)), Run(trigger(), NO_CLIENTS)) == {"all": {"a": {"all": {}}}}


async def test_a_failure_names_stage_step_and_cause_and_stops_the_run():
    running = Run(trigger(), NO_CLIENTS)
    with pytest.raises(StepFailed) as failed:
        await run(endpoint(stage(step("a", fails(StepError("no such order"))), step("b"))), running)
    assert failed.value.message == "Step 'a' of stage 's' failed: no such order."
    assert {key: failed.value.metadata[key] for key in ("stage", "step", "cause", "execution_id", "release")} == {
        "stage": "s",
        "step": "a",
        "cause": "no such order",
        "execution_id": "x",
        "release": "v1",
    }
    assert recorded(running) == [("a", "FAILED", 1)]


async def test_continue_on_error_makes_a_null():
    running = Run(trigger(), NO_CLIENTS)
    failing = step("a", fails(StepError("x")), continue_on_error=True)
    assert await run(endpoint(stage(failing, step("b", gives(2))), output="[steps.a, steps.b]"), running) == [None, 2]
    assert recorded(running) == [("a", "FAILED", 1), ("b", "SUCCEEDED", 1)]


async def test_retryable_causes_are_tried_again_with_growing_pauses_and_as_the_other_side_asks():
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    errors = [StepError("503", retryable=True), StepError("429", retryable=True, retry_after_seconds=2.5), StepError("503", retryable=True)]
    running = Run(trigger(), NO_CLIENTS, pause=pause, jitter=lambda _low, high: high)
    assert await run(endpoint(stage(step("a", fails(*errors), max_retries=3))), running) == "done"
    assert pauses == [0.1, 2.5, 0.4]
    assert recorded(running) == [("a", "SUCCEEDED", 4)]


async def test_other_causes_and_too_many_attempts_are_not_tried_again():
    async def pause(_seconds: float) -> None:
        return

    running = Run(trigger(), NO_CLIENTS, pause=pause)
    with pytest.raises(StepFailed):
        await run(endpoint(stage(step("a", fails(StepError("400")), max_retries=3))), running)
    with pytest.raises(StepFailed, match="after 2 attempts"):
        await run(endpoint(stage(step("b", fails(*[StepError("503", retryable=True)] * 9), max_retries=1))), running)
    assert recorded(running) == [("a", "FAILED", 1), ("b", "FAILED", 2)]


async def test_a_pause_longer_than_the_time_left_is_not_begun():
    errors = fails(StepError("429", retryable=True, retry_after_seconds=60))
    with pytest.raises(StepFailed):
        await run(endpoint(stage(step("a", errors, max_retries=3))), Run(trigger(), NO_CLIENTS))


def hangs(cancelled: list[str], name: str) -> Any:
    async def runner(_variables: Any, _clients: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    return runner


async def test_a_step_ends_at_its_timeout_and_the_trigger_at_its_deadline():
    cancelled: list[str] = []
    with pytest.raises(StepTimeout) as slow:
        await run(endpoint(stage(step("a", hangs(cancelled, "a"), timeout_seconds=0.05))), Run(trigger(), NO_CLIENTS))
    assert "longer than its timeout of 0.05 s" in slow.value.message
    with pytest.raises(StepTimeout) as late:
        await run(endpoint(stage(step("b", hangs(cancelled, "b"), continue_on_error=True))), Run(trigger(0.05), NO_CLIENTS))
    assert "the whole trigger was over" in late.value.message
    assert cancelled == ["a", "b"]


async def test_a_failing_step_cancels_its_parallel_siblings():
    cancelled: list[str] = []
    started = asyncio.Event()

    async def fail(_variables: Any, _clients: Any) -> None:
        await started.wait()
        raise StepError("x")

    async def hang(variables: Any, clients: Any) -> None:
        started.set()
        await hangs(cancelled, "b")(variables, clients)

    running = Run(trigger(), NO_CLIENTS)
    with pytest.raises(StepFailed) as failed:
        await run(endpoint(stage(step("a", fail), step("b", hang), parallel=True)), running)
    assert failed.value.metadata["step"] == "a"
    assert cancelled == ["b"]
    assert sorted(recorded(running)) == [("a", "FAILED", 1), ("b", "CANCELLED", 1)]


async def test_parallel_steps_do_run_at_the_same_time_and_the_last_written_gives_the_answer():
    met = asyncio.Barrier(3)

    async def meet(_variables: Any, _clients: Any) -> int:
        return await met.wait() * 0 + 1

    steps = [step(name, meet) for name in "ab"] + [step("c", meet, continue_on_error=True)]
    running = Run(trigger(), NO_CLIENTS)
    assert await run(endpoint(stage(*steps, parallel=True), output="steps"), running) == {"a": 1, "b": 1, "c": 1}
    last = endpoint(stage(step("x", gives("x")), step("y", gives("y")), parallel=True))
    assert await run(last, Run(trigger(), NO_CLIENTS)) == "y"


async def test_a_caller_that_goes_away_leaves_nothing_running():
    cancelled: list[str] = []
    steps = stage(step("a", hangs(cancelled, "a")), step("b", hangs(cancelled, "b")), parallel=True)
    running = Run(trigger(), NO_CLIENTS)
    task = asyncio.create_task(run(endpoint(steps), running))
    await eventually(lambda: len(running.steps) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == ["a", "b"]
    assert {record.outcome for record in running.steps} == {"CANCELLED"}


def test_a_release_that_cannot_be_run_here_tells_every_cause():
    config = AppConfig()
    text = """{"pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [{"name": "a", "tool_call": {"tool": "t"}},
      {"name": "b", "transform": {"expression": "1 +"}}]}]}], "tools": [{"name": "t", "http": {"url": "http://x",
      "headers": {"A": "Bearer ${secret:KEY}"}}}]}"""
    snapshot = json_format.Parse(text, config).SerializeToString(deterministic=True)
    digest = digest_of(snapshot)
    with pytest.raises(ReleaseUnusableError) as unusable:
        compile_release(digest, snapshot, Secrets(environment={}))
    missing, syntax = unusable.value.causes
    assert "POINTSMAN_SECRET_KEY" in missing
    assert syntax.startswith("pipelines[0].stages[0].steps[1]: line 1")
    with pytest.raises(ReleaseUnusableError, match="its bytes hash to"):
        compile_release("sha256:" + "0" * 64, snapshot, Secrets(environment={"POINTSMAN_SECRET_KEY": "k"}))
