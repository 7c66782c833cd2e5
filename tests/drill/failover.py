"""A PostgreSQL primary with a synchronous standby is killed -9 and the standby promoted, under two replicas and two gateways with triggers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.clients import Gateway, control_plane_client, gateway_client
from tests.deploying import RELEASES, make_releases
from tests.drill.common import Campaign, Result, Watch, wrong_in
from tests.eventually import eventually
from tests.postgres_server import running_postgres, standby_of
from tests.processes import start_control_plane, start_gateway

FULL = (3000, 1)
CALLERS = 4


async def run(folder: Path, seed: int, operations: int, faults: int) -> Result:
    """One failover in the middle. A trigger that fails, or runs on a release that nobody deployed, counts as lost."""
    assert faults == 1, "a standby can be promoted once"
    async with contextlib.AsyncExitStack() as running:
        primary, standby = await asyncio.to_thread(running.enter_context, _pair())
        database = primary.new_database()
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = primary.url(database).replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
        planes = [await running.enter_async_context(start_control_plane(folder, "--store", url)) for _ in range(2)]
        both = ",".join(plane.grpc for plane in planes)
        gateways = [await running.enter_async_context(start_gateway(folder, both, gateway_id=name)) for name in ("east", "west")]
        gates = [await running.enter_async_context(gateway_client(gateway)) for gateway in gateways]
        async with control_plane_client(planes[0]) as plane:
            await make_releases(plane)
            await plane.deploy("shop", RELEASES[0])
        await eventually(lambda: _synced(gates), timeout_seconds=30)
        campaign = Campaign([plane.grpc for plane in planes], seed, operations)
        campaign.start_from("production", RELEASES[0])
        watches = [await running.enter_async_context(Watch(plane.grpc).running()) for plane in planes]

        async def fail_over() -> None:
            await campaign.reached(operations // 2)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)

        async with _triggers(gates) as failed:
            await asyncio.gather(campaign.run(CALLERS), fail_over())
            lost = await campaign.unexplained(planes[0].grpc) + await wrong_in(watches, planes[0].grpc)
        return Result("failover", campaign.operations, faults, lost + len(failed), campaign.worst_gap, seed)


@contextlib.contextmanager
def _pair():  # type: ignore[no-untyped-def]  # a pair of PostgresServer
    with running_postgres() as primary, standby_of(primary) as standby:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.execute("SELECT pg_reload_conf()")
        while not primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            pass
        yield primary, standby


async def _synced(gates: list[Gateway]) -> bool:
    return all([(await gate.status()).ready for gate in gates])


@contextlib.asynccontextmanager
async def _triggers(gates: list[Gateway]) -> AsyncIterator[list[str]]:
    """One after the other on each gateway; yields what failed."""
    failed: list[str] = []

    async def trigger(gate: Gateway) -> None:
        while True:
            answer = await gate.post("shop")
            if answer.status_code != 200 or answer.headers["x-release"] not in RELEASES:
                failed.append(answer.text)

    tasks = [asyncio.create_task(trigger(gate)) for gate in gates]
    try:
        yield failed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
