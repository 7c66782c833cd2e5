"""Executions on record: what storing them costs deploys, and how quickly they are found among a million, on both engines, through gRPC."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from control_plane.execution_model import Execution, Outcome, Report
from control_plane.storage import open_executions, open_store
from pointsman.v1 import deployments_pb2_grpc, executions_pb2_grpc
from pointsman.v1 import executions_pb2 as pb
from tests.bench.deploys import alternating, prepared
from tests.bench.table import Row, milliseconds, spread
from tests.postgres_server import PostgresServer, available, running_postgres
from tests.processes import start_control_plane

RATE = 5_000
BATCH = 1_000
SECONDS = 10
IDLE_DEPLOYS = 300
PAUSE_SECONDS = 0.02
RECORDS = 1_000_000
# So that the last hour has 100,000 of them.
BETWEEN_MICROS = 36_000
ROUNDS = 7
RELEASES = 20
REPORT = "/pointsman.v1.GatewayService/ReportExecutions"

FILTERS: dict[str, dict[str, object]] = {
    "app": {"app": "shop"},
    "environment": {"environment": "staging"},
    "release, the oldest": {"release": "v0"},
    "release, the newest": {"release": f"v{RELEASES - 1}"},
    "endpoint": {"endpoint": "find"},
    "outcome SUCCEEDED": {"outcome": pb.Execution.SUCCEEDED},
    "outcome FAILED": {"outcome": pb.Execution.FAILED},
    "outcome that none has": {"outcome": pb.Execution.CANCELLED},
    "gateway": {"gateway_id": "gateway-3"},
    "error reason": {"error_reason": "STEP_FAILED"},
    "duration, one in 15,000": {"min_duration": Duration(seconds=1)},
    "duration, one in 400": {"min_duration": Duration(nanos=300_000_000)},
    "duration, one in 4": {"min_duration": Duration(nanos=40_000_000)},
}
TOGETHER: dict[str, dict[str, object]] = {
    "none": {},
    **{f"{a} and {b}": FILTERS[a] | FILTERS[b] for a, b in itertools.combinations(FILTERS, 2) if not FILTERS[a].keys() & FILTERS[b].keys()},
    "all of them, and nothing passes": {
        "app": "shop",
        "environment": "staging",
        "release": "v0",
        "endpoint": "find",
        "outcome": pb.Execution.SUCCEEDED,
        "gateway_id": "gateway-3",
        "min_duration": Duration(nanos=500_000_000),
    },
}


async def rows() -> list[Row]:
    """SQLite first; PostgreSQL where there are binaries of it."""
    with tempfile.TemporaryDirectory() as name:
        found = await _engine("SQLite", f"sqlite:///{name}/bench.db", None)
    if available():
        with running_postgres() as server:
            found += await _engine("PostgreSQL", server.url(server.new_database()), server)
    return found


async def _engine(engine: str, url: str, server: PostgresServer | None) -> list[Row]:
    async with _serving(url) as address, prepared(address) as deployments:
        idle: list[float] = []
        await _deploy(deployments, idle, IDLE_DEPLOYS)
        rate, busy = await _deploys_under_reports(address, deployments)
    await _fill(url)
    if server is not None:
        # As the server does by itself within a minute or two, in the midst of what is measured.
        server.execute("VACUUM ANALYZE", url.rpartition("/")[2])
    async with _serving(url) as address, grpc.aio.insecure_channel(address) as channel:
        stub = executions_pb2_grpc.ExecutionServiceStub(channel)
        alone = {what: await _median(lambda f=f: stub.ListExecutions(pb.ListExecutionsRequest(**f))) for what, f in FILTERS.items()}
        together = {what: await _median(lambda f=f: stub.ListExecutions(pb.ListExecutionsRequest(**f))) for what, f in TOGETHER.items()}
        hour = await _median(lambda: stub.SummarizeExecutions(pb.SummarizeExecutionsRequest()))
    slowest, slowest_together = max(alone, key=lambda what: alone[what]), max(together, key=lambda what: together[what])
    medians = statistics.median(idle), statistics.median(busy)
    return [
        Row(f"{engine}: executions stored a second, in batches of {BATCH:,}", f"{rate:.0f}/s", bound=f"at least {RATE:,}/s"),
        Row(
            f"{engine}: Deploy while {RATE:,}/s are stored, beside an idle one",
            milliseconds(medians[1]),
            milliseconds(medians[0]),
            f"{medians[1] / medians[0]:.2f}",
            "at most 2",
        ),
        Row(f"{engine}: the same, idle", spread(idle)),
        Row(f"{engine}: the same, while {RATE:,}/s are stored", spread(busy)),
        *(Row(f"{engine}: ListExecutions of {RECORDS:,}, by {what}", milliseconds(seconds)) for what, seconds in alone.items()),
        Row(f"{engine}: the slowest of them, by {slowest}", milliseconds(alone[slowest]), bound="at most 100 ms"),
        Row(
            f"{engine}: the slowest of {len(together)} pairs and more, by {slowest_together}",
            milliseconds(together[slowest_together]),
            bound="at most 100 ms",
        ),
        Row(f"{engine}: SummarizeExecutions of an hour, 100,000", milliseconds(hour), bound="at most 300 ms"),
    ]


@asynccontextmanager
async def _serving(url: str) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        async with start_control_plane(Path(folder), "--store", url, "--keep-executions-rows", str(2 * RECORDS)) as plane:
            yield plane.grpc


async def _deploy(stub: deployments_pb2_grpc.DeploymentServiceStub, seconds: list[float], count: int) -> None:
    """Adds what each took: one after the other with pauses, so that they are no load themselves."""
    for number in range(count):
        started = time.perf_counter()
        await stub.Deploy(alternating(number))
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE_SECONDS)


async def _deploys_under_reports(address: str, stub: deployments_pb2_grpc.DeploymentServiceStub) -> tuple[float, list[float]]:
    """How many executions were stored a second, and what deploys took meanwhile."""
    batches = list(_batches(RATE * SECONDS // BATCH))
    async with grpc.aio.insecure_channel(address) as channel:
        # Serialised before: the client must not be what is measured.
        report = channel.unary_unary(REPORT, response_deserializer=pb.ReportExecutionsResponse.FromString)
        latencies: list[float] = []
        deploying = asyncio.create_task(_deploy(stub, latencies, 10**6))
        started, stored = time.perf_counter(), 0
        for number, batch in enumerate(batches):
            await asyncio.sleep(started + number * BATCH / RATE - time.perf_counter())
            stored += (await report(batch)).stored
        rate = stored / (time.perf_counter() - started)
        deploying.cancel()
        await asyncio.gather(deploying, return_exceptions=True)
    return rate, latencies


def _batches(count: int) -> Iterator[bytes]:
    chance = random.Random(1)
    for _ in range(count):
        now = time.time_ns() // 1000
        report = pb.ReportExecutionsRequest(gateway_id="gateway-1", instance_id=str(uuid.uuid4()))
        for _ in range(BATCH):
            one = report.executions.add(execution_id=str(uuid.UUID(int=chance.getrandbits(128))), app="shop", environment="production")
            one.endpoint, one.release, one.digest, one.revision, one.outcome = "chat", "v1", "sha256:" + "0" * 64, 1, pb.Execution.SUCCEEDED
            one.start_time.FromMicroseconds(now)
            one.duration.FromMilliseconds(12)
            for step in ("read", "think", "answer"):
                taken = one.steps.add(stage="main", name=step, kind="transform", outcome=pb.Execution.StepExecution.SUCCEEDED, attempts=1)
                taken.start_time.FromMicroseconds(now)
                taken.duration.FromMilliseconds(4)
        yield report.SerializeToString()


async def _median(call: Callable[[], Awaitable[object]]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def _fill(url: str) -> None:
    """A million, the newest of now: of several apps, environments, endpoints and gateways, one release after the other."""
    store = await open_store(url)
    await store.close()
    kept = await asyncio.to_thread(open_executions, url, store.store_id)
    chance, now = random.Random(2), time.time_ns() // 1000
    try:
        for first in range(0, RECORDS, BATCH):
            batch = [_execution(chance, number, now) for number in range(first, first + BATCH)]
            await kept.record(Report(gateway_id="gateway-1", instance_id="bench", executions=batch), now)
    finally:
        await kept.close()


def _execution(chance: random.Random, number: int, now: int) -> Execution:
    began = now - (RECORDS - number) * BETWEEN_MICROS
    failed = chance.random() < 0.01
    return Execution(
        execution_id=(began // 1000 << 80 | chance.getrandbits(76)).to_bytes(16),
        app=chance.choice(("shop", "chat", "search")),
        environment="staging" if chance.random() < 0.2 else "production",
        endpoint=chance.choice(("chat", "talk", "find")),
        release=f"v{number * RELEASES // RECORDS}",
        digest="sha256:" + "0" * 64,
        revision=number * RELEASES // RECORDS,
        gateway_id=f"gateway-{chance.randrange(8)}",
        start_time=began,
        duration=int(chance.lognormvariate(10, 1)),
        outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
        error_reason="STEP_FAILED" if failed else "",
        error_message="it broke" if failed else "",
        token_id="",
        trace_id="",
        input_tokens=10,
        output_tokens=20,
        detail=b"x" * 300,
    )
