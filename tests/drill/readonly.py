"""A control plane's PostgreSQL takes no more writes, again and again, while callers deploy: as after a failover that is not over, or by an admin."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.clients import control_plane_client
from tests.deploying import make_releases
from tests.drill.common import Campaign, Result, Watch, wrong_in
from tests.eventually import eventually
from tests.postgres_server import PostgresServer, running_postgres
from tests.processes import start_control_plane

FULL = (3000, 20)
CALLERS = 8
# What the callers meet of it: until so many of their calls were refused or lost.
REFUSED_CALLS = 4


async def run(folder: Path, seed: int, operations: int, faults: int) -> Result:
    """Read-only from random points on, until some calls were refused; then writable again, without a restart."""
    chance = random.Random(seed)
    with running_postgres("fsync=off") as server:
        url = server.url(server.new_database())
        async with start_control_plane(folder, "--store", url) as plane_server:
            async with control_plane_client(plane_server) as plane:
                await make_releases(plane)
            campaign = Campaign([plane_server.grpc], seed, operations)
            watch = Watch(plane_server.grpc)

            async def forbid() -> None:
                for point in sorted(chance.sample(range(operations // 20, operations), faults)):
                    await campaign.reached(point)
                    before = campaign.lost_calls
                    await asyncio.to_thread(_read_only, server, wanted=True)
                    try:
                        await eventually(
                            lambda before=before: campaign.lost_calls >= before + REFUSED_CALLS or campaign.is_over, timeout_seconds=30
                        )
                    finally:
                        await asyncio.to_thread(_read_only, server, wanted=False)

            async with watch.running():
                await asyncio.gather(campaign.run(CALLERS), forbid())
                lost = await campaign.unexplained(plane_server.grpc) + await wrong_in([watch], plane_server.grpc)
    return Result("readonly", campaign.operations, faults, lost, campaign.worst_gap, seed)


def _read_only(server: PostgresServer, *, wanted: bool) -> None:
    """Of every transaction that begins from now on; one that has begun may still end."""
    server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if wanted else 'off'}")
    server.execute("SELECT pg_reload_conf()")
