"""What only a PostgreSQL store has: a server with a password, and other control planes on the same database."""

import asyncio
import sys

import psycopg
import pytest

from control_plane.storage import CannotOpenStore, open_store, postgres_schema
from control_plane.storage.postgres_connection import location_of, parse
from pointsman.errors import StoreUnavailable
from tests.eventually import eventually
from tests.postgres_server import PASSWORD
from tests.processes import run
from tests.test_storage_contract import NOW, an_app, bind, filled, write


@pytest.fixture
def database(postgres_server):
    return postgres_server.new_database()


@pytest.fixture
def url(postgres_server, database):
    return postgres_server.url(database)


@pytest.fixture
async def store(url):
    opened = await open_store(url)
    yield opened
    await opened.close()


@pytest.fixture
async def other(store, url):
    """A second control plane on the same database."""
    opened = await open_store(url)
    yield opened
    await opened.close()


async def refused(url: str) -> str:
    """The one line that opening it gives; never with a password."""
    with pytest.raises(CannotOpenStore) as cannot:
        await open_store(url)
    message = str(cannot.value)
    assert "\n" not in message
    assert PASSWORD not in message
    assert "w/rd" not in message
    return message


async def test_what_cannot_be_reached_is_told_in_one_line_without_the_password(postgres_server, url, database):
    assert "password authentication failed" in await refused(postgres_server.url(database, password=PASSWORD + "x"))
    assert 'database "no_such" does not exist' in await refused(postgres_server.url("no_such"))
    assert "password authentication failed" in await refused(postgres_server.url(database, user="nobody"))
    assert "Connection refused" in await refused(url.replace(f":{postgres_server.port}", ":1"))
    assert 'it has no parameter "sslmod"' in await refused(url + "?sslmod=require")
    assert "written as %40" in await refused(f"postgresql://ann:{PASSWORD}@127.0.0.1/x")
    assert "not a store" in await refused(f"mysql://ann:{PASSWORD}@127.0.0.1/x")
    assert "has no schema" in await refused(url + "?options=-csearch_path%3Dnowhere")


async def test_a_database_of_another_program_is_refused_and_left_alone(postgres_server, url, database):
    postgres_server.execute("CREATE TABLE theirs (a int)", database)
    assert "tables of another program (theirs)" in await refused(url)
    assert postgres_server.execute("SELECT relname FROM pg_class WHERE relname = 'apps'", database) == []


async def test_a_store_from_the_future_is_refused(postgres_server, store, url, database):
    postgres_server.execute("INSERT INTO pointsman_steps (step, name) VALUES (99, 'hyperdrive')", database)
    assert "newer Pointsman (it has the step 'hyperdrive')" in await refused(url)


async def test_a_store_from_before_there_were_staleness_policies_is_brought_up_to_date(url, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(postgres_schema, "STEPS", postgres_schema.STEPS[:1])
        old = await open_store(url)
        await filled(old)
        await old.close()
    store = await open_store(url)
    try:
        assert (await store.read(lambda tx: tx.environment("production"))).max_staleness is None
        assert await store.read(lambda tx: tx.staleness_policies_since(0)) == []
        assert await store.read(lambda tx: tx.release_tags("shop")) == ["v2", "v1"]
    finally:
        await store.close()


async def test_a_schema_of_its_own_is_enough(postgres_server, url, database):
    postgres_server.execute("CREATE TABLE theirs (a int)", database)
    postgres_server.execute("CREATE SCHEMA ours", database)
    store = await open_store(url + "?options=-csearch_path%3Dours")
    try:
        await filled(store)
    finally:
        await store.close()
    assert postgres_server.execute("SELECT app FROM ours.apps", database) == [("shop",)]


async def test_without_the_driver_the_extra_is_named():
    code = (
        "import asyncio, sys; sys.modules['psycopg'] = None\n"
        "from control_plane.storage import CannotOpenStore, open_store\n"
        "try: asyncio.run(open_store('postgresql://ann@127.0.0.1/x'))\n"
        "except CannotOpenStore as error: print(error)"
    )
    told = await run(sys.executable, "-c", code)
    assert "pip install 'pointsman[postgres]'" in told.stdout, told.stderr


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("postgresql://ann:s%40crt@db:5433/pm?sslmode=require", "postgresql://ann@db:5433/pm"),
        ("postgres://db/pm?user=ann&password=secret", "postgresql://ann@db/pm"),
        ("postgresql://ann@a:1,b:2/pm", "postgresql://ann@a:1,b:2/pm"),
        ("postgresql://a,b/pm?port=5433", "postgresql://a:5433,b:5433/pm"),
        ("postgresql://[::1]:5433/pm", "postgresql://[::1]:5433/pm"),
        ("postgresql:///pm?host=/run/pg", "postgresql://%2Frun%2Fpg/pm"),
    ],
)
def test_a_location_has_no_secrets(url, location):
    assert location_of(parse(url)) == location


