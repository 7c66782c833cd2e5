"""A gateway whose event loop is probed: it says how long the loop stood still at most, in seconds, whenever it gets SIGUSR1.

The rest is the gateway's own program.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import Any

from data_plane import __main__ as program

PROBE_SECONDS = 0.001

_serve = program.serve


async def probed(*arguments: Any, **more: Any) -> None:
    """In the place of the gateway's serve."""
    worst = 0.0

    def tell() -> None:
        nonlocal worst
        print(f"lag {worst:.6f}", flush=True)
        worst = 0.0

    async def probe() -> None:
        nonlocal worst
        while True:
            before = time.perf_counter()
            await asyncio.sleep(PROBE_SECONDS)
            worst = max(worst, time.perf_counter() - before - PROBE_SECONDS)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    task = asyncio.create_task(probe())
    try:
        await _serve(*arguments, **more)
    finally:
        task.cancel()


if __name__ == "__main__":
    program.serve = probed
    sys.exit(program.main(prog_name="gateway"))
