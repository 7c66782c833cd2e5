"""Executions on PostgreSQL: days as partitions that come and go, and a tail that shows what another replica stored."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.execution_model import Report, Wanted
from control_plane.storage import open_executions, open_store
from pointsman.v1 import executions_pb2 as pb
from tests.clients import control_plane_client
from tests.eventually import eventually
from tests.executions import ran, report
from tests.postgres_server import MISSING, available, running_postgres
from tests.processes import start_control_plane
from tests.test_executions_end_to_end import Load, installation, recorded
from tests.test_metrics import samples
from tests.test_storage_executions import DAY
from tests.test_storage_executions import ran as kept_one

MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
TODAY = int(MIDNIGHT.timestamp()) * 1_000_000


@pytest.fixture(autouse=True)
def _today(monkeypatch):
    """Anew for each test: a run of all of them may pass midnight."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(sys.modules[__name__], "MIDNIGHT", midnight)
    monkeypatch.setattr(sys.modules[__name__], "TODAY", int(midnight.timestamp()) * 1_000_000)


@pytest.fixture
def database(postgres_server):
    return postgres_server.new_database()


@pytest.fixture
def url(postgres_server, database):
    return postgres_server.url(database)


@contextlib.asynccontextmanager
async def replicas(url, count):
    store = await open_store(url)
    await store.close()
    found = [await asyncio.to_thread(open_executions, url, store.store_id) for _ in range(count)]
    try:
        yield found
    finally:
        for one in found:
            await one.close()


async def record(kept, *executions):
    return await kept.record(Report(gateway_id="g", instance_id="i", executions=list(executions)), TODAY)


async def ids(kept, **wanted):
    return [e.execution_id for e in await kept.executions(Wanted(**wanted), before=None, limit=500)]


def partition(days):
    return f"executions_{MIDNIGHT + timedelta(days=days):%Y%m%d}"


def partitions(server, database):
    """{name: rows} of those that there are."""
    rows = server.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'executions'::regclass", database)
    return {name: server.execute(f"SELECT count(*) FROM {name}", database)[0][0] for (name,) in rows}


async def test_days_that_are_over_go_as_a_whole_and_those_to_come_are_made(postgres_server, database, url):
    async with replicas(url, 2) as (east, west):
        assert set(partitions(postgres_server, database)) == {"executions_of_other_days", *map(partition, range(3))}
        today, tomorrow = kept_one(TODAY + 1), kept_one(TODAY + DAY)
        old = [kept_one(TODAY - number * DAY) for number in range(1, 4)]
        await record(east, today, tomorrow, *old)
        await record(west, kept_one(TODAY + 2))
        assert partitions(postgres_server, database) == {
            partition(0): 2,
            partition(1): 1,
            partition(2): 0,
            "executions_of_other_days": 3,
        }
        # As it is when today is over; rows of days without a partition go one by one, the others without being looked at.
        assert await asyncio.gather(*(kept.sweep(keep_since=TODAY + DAY, keep_rows=100, limit=100) for kept in (east, west))) != [0, 0]
        assert await ids(east) == await ids(west) == [tomorrow.execution_id]
        assert partitions(postgres_server, database) == {
            partition(0): 0,
            partition(1): 1,
            partition(2): 0,
            "executions_of_other_days": 0,
        }


async def test_a_gateway_that_reports_a_day_that_is_gone_is_served_and_the_day_does_not_come_between(postgres_server, database, url):
    async with replicas(url, 2) as (east, west):
        await record(west, kept_one(TODAY + 2 * DAY))
        postgres_server.execute(f"DROP TABLE {partition(2)}", database)
        late = kept_one(TODAY + 2 * DAY + 1)
        assert await record(west, late) == [late]
        assert await record(east, late) == [], "told twice, stored once, also there"
        assert partitions(postgres_server, database)["executions_of_other_days"] == 1
        # What lies in the other partition keeps its day from being made; nothing breaks over that.
        assert await east.sweep(keep_since=TODAY, keep_rows=100, limit=100) == 0
        assert partition(2) not in partitions(postgres_server, database)
        assert await ids(east, release="v1") == await ids(west) == [late.execution_id]
        assert await east.sweep(keep_since=TODAY + 3 * DAY, keep_rows=100, limit=100) == 1
        await west.sweep(keep_since=TODAY, keep_rows=100, limit=100)
        assert partition(2) in partitions(postgres_server, database)
        again = kept_one(TODAY + 2 * DAY + 2)
        await record(east, again)
        assert partitions(postgres_server, database)[partition(2)] == 1


async def test_news_are_what_others_stored_since_each_once_and_in_slices(url):
    async with replicas(url, 3) as (east, west, reader):
        await record(east, kept_one())
        cursor, nothing = await reader.news(b"", 10)
        assert nothing == []
        await record(reader, kept_one())
        told = [kept_one() for _ in range(25)]
        for number, execution in enumerate(told):
            await record((east, west)[number % 2], execution)
            await record(west, execution)
        seen = []
        while found := (await reader.news(cursor, 4)):
            cursor, new = found
            assert len(new) <= 8
            if not new:
                break
            seen += new
        assert sorted(seen, key=lambda e: e.execution_id) == told


async def test_a_tail_shows_what_came_to_another_replica(url, tmp_path):
    async with (
        start_control_plane(tmp_path, "--store", url) as first,
        start_control_plane(tmp_path, "--store", url) as second,
        control_plane_client(first) as east,
        control_plane_client(second) as west,
    ):
        tail = east.executions.TailExecutions(pb.TailExecutionsRequest(app="shop"))
        await tail.initial_metadata()
        there, here = ran("shop"), ran("shop")
        await report(west, ran("other"), there)
        assert (await asyncio.wait_for(tail.read(), 10)).execution.execution_id == there.execution_id
        await report(west, there)
        await report(east, here)
        assert (await asyncio.wait_for(tail.read(), 10)).execution.execution_id == here.execution_id
        tail.cancel()


@pytest.mark.skipif(not available(), reason=MISSING)
async def test_while_the_store_takes_no_writes_everything_waits_and_then_is_stored_once(tmp_path):
    with running_postgres("fsync=off") as server:
        url = server.url(server.new_database())

        def allow_writes(allowed):
            server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'off' if allowed else 'on'}")
            server.execute("SELECT pg_reload_conf()")

        async with installation(tmp_path, store=url) as (plane_server, _, _, gates), Load(gates).running() as load:
            await load.more(50)
            await eventually(lambda: recorded(plane_server), timeout_seconds=30)
            await asyncio.to_thread(allow_writes, allowed=False)

            async def some_wait():
                pages = [samples((await gate.http.get("/metrics")).text) for gate in gates]
                return all(page["pointsman_gateway_executions_waiting", ()] > 50 for page in pages)

            await eventually(some_wait, timeout_seconds=30)
            # What is there can be read meanwhile.
            assert len(await recorded(plane_server)) > 0
            await asyncio.to_thread(allow_writes, allowed=True)
            await load.more(50)
            load.stopping = True

            async def everything():
                return await recorded(plane_server) == load.seen

            await eventually(everything, timeout_seconds=30)
