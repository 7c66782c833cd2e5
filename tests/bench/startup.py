"""How long commands and servers take to start."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.table import Row, milliseconds
from tests.processes import BIN, run, start_control_plane, start_gateway

RUNS = 5


async def rows() -> list[Row]:
    """`pointsman --help`, `status`, and the ready lines; medians."""
    helps, statuses, planes, gateways = [], [], [], []
    for _ in range(RUNS):
        started = time.perf_counter()
        await run(BIN / "pointsman", "--help")
        helps.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            async with start_control_plane(Path(folder)) as plane, start_gateway(Path(folder), plane.grpc) as gateway:
                planes.append(plane.ready_after_seconds)
                gateways.append(gateway.ready_after_seconds)
                started = time.perf_counter()
                await run(BIN / "pointsman", "status", environment={"POINTSMAN_SERVER": plane.grpc})
                statuses.append(time.perf_counter() - started)
    return [
        Row("pointsman --help", milliseconds(statistics.median(helps)), bound="under 300 ms"),
        Row("pointsman status, with its start", milliseconds(statistics.median(statuses)), bound="under 400 ms"),
        Row("control plane ready", milliseconds(statistics.median(planes)), bound="under 1500 ms"),
        Row("gateway ready", milliseconds(statistics.median(gateways)), bound="under 1500 ms"),
    ]
