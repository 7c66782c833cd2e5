"""`python -m tests.fuzz [NAME...] [--cases N] [--seed N]`: runs the targets that are named, else all; exit status 1 when anything failed.

`--cases` is how many in all; without it a full run. Each target is a process of its own, so that one that it ends is told too.
"""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.engine import HEADING, Target, run_all

MODULES = (
    "expressions",
    "snapshots",
    "app_files",
    "values",
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
    failed = []
    with ThreadPoolExecutor(JOBS) as jobs:
        running = [jobs.submit(_child, target, max(1, round(target.share * part)), seed) for target in chosen]
        for target, job in zip(chosen, running, strict=True):
            told, did_fail = job.result()
            print(told, flush=True)
            failed += [target.name] if did_fail else []
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _child(target: Target, cases: int, seed: int) -> tuple[str, bool]:
    """What to print, with what ended the process if something did; and whether anything failed."""
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
        if done.returncode:
            told.append(done.stderr[-MAX_TOLD_CHARS:])
        if not done.stdout.splitlines()[2:]:
            last = trace.read_text()[:MAX_TOLD_CHARS] if trace.exists() else "none"
            told.append(f"{target.name} ended with status {done.returncode} at the case {last}")
    return "\n".join(told), done.returncode != 0


if __name__ == "__main__":
    main()
