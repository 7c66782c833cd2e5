"""Many gateways at once: a large release that all of them fetch, and a control plane that all of them lose at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from pointsman.v1 import config_pb2, deployments_pb2, deployments_pb2_grpc
from tests.bench.children import KIB, memory_bytes
from tests.bench.deploys import alternating, prepared
from tests.bench.fanout import Streams, streams
from tests.bench.table import Row, milliseconds
from tests.clients import control_plane_client, releases_pb2
from tests.eventually import eventually
from tests.processes import Server, start_control_plane

GATEWAYS = 1000
RELEASE_BYTES = KIB * KIB
FLIPS = 15
RETURNING = 3000
OUTAGES = 3
WAIT_SECONDS = 60
# Gateways in processes of this machine share its processors with the control plane: they need longer than real ones.
FLAGS = ("--prepare-timeout-seconds", str(WAIT_SECONDS))


async def rows() -> list[Row]:
    """Both."""
    return [*await _large_release(), *await _return()]


def large_config(mark: str) -> config_pb2.AppConfig:
    """A config of RELEASE_BYTES, most of it in prompts."""
    config = config_pb2.AppConfig(models=[config_pb2.Model(name="m")])
    config.models[0].targets.add(base_url="http://127.0.0.1:1/v1", model="m")
    for number in range(5):
        inference = config.pipelines.add(name=f"{mark}-{number}").stages.add(name="s").steps.add(name="a").inference
        inference.model = "m"
        inference.prompt = "x" * (RELEASE_BYTES // 5)
    config.endpoints.add(name="e", pipeline=f"{mark}-0")
    return config


def large(number: int) -> deployments_pb2.DeployRequest:
    """A Deploy of one of two large releases, that always changes something."""
    request = deployments_pb2.DeployRequest(app="bench", environment="production", release=f"large{number % 2 + 1}")
    request.wait.seconds = WAIT_SECONDS
    return request


async def _large_release() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        async with (
            start_control_plane(Path(name), *FLAGS) as server,
            prepared(server.grpc) as stub,
            control_plane_client(server) as plane,
            streams("fetching", server.grpc, GATEWAYS) as gateways,
        ):
            for number in (1, 2):
                request = releases_pb2.CreateReleaseRequest(app="bench", tag=f"large{number}", config=large_config(f"large{number}"))
                await plane.releases.CreateRelease(request)
            for number in range(2):
                await gateways.measure(lambda number=number: stub.Deploy(alternating(number)))
            spread, risen = [], []
            for number in range(2):
                async with _watched(server.pid) as peak:
                    before = memory_bytes(server.pid)
                    seconds, _ = await gateways.measure(lambda number=number: _to_all(stub, large(number), GATEWAYS))
                spread.append(seconds)
                risen.append(max(peak) - before)
            large_flips, small_flips = await _flips(gateways, stub)
    ratio = statistics.median(large_flips) / statistics.median(small_flips)
    return [
        Row(f"1 MB release fetched by {GATEWAYS} gateways, first and second", ", ".join(milliseconds(seconds) for seconds in spread)),
        Row(
            "control-plane memory rises meanwhile by",
            ", ".join(f"{found / KIB / KIB:.0f} MiB" for found in risen),
            bound="less than 64 MB",
        ),
        Row(
            f"flip of {GATEWAYS} gateways to a held release of 1 MB",
            milliseconds(statistics.median(large_flips)),
            f"of 1 KB {milliseconds(statistics.median(small_flips))}",
            f"{ratio:.2f}",
            "as quick",
        ),
    ]


async def _flips(gateways: Streams, stub: deployments_pb2_grpc.DeploymentServiceStub) -> tuple[list[float], list[float]]:
    large_flips, small_flips = [], []
    for number in range(FLIPS):
        large_flips.append((await gateways.measure(lambda number=number: _to_all(stub, large(number), GATEWAYS)))[0])
        small_flips.append((await gateways.measure(lambda number=number: stub.Deploy(alternating(number))))[0])
    return large_flips, small_flips


async def _to_all(stub: deployments_pb2_grpc.DeploymentServiceStub, request: deployments_pb2.DeployRequest, count: int) -> None:
    response = await stub.Deploy(request)
    assert response.rollout.gateways_applied == count, response.rollout


@contextlib.asynccontextmanager
async def _watched(pid: int) -> AsyncIterator[list[int]]:
    """The memory of a process, looked at again and again."""
    found: list[int] = []

    async def look() -> None:
        while True:
            found.append(memory_bytes(pid))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(look())
    try:
        yield found
    finally:
        task.cancel()


async def _return() -> list[Row]:
    """kill -9, a start, and a Deploy from the moment of the kill on, that waits for the control plane to be there."""
    back, deploys, starts = [], [], []
    with tempfile.TemporaryDirectory() as name:
        async with start_control_plane(Path(name)) as server, prepared(server.grpc) as stub:
            await stub.Deploy(alternating(0))
            before = memory_bytes(server.pid)
            async with streams("returning", server.grpc, RETURNING) as gateways:
                each = (memory_bytes(server.pid) - before) / RETURNING
                for number in range(OUTAGES):
                    outage = _Outage(server, stub, number + 1)
                    moments = await gateways.receipts(outage.run)
                    back.append(max(moments) - outage.ready)
                    deploys.append(outage.deployed - outage.ready)
                    starts.append(server.ready_after_seconds)
                    await _all_in_step(stub, number)
    return [
        Row(f"{RETURNING} gateways that lost the control plane: all back and in sync", _seconds(back), bound="within 20 s"),
        Row("a Deploy sent meanwhile answers, after the return", _seconds(deploys), bound="no error"),
        Row("that control plane's start", _seconds(starts)),
        Row(f"{RETURNING} gateways: control-plane memory for each", f"{each / KIB:.0f} KiB", bound="at most 60 KB"),
    ]


class _Outage:
    """One outage."""

    def __init__(self, server: Server, stub: deployments_pb2_grpc.DeploymentServiceStub, number: int) -> None:
        self._server, self._stub, self._number = server, stub, number
        self.ready = self.deployed = 0.0

    async def run(self) -> None:
        await self._server.kill()
        deploying = asyncio.ensure_future(self._stub.Deploy(alternating(self._number), wait_for_ready=True, timeout=WAIT_SECONDS))
        await self._server.start()
        self.ready = time.monotonic()
        await deploying
        self.deployed = time.monotonic()


async def _all_in_step(stub: deployments_pb2_grpc.DeploymentServiceStub, number: int) -> None:
    async def applied() -> bool:
        request = alternating(number + 1)
        request.wait.seconds = 10
        return (await stub.Deploy(request)).rollout.gateways_applied == RETURNING

    await eventually(applied, WAIT_SECONDS)


def _seconds(found: list[float]) -> str:
    return ", ".join(f"{seconds:.2f} s" for seconds in found)
