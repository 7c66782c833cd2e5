"""The disk of a control plane on SQLite takes no more, again and again, while callers deploy: by a limit on the size of its files."""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
from pathlib import Path

from tests.clients import control_plane_client
from tests.deploying import make_releases
from tests.drill.common import Campaign, Result, Watch, wrong_in
from tests.eventually import eventually
from tests.processes import start_control_plane

FULL = (3000, 30)
CALLERS = 8
# What the callers meet of it: until so many of their calls were refused or lost.
REFUSED_CALLS = 4


async def run(folder: Path, seed: int, operations: int, faults: int) -> Result:
    """Nothing may grow from random points on, until some calls were refused; then there is room again, without a restart."""
    chance = random.Random(seed)
    async with start_control_plane(folder) as server:
        async with control_plane_client(server) as plane:
            await make_releases(plane)
        campaign = Campaign([server.grpc], seed, operations)
        watch = Watch(server.grpc)

        async def fill() -> None:
            for point in sorted(chance.sample(range(operations // 20, operations), faults)):
                await campaign.reached(point)
                before = campaign.lost_calls
                _limit(server.pid, 1)
                try:
                    await eventually(lambda before=before: campaign.lost_calls >= before + REFUSED_CALLS or campaign.is_over)
                finally:
                    _limit(server.pid, resource.RLIM_INFINITY)

        async with watch.running():
            await asyncio.gather(campaign.run(CALLERS), fill())
            lost = await campaign.unexplained(server.grpc) + await wrong_in([watch], server.grpc)
    (whole,) = sqlite3.connect(folder / "pointsman.db").execute("PRAGMA integrity_check").fetchone()
    return Result("disk", campaign.operations, faults, lost + (whole != "ok"), campaign.worst_gap, seed)


def _limit(pid: int, size: int) -> None:
    """How large a file may become that the process writes to."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
