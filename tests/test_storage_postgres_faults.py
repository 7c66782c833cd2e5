"""What a PostgreSQL store does when its server dies, freezes, fills up, fails over, or is lost in the midst of a commit."""

import asyncio
import contextlib
import os
import random
import shutil
import threading
import time

import psycopg
import pytest

from control_plane.storage import open_store, postgres, postgres_connection, postgres_following
from control_plane.storage.postgres_connection import commit, shut
from pointsman.errors import StoreUnavailable
from tests.eventually import eventually
from tests.postgres_server import MISSING, PASSWORD, available, running_postgres, standby_of
from tests.proxy import Proxy
from tests.test_storage_contract import an_app, bind, filled, write

pytestmark = pytest.mark.skipif(not available(), reason=MISSING)
NOTHING_CHANGED = "Nothing was changed"
# How long a caller that was refused waits before it asks again.
RETRY_SECONDS = 0.01


@pytest.fixture
def server():
    """A server of the test's own, which it may harm."""
    with running_postgres() as server:
        yield server


@contextlib.asynccontextmanager
async def opened(url):
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def in_a_thread(manager):
    """Enters and leaves it beside the loop, which a proxy in it needs."""
    entered = await asyncio.to_thread(manager.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def backend_of_the_writer(server, waiting_for="SyncRep") -> int:
    """The server process of the transaction that waits, once it does."""
    sql = f"SELECT pid FROM pg_stat_activity WHERE application_name = 'pointsman' AND wait_event = '{waiting_for}'"
    return (await eventually(lambda: server.execute(sql)))[0][0]


class Load:
    """Callers that write an app each, again and again, and what they were told."""

    def __init__(self, store) -> None:
        self.store = store
        self.acknowledged: dict[str, int] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.said: set[str] = set()
        self.outage_seconds = 0.0
        self._last = time.monotonic()

    async def one(self, name: str) -> None:
        async def work(tx) -> int:
            await tx.insert_app(an_app(name))
            return await tx.next_revision()

        try:
            revision = await self.store.write(work)
        except StoreUnavailable as error:
            self.said.add(error.message)
            (self.refused if NOTHING_CHANGED in error.message else self.unknown).add(name)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            now = time.monotonic()
            self.outage_seconds, self._last = max(self.outage_seconds, now - self._last), now
            self.acknowledged[name] = revision

    async def until(self, done, callers: int = 8) -> None:
        """Runs until done() holds."""
        self._last = time.monotonic()

        async def caller(number: int) -> None:
            count = 0
            while not done():
                await self.one(f"app-{number}-{count}")
                count += 1

        await asyncio.gather(*(caller(number) for number in range(callers)))

    async def check(self, store) -> None:
        """Everything acknowledged is there, once; nothing that was refused is; revisions only grew."""

        async def everything(tx):
            there, after = set(), ""
            while page := await tx.apps(after=after, limit=500):
                there |= {app.app for app in page}
                after = page[-1].app
            return there, await tx.revision()

        there, revision = await store.read(everything)
        assert not any(PASSWORD in message for message in self.said)
        assert set(self.acknowledged) - there == set(), "acknowledged and lost"
        assert there & self.refused == set(), "told that nothing was changed, and it was"
        assert there <= set(self.acknowledged) | self.unknown
        assert len(set(self.acknowledged.values())) == len(self.acknowledged)
        assert revision >= max(self.acknowledged.values())


async def test_promise_03_kill_9_of_postgres_loses_nothing_and_the_store_comes_back_by_itself(server):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with opened(server.url(server.new_database())) as store:
        load = Load(store)
        enough = 0
        running = asyncio.create_task(load.until(lambda: len(load.acknowledged) >= enough > 100))
        for _ in range(2):
            wanted = len(load.acknowledged) + chance.randrange(40, 120)
            await eventually(lambda wanted=wanted: len(load.acknowledged) >= wanted)
            await asyncio.to_thread(server.kill)
            await eventually(lambda: load.refused)
            with pytest.raises(StoreUnavailable):
                await store.read(lambda tx: tx.revision())
            await asyncio.to_thread(server.start)
            before = len(load.acknowledged)
            await eventually(lambda before=before: len(load.acknowledged) > before)
        enough = len(load.acknowledged) + 50
        enough = max(enough, 101)
        await running
        await load.check(store)


async def test_promise_03_the_primary_dies_and_the_standby_goes_on_with_everything_acknowledged(server):
    with standby_of(server) as standby:
        server.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        server.execute("SELECT pg_reload_conf()")
        await eventually(lambda: server.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
        both = server.url().replace(f":{server.port}/", f":{server.port},127.0.0.1:{standby.port}/")
        async with opened(both) as store:
            load, rings = Load(store), []
            store.on_change(lambda: rings.append(1))
            enough = 10**9
            running = asyncio.create_task(load.until(lambda: len(load.acknowledged) >= enough))
            await eventually(lambda: len(load.acknowledged) >= 300)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(standby.promote)
            at_failover = len(load.acknowledged)
            await eventually(lambda: len(load.acknowledged) >= at_failover + 1)
            rung = len(rings)
            enough = len(load.acknowledged) + 200
            await running
            assert load.outage_seconds < 10
            assert len(rings) > rung
            await load.check(store)
            print(f"{len(load.acknowledged)} acknowledged, {len(load.refused)} refused, {len(load.unknown)} unknown; "
                  f"worst outage {load.outage_seconds:.2f} s")  # fmt: skip


async def without_standby(server) -> None:
    """Commits wait for a standby that is not there."""
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    server.execute("SELECT pg_reload_conf()")
    await eventually(lambda: server.execute("SHOW synchronous_standby_names") == [("nobody",)])


async def standby_no_longer_wanted(server) -> None:
    """Those who wait may go on: everything is as safe as it shall be."""
    server.execute("ALTER SYSTEM RESET synchronous_standby_names")
    server.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("fault", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_commit_whose_answer_is_lost_is_told_as_what_it_was_and_not_before_it_is_safe(server, fault):
    async with opened(server.url()) as store:
        await filled(store)
        await without_standby(server)
        writing = asyncio.create_task(bind(store, "d1", "v1"))
        server.execute(f"SELECT {fault}({await backend_of_the_writer(server)})")
        # The store asks again what became of it, and that waits for the standby too.
        await backend_of_the_writer(server)
        assert not writing.done()
        await standby_no_longer_wanted(server)
        assert await writing == 1
        assert (await store.read(lambda tx: tx.binding("shop", "staging"))).revision == 1


async def test_a_question_whose_answer_is_lost_too_does_not_answer_itself(server, monkeypatch):
    """The batch never reached its COMMIT; asking for its fate commits something as well, and breaks just after."""
    async with opened(server.url()) as store:
        await filled(store)

        def never_arrives(connection, _first=""):
            shut(connection)
            connection.execute(b"COMMIT")

        lost = []

        def answer_is_lost(connection, first=""):
            done = commit(connection, first)
            if not lost:
                lost.append(1)
                raise psycopg.OperationalError("planted")
            return done

        monkeypatch.setattr(postgres, "commit", never_arrives)
        monkeypatch.setattr(postgres_following, "commit", answer_is_lost)
        with pytest.raises(StoreUnavailable, match=NOTHING_CHANGED):
            await bind(store, "d1", "v1")
        assert lost
        monkeypatch.undo()
        assert await store.read(lambda tx: tx.binding("shop", "staging")) is None
        assert await bind(store, "d1", "v1") == 1


async def test_a_standby_that_stays_away_holds_nobody_up_for_ever(server, monkeypatch):
    monkeypatch.setattr(postgres, "COMMIT_SECONDS", 0.5)
    monkeypatch.setattr(postgres_following, "OUTCOME_SECONDS", 0.5)
    monkeypatch.setattr(postgres_connection, "_SESSION", postgres_connection._SESSION.replace("10s", "300ms"))
    async with opened(server.url()) as store:
        await filled(store)
        await without_standby(server)
        with pytest.raises(StoreUnavailable, match=r"is its synchronous standby away.* not known; ask again, with the same request_id"):
            await bind(store, "d1", "v1")
        with pytest.raises(StoreUnavailable, match=NOTHING_CHANGED):
            await bind(store, "d2", "v2")
        assert (await store.read(lambda tx: tx.release("shop", "v1"))).tag == "v1"
        await standby_no_longer_wanted(server)
        await eventually(lambda: succeeded(store))


async def test_closing_waits_for_no_server(server, monkeypatch):
    monkeypatch.setattr(postgres, "CLOSE_SECONDS", 0.5)
    store = await open_store(server.url())
    await filled(store)
    await without_standby(server)
    writing = asyncio.create_task(bind(store, "d1", "v1"))
    await backend_of_the_writer(server)
    started = time.monotonic()
    await store.close()
    assert time.monotonic() - started < 5
    with pytest.raises(StoreUnavailable, match="request_id"):
        await writing
    await standby_no_longer_wanted(server)


async def test_a_transaction_that_is_cut_before_its_commit_has_changed_nothing(server):
    async with opened(server.url()) as store:
        await filled(store)

        async def cut(tx):
            await tx.next_revision()
            await tx._rows("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(StoreUnavailable, match=NOTHING_CHANGED):
            await store.write(cut)
        assert await bind(store, "d1", "v1") == 1


async def test_a_commit_that_the_new_primary_never_got_is_not_taken_for_anothers(server):
    """After a failover the new primary gives the same transaction ids again: they say nothing about what was lost."""
    async with Proxy(f"127.0.0.1:{server.port}") as replication:
        async with in_a_thread(standby_of(server, through=replication.port)) as standby:
            server.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            server.execute("SELECT pg_reload_conf()")
            await eventually(lambda: server.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
            async with Proxy(f"127.0.0.1:{standby.port}") as to_standby:
                both = server.url().replace(f":{server.port}/", f":{server.port},127.0.0.1:{to_standby.port}/")
                async with opened(both) as store:
                    await write(store, lambda tx: tx.insert_app(an_app()))
                    replication.deaf = True
                    lost = asyncio.create_task(write(store, lambda tx: tx.insert_app(an_app("lost"))))
                    await backend_of_the_writer(server)
                    await to_standby.stop()
                    await asyncio.to_thread(server.kill)
                    await replication.stop()
                    await asyncio.to_thread(standby.promote)
                    standby.execute("ALTER SYSTEM RESET synchronous_standby_names")
                    standby.execute("SELECT pg_reload_conf()")
                    async with opened(standby.url()) as other:
                        for number in range(30):
                            await write(other, lambda tx, number=number: tx.insert_app(an_app(f"other-{number}")))
                    await to_standby.restart()
                    with pytest.raises(StoreUnavailable):
                        await lost
                    assert await store.read(lambda tx: tx.app("lost")) is None
                    await write(store, lambda tx: tx.insert_app(an_app("lost")))


async def test_a_server_that_answers_nothing_is_unavailable_after_a_bounded_time(server, monkeypatch):
    monkeypatch.setattr(postgres_following, "ANSWER_SECONDS", 0.5)
    async with opened(server.url()) as store:
        await filled(store)
        for _ in range(4):
            await store.read(lambda tx: tx.revision())
        with server.frozen():
            for call in (store.read(lambda tx: tx.revision()), bind(store, "d1", "v1"), bind(store, "d2", "v1")):
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await call
                assert time.monotonic() - started < 10
        await eventually(lambda: recovered(store))
        await bind(store, "d3", "v2")


async def recovered(store) -> bool:
    try:
        await store.read(lambda tx: tx.revision())
        await write(store, lambda tx: tx.next_revision())
    except StoreUnavailable:
        return False
    return True


@pytest.mark.skipif(not shutil.which("prlimit"), reason="no prlimit (util-linux) to fill a disk with")
async def test_a_full_disk_refuses_loses_nothing_and_recovers_without_a_restart(server):
    async with opened(server.url()) as store:
        await filled(store)
        (pid,) = server.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%COMMIT%' AND application_name = 'pointsman'")[0]
        # More than a segment of its log has, so that only its tables are full.
        server.limit_files(pid, "20000000")
        data, written = os.urandom(1_000_000), 0

        async def one_more() -> None:
            await write(store, lambda tx: tx.insert_snapshot(f"sha256:x{written}", data))

        with pytest.raises(StoreUnavailable, match=NOTHING_CHANGED):  # noqa: PT012 -- which of them is the first that does not fit is not known
            while written < 40:
                await one_more()
                written += 1
        assert await store.read(lambda tx: tx.snapshot(f"sha256:x{written}")) is None
        server.limit_files(pid, "unlimited")
        await one_more()
        for number in range(written + 1):
            assert len(await store.read(lambda tx, number=number: tx.snapshot(f"sha256:x{number}"))) == 1_000_000


async def test_a_replica_that_hangs_in_a_transaction_is_cut_off_and_the_others_go_on(server, monkeypatch):
    monkeypatch.setattr(postgres_connection, "_SESSION", postgres_connection._SESSION.replace("5s", "500ms"))
    async with opened(server.url()) as store, opened(server.url()) as other:
        await filled(store)
        held, go = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        async def hangs(tx):
            await tx.next_revision()
            loop.call_soon_threadsafe(held.set)
            go.wait(20)
            await tx.next_revision()

        hanging = asyncio.create_task(store.write(hangs))
        await held.wait()
        assert await eventually(lambda: succeeded(other), timeout_seconds=20)
        go.set()
        with pytest.raises(StoreUnavailable, match=NOTHING_CHANGED):
            await hanging


async def succeeded(store) -> int:
    try:
        return await store.write(lambda tx: tx.next_revision())
    except StoreUnavailable:
        return 0
