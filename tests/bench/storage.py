"""What sharing commits gives, and what a full store costs, on both engines, through gRPC.

The sequential rate is one caller that waits for each answer; the peer of a full store is an empty one, called in turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc

from control_plane.model import Action, App, Deployment, Release
from control_plane.storage import open_store
from control_plane.storage.base import Store, Transaction
from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, releases_pb2, releases_pb2_grpc
from tests.bench.children import memory_bytes
from tests.bench.deploys import alternating, prepared
from tests.bench.table import Row, milliseconds
from tests.postgres_server import available, running_postgres
from tests.processes import Server, start_control_plane

CALLERS = 64
SEQUENTIAL_SECONDS = 3.0
CONCURRENT_SECONDS = 5.0
RELEASES = 100_000
BINDINGS = 10_000
ROUNDS = 300
LISTED_PAGES = 40
MIB = 1024 * 1024
# Rows of one transaction.
PIECE = 5_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def rows() -> list[Row]:
    """SQLite first; PostgreSQL where there are binaries of it."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folders = iter(range(100))

        def new_sqlite() -> str:
            folder = Path(name) / str(next(folders))
            folder.mkdir()
            return f"sqlite:///{folder}/bench.db"

        found += await _engine("SQLite", new_sqlite, 3)
    if available():
        with running_postgres() as server:
            found += await _engine("PostgreSQL", lambda: server.url(server.new_database()), 2)
    return found


async def _engine(engine: str, new_url: Callable[[], str], bound: float) -> list[Row]:
    sequential, concurrent = await _rates(new_url())
    slower = await _full_against_empty(new_url(), new_url())
    full_bytes, few_bytes = await _memory(new_url(), RELEASES), await _memory(new_url(), 50)
    return [
        Row(
            f"{engine}: deploys a second by {CALLERS} callers, beside one caller",
            f"{concurrent:.0f}/s",
            f"{sequential:.0f}/s",
            f"{concurrent / sequential:.2f}",
            f"at least {bound}",
        ),
        *(
            Row(
                f"{engine}: {what}",
                milliseconds(full),
                f"empty store {milliseconds(empty)}",
                f"{full / empty:.2f}",
                "at most 2",
            )
            for what, (full, empty) in slower.items()
        ),
        Row(
            f"{engine}: memory of the control plane on {RELEASES:,} releases, 2,000 of them listed",
            f"{full_bytes / MIB:.0f} MiB",
            f"on 50 releases {few_bytes / MIB:.0f} MiB",
            f"{full_bytes / few_bytes:.2f}",
            "does not grow",
        ),
    ]


@asynccontextmanager
async def _serving(url: str) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        async with start_control_plane(Path(folder), "--store", url) as plane:
            yield plane


async def _rates(url: str) -> tuple[float, float]:
    """Deploys a second: one caller, many callers. All of one app and environment, each a change."""
    async with _serving(url) as plane, prepared(plane.grpc) as stub:
        return await _rate(stub, 1, SEQUENTIAL_SECONDS), await _rate(stub, CALLERS, CONCURRENT_SECONDS)


async def _rate(stub: deployments_pb2_grpc.DeploymentServiceStub, callers: int, seconds: float) -> float:
    numbers = iter(range(10**9))
    for _ in range(100):
        await stub.Deploy(alternating(next(numbers)))
    started, done = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            await stub.Deploy(alternating(next(numbers)))
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - started)


async def _full_against_empty(full: str, empty: str) -> dict[str, tuple[float, float]]:
    """What each call takes on a full store and on one with next to nothing in it."""
    await _fill(full, RELEASES, BINDINGS)
    await _fill(empty, 50, 1)
    page = releases_pb2.ListReleasesRequest(app="bench", page_size=50)
    deep = releases_pb2.ListReleasesRequest(app="bench", page_size=50)
    one = deployments_pb2.GetBindingRequest(app="bench", environment="staging")
    async with AsyncExitStack() as stack:
        stubs = []
        for url in (full, empty):
            plane = await stack.enter_async_context(_serving(url))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(plane.grpc))
            stubs.append((releases_pb2_grpc.ReleaseServiceStub(channel), deployments_pb2_grpc.DeploymentServiceStub(channel)))
        (releases, bindings), (few, single) = stubs
        for _ in range(20):
            deep.page_token = (await releases.ListReleases(deep)).next_page_token
        return {
            f"ListReleases, 50 of {RELEASES:,}": await _beside(lambda: releases.ListReleases(page), lambda: few.ListReleases(page)),
            f"ListReleases, page 21 of {RELEASES:,}": await _beside(lambda: releases.ListReleases(deep), lambda: few.ListReleases(page)),
            f"GetBinding among {BINDINGS:,}": await _beside(lambda: bindings.GetBinding(one), lambda: single.GetBinding(one)),
        }


async def _memory(url: str, releases: int) -> int:
    """Resident bytes of a control plane that has served 2,000 releases of a store with so many, and one binding."""
    await _fill(url, releases, 1)
    async with _serving(url) as plane, grpc.aio.insecure_channel(plane.grpc) as channel:
        stub = releases_pb2_grpc.ReleaseServiceStub(channel)
        request = releases_pb2.ListReleasesRequest(app="bench", page_size=50)
        for _ in range(LISTED_PAGES):
            request.page_token = (await stub.ListReleases(request)).next_page_token
        return memory_bytes(plane.pid)


async def _beside(ours: Callable[[], Awaitable[object]], peer: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, seconds in zip((ours, peer), taken, strict=True):
            started = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - started)
    return statistics.median(taken[0][20:]), statistics.median(taken[1][20:])


async def _fill(url: str, releases: int, bindings: int) -> None:
    """The app `bench` with all the releases, and more apps with one each; all are bound in staging."""
    store = await open_store(url)
    try:
        await store.write(lambda tx: tx.insert_snapshot("sha256:bench", b"bench"))
        await _in_pieces(store, bindings, lambda tx, number: tx.insert_app(_an_app(number)))
        await _in_pieces(store, releases, lambda tx, number: tx.insert_release(_release("bench", f"v{number}")))
        await _in_pieces(store, bindings, _bind)
    finally:
        await store.close()


async def _in_pieces(store: Store, count: int, insert: Callable[[Transaction, int], Awaitable[None]]) -> None:
    for first in range(0, count, PIECE):

        async def piece(tx: Transaction, first: int = first) -> None:
            for number in range(first, min(first + PIECE, count)):
                await insert(tx, number)

        await store.write(piece)


def _app(number: int) -> str:
    return f"bench-{number}" if number else "bench"


def _an_app(number: int) -> App:
    return App(app=_app(number), description="", create_time=NOW, created_by="bench")


def _release(app: str, tag: str) -> Release:
    return Release(app=app, tag=tag, description="", digest="sha256:bench", size_bytes=5, create_time=NOW, created_by="bench")


async def _bind(tx: Transaction, number: int) -> None:
    app = _app(number)
    if number:
        await tx.insert_release(_release(app, "v0"))
    revision = await tx.next_revision()
    deployment = Deployment(
        deployment_id=f"d{number}",
        app=app,
        environment="staging",
        action=Action.DEPLOY,
        release="v0",
        digest="sha256:bench",
        previous_release="",
        revision=revision,
        actor="bench",
        reason="",
        create_time=NOW,
    )
    await tx.insert_deployment(deployment)
    await tx.set_binding(app, "staging", revision=revision, deployment_id=deployment.deployment_id)
