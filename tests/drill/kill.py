"""The control plane on SQLite is killed -9 again and again while eight callers deploy."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

from tests.clients import control_plane_client
from tests.deploying import make_releases
from tests.drill.common import Campaign, Result, Watch, wrong_in
from tests.processes import start_control_plane

FULL = (7500, 60)
CALLERS = 8


async def run(folder: Path, seed: int, operations: int, faults: int) -> Result:
    """Kills it when random numbers of calls have been answered, and starts it again at once."""
    chance = random.Random(seed)
    async with start_control_plane(folder) as server:
        async with control_plane_client(server) as plane:
            await make_releases(plane)
        campaign = Campaign([server.grpc], seed, operations)
        watches = [Watch(server.grpc), Watch(server.grpc)]

        async def kill() -> None:
            for point in sorted(chance.sample(range(operations // 20, operations), faults)):
                await campaign.reached(point)
                await server.kill()
                await server.start()

        async with watches[0].running(), watches[1].running():
            await asyncio.gather(campaign.run(CALLERS), kill())
            lost = await campaign.unexplained(server.grpc) + await wrong_in(watches, server.grpc)
    (whole,) = sqlite3.connect(folder / "pointsman.db").execute("PRAGMA integrity_check").fetchone()
    return Result("kill", campaign.operations, faults, lost + (whole != "ok"), campaign.worst_gap, seed)
