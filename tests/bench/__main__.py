"""Speed and memory, measured on this machine: `make bench`, or `python -m tests.bench fanout engine ...` for some of it.

Every figure stands beside a peer or a floor that was measured in the same run, in alternating turns; what counts is the ratio.
"""

from __future__ import annotations

import asyncio
import importlib
import resource
import sys

NAMES = (
    "startup",
    "coldstart",
    "deploys",
    "live",
    "storage",
    "executions",
    "recording",
    "console",
    "fanout",
    "spreading",
    "engine",
    "inference",
    "authorization",
    "revocation",
)

MAX_FILES = 20_000


def main() -> None:
    """Runs what is named, else everything, and prints a table of each."""
    unknown = [name for name in sys.argv[1:] if name not in NAMES]
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # For thousands of connections; children inherit it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_FILES), hard))
    for name in sys.argv[1:] or NAMES:
        print(f"\n== {name}", flush=True)
        module = importlib.import_module(f"tests.bench.{name}")
        for row in asyncio.run(module.rows()):
            print(row, flush=True)


if __name__ == "__main__":
    main()
