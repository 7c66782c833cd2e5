"""The control plane is away under load, and a gateway is killed and started anew meanwhile: every execution is on record, once."""

from __future__ import annotations

import time
from pathlib import Path

from tests.drill.common import Result
from tests.eventually import eventually
from tests.test_executions_end_to_end import Load, all_on_disk, installation, recorded

# At least so many triggers while it is away, and at full size for a minute.
FULL = (5000, 1)
AWAY_SECONDS = 60.0
BACK_SECONDS = 300.0


async def run(folder: Path, seed: int, operations: int, faults: int) -> Result:
    """Nothing is left to chance: the seed is only shown. The outage is that of the record, from the way back to the last one stored."""
    away_seconds, longest = (AWAY_SECONDS if (operations, faults) == FULL else 0.0), 0.0
    async with installation(folder) as (plane, _, gateways, gates):
        load = Load(gates)
        for _ in range(faults):
            load.stopping = False
            async with load.running():
                await load.more(30)
                await plane.kill()
                began = time.monotonic()
                await load.more(operations, timeout_seconds=BACK_SECONDS)
                await eventually(lambda began=began: time.monotonic() - began >= away_seconds, timeout_seconds=2 * AWAY_SECONDS)
            # What ended within the last second is what a kill may cost: here nothing has.
            await all_on_disk(folder, gates, load)
            await gateways[0].kill()
            await gateways[0].start()
            await plane.start()
            back = time.monotonic()

            async def everything() -> bool:
                return await recorded(plane) == load.seen

            await eventually(everything, timeout_seconds=BACK_SECONDS)
            longest = max(longest, time.monotonic() - back)
        stored = await recorded(plane)
    wrong = sum(stored.get(execution_id) != seen for execution_id, seen in load.seen.items()) + len(stored.keys() - load.seen.keys())
    return Result("record", len(load.seen), 2 * faults, wrong, longest, seed)
