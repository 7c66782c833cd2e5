"""The runner against a simple reference interpreter: generated pipelines, tools that answer as a script says, on a clock that never waits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

from google.protobuf import json_format
from hypothesis import given, note, settings
from hypothesis import strategies as st

from data_plane.events import Event
from data_plane.loaded import compile_release
from data_plane.pipeline import Run, Trigger, run
from data_plane.secrets import Secrets
from pointsman.errors import PointsmanError
from pointsman.v1.config_pb2 import AppConfig
from tests.reference_interpreter import EXPRESSIONS, Answer, Ended, Interpreter
from tests.scripted_tools import ClockThatNeverWaits, DefectError, ScriptedTools, clients_of
from tests.test_pipeline import digest_of

NEVER = 1e9
# What comes of step 3 ends in .0003 s, so that no two things happen at the same moment but for those that must.
OWN_MOMENT, OWN_TIMEOUT, OWN_DEADLINE, OWN_LEAVING = 0.0001, 0.00003, 0.000005, 0.000002


# Most of them such that the pipeline goes on: there is more to be seen then.
CONDITIONS = st.sampled_from([None] * 60 + ["true", "false", "input.n > 1", "size(steps) < 2", *EXPRESSIONS])
VALUES = st.sampled_from(["input.n", "environment", "size(steps)", "{'all': steps}"] * 12 + [*EXPRESSIONS])
ARGUMENTS = st.sampled_from(["{'all': steps}"] * 30 + ["input.missing", "3"])
SECONDS = st.sampled_from([0.01, 0.05, 0.3, 2.0])
OK = st.builds(Answer, st.just("ok"), SECONDS, st.just(0.0))
FAILS = st.builds(Answer, st.sampled_from(["503", "503", "lost", "404", "defect"]), SECONDS, st.just(0.0))
ASKS_TO_WAIT = st.builds(Answer, st.just("429"), SECONDS, st.sampled_from([0.0, 1.0, 60.0]))
HANGS = st.just(Answer("ok", NEVER))
ANSWERS = st.one_of(OK, OK, OK, FAILS, ASKS_TO_WAIT, HANGS)


@st.composite
def steps(draw: st.DrawFn, number: int) -> dict[str, Any]:
    step: dict[str, Any] = {"name": f"s{number}", "when": draw(CONDITIONS), "continue_on_error": draw(st.booleans())}
    base = draw(st.sampled_from([0.1, 1.0, 30.0, 30.0]))
    step |= {"timeout": base + number * OWN_MOMENT + OWN_TIMEOUT, "max_retries": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        return step | {"transform": draw(VALUES)}
    answers = draw(st.lists(ANSWERS, min_size=1, max_size=4))
    answers[0] = answers[0]._replace(seconds=answers[0].seconds + number * OWN_MOMENT)
    method, retry_safe = draw(st.sampled_from([("PUT", False), ("POST", True), ("POST", False)]))
    tool = {"method": method, "retry_safe": retry_safe, "safe": method == "PUT" or retry_safe}
    return step | tool | {"arguments": draw(ARGUMENTS), "answers": answers}


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    """As the interpreter takes it."""
    stages, number = [], 0
    for index in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 3))
        mode, gate = draw(st.sampled_from(["SEQUENTIAL", "PARALLEL"])), draw(CONDITIONS)
        stages.append({"name": f"stage{index}", "mode": mode, "gate": gate, "steps": [draw(steps(number + n)) for n in range(size)]})
        number += size
    return {"stages": stages} | ({"output": draw(st.sampled_from([*EXPRESSIONS]))} if draw(st.integers(0, 2)) == 0 else {})


def as_config(pipeline: dict[str, Any]) -> AppConfig:
    """The same as an author writes it."""
    tools, stages = [], []
    for stage in pipeline["stages"]:
        written = []
        for step in stage["steps"]:
            one = {key: step[key] for key in ("name", "when", "continue_on_error", "max_retries")} | {"timeout": f"{step['timeout']:.6f}s"}
            if "transform" in step:
                one["transform"] = {"expression": step["transform"]}
            else:
                one["tool_call"] = {"tool": step["name"], "arguments": step["arguments"]}
                http = {"url": f"http://tools.test/{step['name']}", "method": step["method"]}
                tools.append({"name": step["name"], "retry_safe": step["retry_safe"], "http": http})
            written.append(one)
        stages.append(stage | {"steps": written})
    config = {"tools": tools, "pipelines": [pipeline | {"name": "p", "stages": stages}], "endpoints": [{"name": "e", "pipeline": "p"}]}
    return json_format.ParseDict(config, AppConfig())


async def until(leaves: float, work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it when its caller leaves after so many seconds."""
    task = asyncio.create_task(work)
    if math.isfinite(leaves):
        asyncio.get_running_loop().call_later(leaves, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return Ended("CANCELLED")


async def by_the_runner(pipeline: dict[str, Any], running: Run) -> Any:
    snapshot = as_config(pipeline).SerializeToString(deterministic=True)
    endpoint = compile_release(digest_of(snapshot), snapshot, Secrets(environment={})).endpoints["e"]
    try:
        return await run(endpoint, running)
    except PointsmanError as error:
        return Ended(error.reason_name, error.metadata["stage"], error.metadata["step"])
    except DefectError:
        # The gateway calls it INTERNAL, and says no more.
        return Ended("INTERNAL")
    except ExceptionGroup as group:
        if group.subgroup(DefectError) is None:
            raise
        return Ended("INTERNAL")
    finally:
        await running.clients.http.aclose()


def by_the_reference(pipeline: dict[str, Any], interpreter: Interpreter) -> list[Any]:
    """What may come of it."""
    try:
        return [interpreter.pipeline(pipeline)]
    except Ended as ended:
        found = [ended]
    except ExceptionGroup as group:
        found = list(group.exceptions)
    return [Ended("INTERNAL") if ended.reason == "INTERNAL" else ended for ended in found]


def told(events: list[Event], name: str, *more: str) -> list[Any]:
    """The step of each event of that name, with more of what it says."""
    found = [event.data for event in events if event.name == name]
    return [(data["step"], *(data[key] for key in more)) for data in found] if more else [data["step"] for data in found]


@settings(max_examples=1000)
@given(pipelines(), st.integers(0, 3), st.sampled_from([60.0, 0.4, 2.5]), st.sampled_from([math.inf, math.inf, 0.03, 0.35, 3.0]))
def test_the_runner_does_what_the_reference_does(pipeline: dict[str, Any], n: int, seconds: float, leaves: float) -> None:
    seconds, leaves = seconds + OWN_DEADLINE, leaves + OWN_LEAVING
    note(f"{pipeline} with n = {n} in {seconds} s, its caller leaves after {leaves} s")
    interpreter = Interpreter({"n": n}, seconds, leaves)
    expected = by_the_reference(pipeline, interpreter)
    clock = ClockThatNeverWaits()
    answers = {step["name"]: step["answers"] for stage in pipeline["stages"] for step in stage["steps"] if "answers" in step}
    trigger = Trigger(execution_id="x", app="shop", environment="staging", release="v1", input={"n": n}, deadline=seconds)
    events: list[Event] = []
    running = Run(trigger, clients_of(ScriptedTools(answers)), emit=events.append, jitter=lambda _low, high: high)
    with clock.running() as runner:
        found = runner.run(until(leaves, by_the_runner(pipeline, running)))
    recorded = [(record.name, record.outcome, record.attempts) for record in running.steps]
    assert (found in expected, sorted(recorded)) == (True, sorted(interpreter.record)), (found, expected)
    # Those who listen are told the same, of every step that was begun.
    assert told(events, "step_started") == [record.name for record in running.steps if record.attempts]
    assert sorted(told(events, "step_finished", "outcome", "attempts")) == sorted(one for one in recorded if one[2])