async def test_control_planes_that_start_together_make_one_store(url):
    stores = await asyncio.gather(*(open_store(url) for _ in range(5)))
    try:
        assert len({store.store_id for store in stores}) == 1
        assert [await store.read(lambda tx: tx.environment_ids()) for store in stores] == [["development", "staging", "production"]] * 5
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_change_by_one_is_seen_by_the_other_at_once_and_rings_there(store, other):
    rings = []
    other.on_change(lambda: rings.append(1))
    await eventually(lambda: rings)  # the first look
    rings.clear()
    await filled(store)
    await bind(store, "d1", "v1")
    assert (await other.read(lambda tx: tx.binding("shop", "staging"))).deployment.release == "v1"
    await eventually(lambda: rings)


async def test_a_change_that_no_bell_told_of_is_found_by_looking(store, postgres_server, database):
    rings = []
    store.on_change(lambda: rings.append(1))
    await eventually(lambda: rings)
    rings.clear()
    postgres_server.execute("UPDATE counter SET revision = 7", database)
    await eventually(lambda: rings)
    assert await store.read(lambda tx: tx.revision()) == 7


async def test_a_listener_that_was_cut_off_comes_back_and_rings(store, other, postgres_server, database):
    rings = []
    other.on_change(lambda: rings.append(1))
    await eventually(lambda: rings)
    postgres_server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()", database
    )
    rings.clear()
    await eventually(lambda: rings)
    await filled(store)
    rings.clear()
    await bind(store, "d1", "v1")
    await eventually(lambda: rings)


async def test_promise_02_revisions_of_two_writers_interleave_without_a_gap(store, other):
    async def work(tx):
        before = await tx.revision()
        revision = await tx.next_revision()
        assert revision == before + 1
        return revision

    given = await asyncio.gather(*(one.write(work) for _ in range(100) for one in (store, other)))
    assert sorted(given) == list(range(1, 201))


async def test_what_one_decides_on_cannot_be_changed_by_the_other_meanwhile(store, other):
    """Both insert what they do not find: without turns, both would look before either wrote."""

    async def once(tx, app):
        if await tx.app(app) is None:
            await tx.insert_app(an_app(app))
            return 1
        return 0

    made = await asyncio.gather(
        *(one.write(lambda tx, number=number: once(tx, f"app-{number}")) for number in range(50) for one in (store, other))
    )
    assert sum(made) == 50


@pytest.mark.parametrize("table", ["snapshots", "releases", "deployments", "unbindings"])
async def test_promise_01_the_database_itself_refuses_updates_and_deletes(store, postgres_server, database, table):
    await filled(store)
    await bind(store, "d1", "v1")
    await write(store, lambda tx: tx.unbind("shop", "staging", revision=2, unbind_time=NOW))
    change = {"snapshots": "data = ''", "releases": "description = 'x'", "deployments": "reason = 'x'", "unbindings": "revision = 3"}[table]
    for statement in (f"UPDATE {table} SET {change}", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(psycopg.IntegrityError, match="never change"):
            postgres_server.execute(statement, database)


async def test_a_statement_that_failed_and_was_ignored_is_not_taken_for_done(store):
    await filled(store)

    async def ignores(tx):
        await tx.next_revision()
        with pytest.raises(psycopg.errors.UniqueViolation):
            await tx.insert_app(an_app())

    for together in (1, 3):
        results = await asyncio.gather(*(store.write(ignores) for _ in range(together)), return_exceptions=True)
        assert all("may not go on" in str(result) for result in results)
    assert await store.read(lambda tx: tx.revision()) == 0


async def test_a_bug_in_one_work_is_its_own_and_not_the_servers(store):
    await filled(store)
    results = await asyncio.gather(
        store.write(lambda tx: tx._rows("SELECT * FROM nonsense")),
        store.write(lambda tx: tx.next_revision()),
        store.write(lambda tx: tx.insert_app(an_app("nul\0"))),
        store.write(lambda tx: tx._rows("SELECT 1 / 0")),
        store.write(lambda tx: tx.next_revision()),
        return_exceptions=True,
    )
    assert [result if isinstance(result, int) else "refused" for result in results] == ["refused", 1, "refused", "refused", 2]
    assert not any(isinstance(result, StoreUnavailable) for result in results)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await store.read(lambda tx: tx._rows("SELECT * FROM nonsense"))
    assert await store.read(lambda tx: tx.revision()) == 2


async def test_another_store_in_the_same_place_is_not_written_to(store, postgres_server, database):
    await filled(store)
    postgres_server.execute("UPDATE counter SET store_id = 'another'", database)
    with pytest.raises(StoreUnavailable, match="another store"):
        await store.write(lambda tx: tx.next_revision())
    postgres_server.execute(f"UPDATE counter SET store_id = '{store.store_id}'", database)
    assert await store.write(lambda tx: tx.next_revision()) == 1


async def test_after_close_everything_is_refused_and_no_session_is_left(store, postgres_server, database):
    await filled(store)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read(lambda tx: tx.revision())
    sessions = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
    await eventually(lambda: postgres_server.execute(sessions) == [(0,)])


async def test_snapshots_of_every_byte_and_large_ones_come_back_as_they_are(store):
    data = bytes(range(256)) * 16_000
    await write(store, lambda tx: tx.insert_snapshot("sha256:big", data))
    assert await store.read(lambda tx: tx.snapshot("sha256:big")) == data
