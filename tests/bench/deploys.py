"""What a durable Deploy costs: beside a bare gRPC echo and a bare durable commit, and with two gateways that acknowledge."""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, deployments_pb2_grpc, releases_pb2, releases_pb2_grpc
from tests.bench.children import bare_server
from tests.bench.table import Row, milliseconds, spread
from tests.processes import start_control_plane, start_gateway

ROUNDS = 300


@asynccontextmanager
async def prepared(address: str) -> AsyncIterator[deployments_pb2_grpc.DeploymentServiceStub]:
    """A stub, and an app `bench` with releases v1 and v2."""
    async with grpc.aio.insecure_channel(address) as channel:
        await apps_pb2_grpc.AppServiceStub(channel).CreateApp(apps_pb2.CreateAppRequest(app="bench"))
        releases = releases_pb2_grpc.ReleaseServiceStub(channel)
        for tag in ("v1", "v2"):
            request = releases_pb2.CreateReleaseRequest(app="bench", tag=tag)
            request.config.pipelines.add(name=tag).stages.add(name="s").steps.add(name="a").transform.expression = "1"
            request.config.endpoints.add(name="e", pipeline=tag)
            await releases.CreateRelease(request)
        yield deployments_pb2_grpc.DeploymentServiceStub(channel)


def alternating(number: int) -> deployments_pb2.DeployRequest:
    """A Deploy that always changes something."""
    return deployments_pb2.DeployRequest(app="bench", environment="staging", release=f"v{number % 2 + 1}")


async def rows() -> list[Row]:
    """Sequential deploys in alternation with their floor; then deploys with two gateways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, floor = await _against_floor(folder)
        with_gateways = await _with_gateways(folder / "two")
    ratio = statistics.median(ours) / statistics.median(floor)
    return [
        Row(
            "Deploy, durable, no gateways",
            milliseconds(statistics.median(ours)),
            f"echo + commit {milliseconds(statistics.median(floor))}",
            f"{ratio:.2f}",
            "at most 1.6",
        ),
        Row("Deploy with two gateways that acknowledge", spread(with_gateways), bound="median under 50 ms"),
    ]


async def _against_floor(folder: Path) -> tuple[list[float], list[float]]:
    database = sqlite3.connect(folder / "floor.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    ours, floor = [], []
    async with start_control_plane(folder) as plane, prepared(plane.grpc) as stub, bare_server(100) as bare:
        async with grpc.aio.insecure_channel(bare) as channel:
            echo = channel.unary_unary("/bench.Bare/Echo")
            for number in range(ROUNDS):
                started = time.perf_counter()
                await stub.Deploy(alternating(number))
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                await echo(b"x" * 100)
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO t VALUES (?, ?)", [number, "x" * 100])
                database.execute("COMMIT")
                floor.append(time.perf_counter() - started)
    database.close()
    return ours[20:], floor[20:]


async def _with_gateways(folder: Path) -> list[float]:
    folder.mkdir()
    seconds = []
    async with (
        start_control_plane(folder) as plane,
        start_gateway(folder, plane.grpc, gateway_id="east"),
        start_gateway(folder, plane.grpc, gateway_id="west"),
        prepared(plane.grpc) as stub,
    ):
        for number in range(ROUNDS):
            started = time.perf_counter()
            response = await stub.Deploy(alternating(number))
            seconds.append(time.perf_counter() - started)
            if response.rollout.gateways_applied != 2:
                sys.exit(f"a deploy was not applied by both gateways: {response.rollout}")
    return seconds[20:]
