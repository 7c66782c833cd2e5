"""`python -m tests.fuzz [NAME...] [--cases N] [--seed N]`: runs the targets that are named, else all; says how many cases that were; exit status 1 when anything failed.

`--cases` is how many in all; without it a full run. Each target is a process of its own, so that one that it ends is told too.
"""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.engine import HEADING, Target, run_all

MODULES = (
    "expressions",
    "snapshots",
    "app_files",
    "values",
    "jwts",
    "grpc_calls",
    "http_requests",
    "streams",
    "page_tokens",
    "sync",
    "disk",
    "floods",
    "postgres",
    "upstreams",
)
# Few, so that neither side of a conversation waits for a processor long.
JOBS = 2
MAX_TOLD_CHARS = 20_000


class Outcome(NamedTuple):
    """Of one target's process: what to print, how many cases were tried, and whether anything failed."""

    told: str
    cases: int
    did_fail: bool


def targets() -> dict[str, Target]:
    """All of them, by name."""
    found: list[Target] = []
    for name in MODULES:
        found += importlib.import_module(f"tests.fuzz.{name}").TARGETS
    return {target.name: target for target in found}


def main() -> None:
    """See the module."""
    known = targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--cases", type=int, help="how many in all; without it a full run")
    parser.add_argument("--seed", type=int, help="repeats an earlier run")
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("--trace", type=Path, help="a file that has the case which is being tried")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - known.keys())
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.names] or list(known.values())
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(2**32)
    part = given.cases / sum(target.share for target in chosen) if given.cases else 1.0
    if given.here:
        results = run_all(chosen, lambda target: max(1, round(target.share * part)), seed, given.trace)
        sys.exit(any(result.failures for result in results))
    print(f"seed {seed}", HEADING, sep="\n", flush=True)
    sys.exit(_run_each(chosen, {target.name: max(1, round(target.share * part)) for target in chosen}, seed))


def _run_each(chosen: Sequence[Target], wanted: Mapping[str, int], seed: int) -> int:
    """Prints the outcomes and what they come to; the exit status."""
    began, tried, failed = time.monotonic(), 0, []
    with ThreadPoolExecutor(JOBS) as jobs:
        running = [jobs.submit(_child, target, wanted[target.name], seed) for target in chosen]
        for target, job in zip(chosen, running, strict=True):
            outcome = job.result()
            print(outcome.told, flush=True)
            tried += outcome.cases
            failed += [target.name] if outcome.did_fail else []
    minutes = (time.monotonic() - began) / 60
    print(f"{tried:,} cases in {minutes:.1f} minutes; failed: {', '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


def _child(target: Target, cases: int, seed: int) -> Outcome:
    """Tells what ended the process, if something did. One that tried too few cases has failed."""
    with tempfile.TemporaryDirectory(prefix="pointsman-fuzz-") as folder:
        trace = Path(folder, "case")
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            target.name,
            "--here",
            "--cases",
            str(cases),
            "--seed",
            str(seed),
            "--trace",
            str(trace),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = done.stdout.splitlines()[2:]
        # The table has one row: name, cases, and so on.
        tried = int(told[0].split()[1]) if told else 0
        if not told:
            last = trace.read_text()[:MAX_TOLD_CHARS] if trace.exists() else "none"
            told.append(f"{target.name} ended with status {done.returncode} at the case {last}")
        elif done.returncode == 0 and tried < cases:
            told.append(f"{target.name} tried {tried} cases of {cases}")
        if done.returncode:
            told.append(done.stderr[-MAX_TOLD_CHARS:])
    return Outcome("\n".join(told), tried, done.returncode != 0 or tried < cases)


if __name__ == "__main__":
    main()
