"""What a pipeline does by the contract, said again as simply as it can be: without tasks, without CEL, on a clock that it adds up itself.

A pipeline is plain data as in a person's YAML, but for this: expressions are those of EXPRESSIONS, times are seconds, and a tool_call has
`answers`, an Answer for each attempt (the last one again and again), and `safe`: whether its tool may be called twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Values = dict[str, Any]

# CEL, and the same in Python; whatever this raises is an error of the expression.
EXPRESSIONS: dict[str, Callable[[Values], Any]] = {
    "true": lambda _: True,
    "false": lambda _: False,
    "3": lambda _: 3,
    "'no'": lambda _: "no",
    "environment": lambda v: v["environment"],
    "input.n": lambda v: v["input"]["n"],
    "input.n > 1": lambda v: v["input"]["n"] > 1,
    "10 / input.n": lambda v: 10 // v["input"]["n"],
    "input.missing": lambda v: v["input"]["missing"],
    "size(steps)": lambda v: len(v["steps"]),
    "size(steps) < 2": lambda v: len(v["steps"]) < 2,
    "steps.s0": lambda v: v["steps"]["s0"],
    "steps.s1 == null": lambda v: v["steps"]["s1"] is None,
    "steps.s2 != null": lambda v: v["steps"]["s2"] is not None,
    "{'all': steps}": lambda v: {"all": dict(v["steps"])},
}
MAY_PASS = frozenset({"503", "429", "lost"})


class Answer(NamedTuple):
    """How a tool answers: what, after how many seconds, and for how many it asks to be left alone."""

    what: str
    seconds: float
    retry_after: float = 0.0


@dataclass
class Ended(Exception):
    """The trigger failed: reason, stage and step as its error names them."""

    reason: str
    stage: str = ""
    step: str = ""


@dataclass
class Done:
    """How one step ended by itself, and when. `ended`: it ends the trigger too."""

    outcome: str
    time: float
    attempts: list[float] = field(default_factory=list)
    """When each of them began."""
    output: Any = None
    ended: Ended | None = None


class Interpreter:
    """One trigger, whose caller leaves after so many seconds. `record` has (step, outcome, attempts), in the order written."""

    def __init__(self, given: Values, seconds: float, leaves: float = math.inf) -> None:
        self.record: list[tuple[str, str, int]] = []
        self.values: Values = {"input": given, "steps": {}, "environment": "staging", "release": "v1"}
        self.now = 0.0
        self.trigger_ends = seconds
        self.leaves = leaves
        self.last: Any = None

    def pipeline(self, pipeline: Values) -> Any:
        """The output. Raises Ended, or an ExceptionGroup of those of which any may be told, as they come at the same moment."""
        for stage in pipeline["stages"]:
            if not self.decide(stage.get("gate"), self.values, stage["name"], "gate"):
                for step in stage["steps"]:
                    self.take(step, Done("SKIPPED", self.now), self.now)
            elif stage["mode"] == "PARALLEL":
                self.parallel(stage)
            else:
                for step in stage["steps"]:
                    done = self.step(stage["name"], step, self.values)
                    self.take(step, done, min(done.time, self.leaves))
                    if done.time > self.leaves:
                        raise Ended("CANCELLED")
                    if done.ended:
                        raise done.ended
        if "output" not in pipeline:
            return self.last
        return self.evaluate(pipeline["output"], self.values, "", "output")

    def parallel(self, stage: Values) -> None:
        """Every step sees what was there before the stage; the first failure cancels what is still at work."""
        before = {**self.values, "steps": dict(self.values["steps"])}
        dones = [self.step(stage["name"], step, before) for step in stage["steps"]]
        ends = min((done.time for done in dones if done.ended), default=max(done.time for done in dones))
        for step, done in zip(stage["steps"], dones, strict=True):
            self.take(step, done, min(ends, self.leaves))
        if ends > self.leaves:
            raise Ended("CANCELLED")
        failures = [done.ended for done in dones if done.ended and done.time == ends]
        if failures:
            raise ExceptionGroup("any of these", failures)

    def take(self, step: Values, done: Done, now: float) -> None:
        """Puts the step on record as it stands now."""
        self.now = now
        outcome = done.outcome if done.time <= now else "CANCELLED"
        self.record.append((step["name"], outcome, sum(began <= now for began in done.attempts)))
        self.values["steps"][step["name"]] = done.output
        if outcome == "SUCCEEDED":
            self.last = done.output

    def step(self, stage: str, step: Values, values: Values) -> Done:
        """One step with all its attempts, from now on, as if it were alone."""
        name = step["name"]
        try:
            if not self.decide(step.get("when"), values, stage, name):
                return Done("SKIPPED", self.now)
        except Ended as ended:
            return Done("FAILED", self.now, ended=ended)
        done = Done("FAILED", self.now)
        try:
            done.output = self.attempts(step, values, done, min(self.now + step["timeout"], self.trigger_ends))
            done.outcome = "SUCCEEDED"
        except Ended as ended:
            continues = step["continue_on_error"] and ended.reason != "INTERNAL" and done.time < self.trigger_ends
            done.ended = None if continues else Ended(ended.reason, stage, name)
        return done

    def attempts(self, step: Values, values: Values, done: Done, deadline: float) -> Any:
        """The output of the first attempt that succeeds. Raises Ended."""
        while True:
            done.attempts.append(done.time)
            if "transform" in step:
                return self.evaluate(step["transform"], values)
            given = self.evaluate(step["arguments"], values)
            if not isinstance(given, dict):
                raise Ended("STEP_FAILED")
            number = len(done.attempts)
            answer = step["answers"][min(number, len(step["answers"])) - 1]
            done.time = min(done.time + answer.seconds, deadline)
            if done.time == deadline:
                raise Ended("STEP_TIMEOUT")
            if answer.what == "ok":
                return {"attempt": number, "given": given}
            if answer.what == "defect":
                raise Ended("INTERNAL")
            pause = max(0.1 * 2 ** (number - 1), answer.retry_after)
            may_repeat = answer.what in MAY_PASS and step["safe"] and number <= step["max_retries"]
            if not may_repeat or done.time + pause >= deadline:
                raise Ended("STEP_FAILED")
            done.time += pause

    def decide(self, source: str | None, values: Values, stage: str, step: str) -> bool:
        """A gate or a when: what gives no bool is an error, never false."""
        found = True if source is None else self.evaluate(source, values, stage, step)
        if not isinstance(found, bool):
            raise Ended("STEP_FAILED", stage, step)
        return found

    def evaluate(self, source: str, values: Values, stage: str = "", step: str = "") -> Any:
        """The value. Raises Ended."""
        try:
            return EXPRESSIONS[source](values)
        except (KeyError, ZeroDivisionError):
            raise Ended("STEP_FAILED", stage, step) from None
