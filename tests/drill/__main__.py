"""Runs the drills that are named, else all, at full size, and prints a table; exit status 1 when anything was lost."""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import tempfile
from pathlib import Path

from tests.drill.common import HEADING, Result

NAMES = ("kill", "disk", "readonly", "failover", "record")


def main() -> None:
    """See the module. `SEED` after a name, as in `kill:4711`, repeats an earlier choice of moments."""
    results = []
    print(HEADING, flush=True)
    for argument in sys.argv[1:] or NAMES:
        name, _, given = argument.partition(":")
        if name not in NAMES:
            sys.exit(f"there is no drill {name}; there are {', '.join(NAMES)}")
        seed = int(given) if given else random.SystemRandom().randrange(2**32)
        results.append(asyncio.run(_run(name, seed)))
        print(results[-1], flush=True)
    sys.exit(any(result.lost for result in results))


async def _run(name: str, seed: int) -> Result:
    drill = importlib.import_module(f"tests.drill.{name}")
    operations, faults = drill.FULL
    with tempfile.TemporaryDirectory(prefix="pointsman-drill-") as folder:
        found: Result = await drill.run(Path(folder), seed, operations, faults)
    return found


if __name__ == "__main__":
    main()
