"""Triggers under a steady load while releases are deployed: none may fail or mix releases, and they may hardly become slower."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.children import child, line
from tests.bench.table import Row, milliseconds, percentile, spread
from tests.clients import ControlPlane, control_plane_client
from tests.processes import Server, start_control_plane, start_gateway
from tests.sample_apps import marked

TRIGGERS_PER_SECOND = 400
DEPLOYS_PER_SECOND = 20
ROUNDS = 8
DEPLOYS_EACH = 25
SECONDS_EACH = DEPLOYS_EACH / DEPLOYS_PER_SECOND
DEPLOYS = ROUNDS * DEPLOYS_EACH


async def rows() -> list[Row]:
    """Phases with deploys in alternation with phases without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            start_control_plane(folder) as server,
            start_gateway(folder, server.grpc) as gateway,
            control_plane_client(server) as plane,
        ):
            return await _measure(plane, gateway)


async def _measure(plane: ControlPlane, gateway: Server) -> list[Row]:
    app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await _deploy(plane, app, 1)
    quiet: list[list[float]] = []
    steady: list[list[float]] = []
    dense: list[list[float]] = []
    command = (sys.executable, "-m", "tests.bench.trigger_client", gateway.http, app, str(TRIGGERS_PER_SECOND))
    async with child(*command) as load:
        await line(load)
        await _phase(load, SECONDS_EACH)
        for number in range(ROUNDS):
            quiet.append(await _phase(load, SECONDS_EACH))
            found, _ = await asyncio.gather(_phase(load, SECONDS_EACH), _deploys(plane, app, number, DEPLOYS_PER_SECOND))
            steady.append(found)
            # As many again, each as soon as the one before it was answered.
            loading = asyncio.ensure_future(_phase(load, SECONDS_EACH / 2))
            while not loading.done():
                await _deploys(plane, app, number, per_second=0)
            dense.append(await loading)
    what = f"p99 of {TRIGGERS_PER_SECOND} triggers/s"
    floor = _p99(quiet)

    def row(told: str, found: list[list[float]], bound: str = "") -> Row:
        return Row(f"{what} {told}", milliseconds(_p99(found)), f"without {milliseconds(floor)}", f"{_p99(found) / floor:.2f}", bound)

    return [
        row(f"under {DEPLOYS} deploys, {DEPLOYS_PER_SECOND}/s", steady, "at most 1.3"),
        row("under deploys without a pause", dense),
        Row("all of those triggers: without deploys", spread([*itertools.chain(*quiet)])),
        Row("all of those triggers: under deploys", spread([*itertools.chain(*steady)])),
    ]


def _p99(phases: list[list[float]]) -> float:
    """The median of the phases: what else happens on the machine in one of them is not ours."""
    return statistics.median(percentile(latencies, 99) for latencies in phases)


async def _phase(load: asyncio.subprocess.Process, seconds: float) -> list[float]:
    assert load.stdin is not None
    load.stdin.write(f"{seconds}\n".encode())
    await load.stdin.drain()
    return [float(text) for text in (await line(load)).split()]


async def _deploys(plane: ControlPlane, app: str, first: int, per_second: float) -> None:
    """DEPLOYS_EACH of them, evenly, or without a pause."""
    began = time.monotonic()
    for number in range(DEPLOYS_EACH):
        if per_second:
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        await _deploy(plane, app, first * DEPLOYS_EACH + number)


async def _deploy(plane: ControlPlane, app: str, number: int) -> None:
    rollout = (await plane.deploy(app, f"v{number % 2 + 1}")).rollout
    if rollout.gateways_applied != 1:
        sys.exit(f"a deploy was not applied: {rollout}")
