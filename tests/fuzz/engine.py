"""Runs a property on generated cases in batches, and measures: cases, failures, the longest one, how much memory it took at most.

A case fails when its property raises, takes too long, or makes a process grow beyond a bound. Everything follows from one seed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

MIB = 1024 * 1024
BATCH_EXAMPLES = 1000
MAX_FAILURES = 20
# A case that never ends is told with the place where it hangs, and ends the run.
HANG_SECONDS = 120
CASE_SECONDS = 10.0
MEMORY_MIB = 256
MAX_TRACE_CHARS = 200_000
MAX_SHOWN_CHARS = 1500
# Failures that begin alike are told once.
MAX_KIND_CHARS = 60


class Checker:
    """A property, and what it needs while it is checked."""

    def __init__(self, check: Callable[[Any], None]) -> None:
        self.check = check

    def pids(self) -> list[int]:
        """The processes whose memory counts."""
        return [os.getpid()]

    def count(self, _case: Any) -> int:
        """How many cases one example is."""
        return 1

    def afterwards(self) -> None:
        """After each batch: whether good requests are still answered. Raises AssertionError."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is fuzzed. `share` is how many cases of a full run are its; `pinned` are cases that once failed."""

    name: str
    cases: SearchStrategy[Any]
    opened: Callable[[], AbstractContextManager[Checker]]
    share: int
    pinned: Sequence[Any] = ()
    memory_mib: int = MEMORY_MIB
    case_seconds: float = CASE_SECONDS
    alone: bool = True
    """Whether it needs no server. Then a failure is made smaller; a server remembers the cases before."""


def pure(check: Callable[[Any], None]) -> Callable[[], AbstractContextManager[Checker]]:
    """For a property that needs nothing."""
    return lambda: contextlib.nullcontext(Checker(check))


@dataclass
class Result:
    """One row of the table."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    growth_mib: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.cases / self.seconds if self.seconds else 0.0
        return (
            f"{self.name:<18} {self.cases:>8} {rate:>9.0f} {self.seconds:>7.1f} s {self.longest_seconds * 1000:>8.0f} ms "
            f"{self.growth_mib:>7.1f} MiB {len(self.failures):>8}"
        )


HEADING = f"{'target':<18} {'cases':>8} {'cases/s':>9} {'took':>9} {'longest':>11} {'growth':>11} {'failures':>8}"


class Memory:
    """The peak of some processes beyond what they had at first, in MiB (Linux; 0 elsewhere)."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: _status_kib(pid, "VmRSS") for pid in pids}
        for pid in pids:
            with contextlib.suppress(OSError):
                # proc(5): makes the peak what it is now.
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def growth_mib(self) -> float:
        """Of the one that grew most."""
        return max((_status_kib(pid, "VmHWM") - before for pid, before in self._before.items()), default=0) / 1024


def _status_kib(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


class Run:
    """One target, on so many cases or a little more."""

    def __init__(self, target: Target, cases: int, seed_: int, trace: Path | None = None) -> None:
        """With `trace`, each case is written there before it is tried, for those that end the process."""
        self._target = target
        self._wanted = cases
        self._seed = seed_
        self._trace = trace.open("w") if trace else None
        self._armed_at = 0.0
        self._case: Any = None
        """The last one: of those that fail, the smallest that was found."""
        self._kinds: set[str] = set()
        self.failed = 0
        self.result = Result(target.name)

    def run(self) -> Result:
        """Until enough cases were tried, or too many failed."""
        with self._target.opened() as checker:
            began = time.monotonic()
            memory = Memory(checker.pids())
            for case in self._target.pinned:
                with self._noting():
                    self._try(checker, case)
            number = 0
            while self.result.cases < self._wanted and self.failed < MAX_FAILURES:
                number += 1
                before = self.result.cases
                with self._noting():
                    self._batch(checker, f"{self._seed} {self._target.name} {number}")
                with self._noting():
                    checker.afterwards()
                if self.result.cases == before:
                    break
            self.result.seconds = time.monotonic() - began
            self.result.growth_mib = memory.growth_mib()
        faulthandler.cancel_dump_traceback_later()
        if self.result.growth_mib > self._target.memory_mib:
            self.result.failures.append(f"grew by {self.result.growth_mib:.0f} MiB, allowed are {self._target.memory_mib}")
        return self.result

    def _batch(self, checker: Checker, name: str) -> None:
        target = self._target
        left = self._wanted - self.result.cases

        @seed(name)
        @settings(
            max_examples=max(1, min(BATCH_EXAMPLES, left)),
            database=None,
            deadline=None,
            derandomize=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            print_blob=False,
            report_multiple_bugs=False,
        )
        @given(target.cases)
        def batch(case: Any) -> None:
            if self.result.cases >= self._wanted:
                return
            if target.alone:
                self._try(checker, case)
            else:
                with self._noting():
                    self._try(checker, case)

        batch()

    def _try(self, checker: Checker, case: Any) -> None:
        began = time.monotonic()
        self._case = case
        if began - self._armed_at > 1:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            self._armed_at = began
        if self._trace:
            self._trace.seek(0)
            self._trace.truncate()
            self._trace.write(repr(case)[:MAX_TRACE_CHARS])
            self._trace.flush()
        self.result.cases += checker.count(case)
        checker.check(case)
        seconds = time.monotonic() - began
        self.result.longest_seconds = max(self.result.longest_seconds, seconds)
        assert seconds <= self._target.case_seconds, f"took {seconds:.1f} s"

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever a property raises is what was looked for
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.failed += 1
        if str(error)[:MAX_KIND_CHARS] not in self._kinds:
            self._kinds.add(str(error)[:MAX_KIND_CHARS])
            where = "".join(traceback.format_tb(error.__traceback__)[-4:])
            what = f"{type(error).__name__}: {str(error)[:MAX_SHOWN_CHARS]}"
            self.result.failures.append(f"{self._target.name}:\n{where}{what}\nat the case {repr(self._case)[:MAX_SHOWN_CHARS]}\n")


def run_all(targets: Sequence[Target], cases_of: Callable[[Target], int], seed_: int, trace: Path | None) -> list[Result]:
    """Runs them one after the other and prints as it goes."""
    faulthandler.enable()
    print(f"seed {seed_}", HEADING, sep="\n", flush=True)
    results = []
    for target in targets:
        results.append(Run(target, cases_of(target), seed_, trace).run())
        print(results[-1], flush=True)
        for failure in results[-1].failures:
            print(failure, file=sys.stderr, flush=True)
    return results
