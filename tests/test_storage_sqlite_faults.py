"""What a SQLite store does when its disk, its file or its process fails under it."""

import asyncio
import random
import signal
import sqlite3
import sys

import pytest

from control_plane.storage import open_store
from control_plane.storage.sqlite_file import sqlite3 as sqlite
from pointsman.errors import StoreUnavailable
from tests.processes import ROOT, clean_environment, run
from tests.test_storage_contract import an_app, bind, filled, write


@pytest.fixture
async def store(tmp_path):
    opened = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
    yield opened
    await opened.close()


async def test_a_full_disk_refuses_loses_nothing_and_recovers_without_a_restart(store):
    await filled(store)
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable) as full:
        await write(store, lambda tx: tx.insert_snapshot("sha256:big", b"x" * 1_000_000))
    assert "full" in full.value.message
    assert full.value.metadata["cause"] == "SQLITE_FULL"
    assert await store.read(lambda tx: tx.snapshot("sha256:1")) == b"one"
    store._writer.execute("PRAGMA max_page_count = 1073741823")
    await write(store, lambda tx: tx.insert_snapshot("sha256:big", b"x" * 1_000_000))
    await bind(store, "d1", "v1")


WRITER = """
import asyncio, sys
from control_plane.storage import open_store

async def main():
    store = await open_store(sys.argv[1])
    async def one():
        while True:
            print(await store.write(lambda tx: tx.next_revision()), flush=True)
    await asyncio.gather(*(one() for _ in range(8)))

asyncio.run(main())
"""


async def test_promise_03_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    url, acknowledged = f"sqlite:///{tmp_path}/pointsman.db", 0
    for _ in range(6):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, url), stdout=asyncio.subprocess.PIPE, env=clean_environment(), cwd=ROOT
        )
        for _ in range(chance.randrange(5, 200)):
            acknowledged = max(acknowledged, int(await process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        rest = (await process.communicate())[0].split()
        acknowledged = max([acknowledged, *map(int, rest)])
        store = await open_store(url)
        revision = await store.read(lambda tx: tx.revision())
        await store.close()
        assert revision >= acknowledged > 0


async def test_a_bug_in_one_work_is_its_own_and_not_a_full_disk(store):
    """SQLite raises OperationalError for a bad statement too."""
    await filled(store)
    results = await asyncio.gather(
        store.write(lambda tx: tx._rows("SELECT * FROM nonsense")),
        store.write(lambda tx: tx.next_revision()),
        store.write(lambda tx: tx.insert_app(an_app())),
        store.write(lambda tx: tx._rows("SELECT ?", object())),
        store.write(lambda tx: tx.next_revision()),
        return_exceptions=True,
    )
    assert [result if isinstance(result, int) else "refused" for result in results] == ["refused", 1, "refused", "refused", 2]
    assert not any(isinstance(result, StoreUnavailable) for result in results)
    with pytest.raises(Exception, match="no such table"):
        await store.read(lambda tx: tx._rows("SELECT * FROM nonsense"))
    assert await store.read(lambda tx: tx.revision()) == 2


class Broken:
    """A connection of which one statement fails as SQLite would."""

    def __init__(self, connection, statement: str, error: Exception) -> None:
        self.connection, self.statement, self.error = connection, statement, error

    def execute(self, sql: str, *parameters):
        if sql == self.statement:
            raise self.error
        return self.connection.execute(sql, *parameters)

    def __getattr__(self, name: str):
        return getattr(self.connection, name)


def failure(name: str, kind: type[Exception] = sqlite.OperationalError) -> Exception:
    error = kind("planted")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "SAVEPOINT job", "COMMIT"])
@pytest.mark.parametrize("kind", [sqlite.OperationalError, sqlite.DatabaseError])
async def test_whatever_fails_around_a_work_its_callers_are_told_and_the_writer_goes_on(store, statement, kind):
    await filled(store)
    whole = store._writer
    store._writer = Broken(whole, statement, failure("SQLITE_IOERR_FSYNC" if kind is sqlite.OperationalError else "SQLITE_CORRUPT", kind))
    with pytest.raises(StoreUnavailable, match="Nothing was changed"):
        await store.write(lambda tx: tx.next_revision())
    store._writer = whole
    assert await store.write(lambda tx: tx.next_revision()) == 1


async def test_a_connection_that_cannot_even_undo_is_replaced(store):
    await filled(store)
    whole = store._writer
    store._writer = Broken(Broken(whole, "COMMIT", failure("SQLITE_IOERR_WRITE")), "ROLLBACK", failure("SQLITE_IOERR_WRITE"))
    with pytest.raises(StoreUnavailable):
        await store.write(lambda tx: tx.next_revision())
    assert await store.write(lambda tx: tx.next_revision()) == 1
    assert store._writer is not whole


async def test_an_error_that_is_not_the_stores_reaches_every_caller_of_the_batch(store):
    whole = store._writer
    store._writer = Broken(whole, "COMMIT", MemoryError("planted"))
    with pytest.raises(MemoryError):
        await store.write(lambda tx: tx.next_revision())
    store._writer = whole
    assert await store.write(lambda tx: tx.next_revision()) == 1


async def test_damage_that_a_read_meets_is_told_and_the_rest_is_still_served(store, tmp_path):
    await filled(store)
    await write(store, lambda tx: tx.insert_snapshot("sha256:big", b"x" * 500_000))
    await store.close()
    path = tmp_path / "pointsman.db"
    database = sqlite3.connect(path)
    (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'snapshots'").fetchone()
    (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(data)
    damaged = await open_store(f"sqlite:///{path}")
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as found:
                await damaged.read(lambda tx: tx.snapshot("sha256:big"))
            assert found.value.metadata["cause"].startswith("SQLITE_CORRUPT")
        with pytest.raises(StoreUnavailable):
            await write(damaged, lambda tx: tx.insert_snapshot("sha256:2", b"two"))
        assert await damaged.read(lambda tx: tx.release("shop", "v1"))
        await bind(damaged, "d1", "v1")
    finally:
        await damaged.close()


async def test_a_file_that_is_moved_away_is_not_written_into_the_void(store, tmp_path):
    await filled(store)
    path = tmp_path / "pointsman.db"
    path.rename(tmp_path / "away.db")
    with pytest.raises(StoreUnavailable, match="No such file"):
        await bind(store, "d1", "v1")
    with pytest.raises(StoreUnavailable, match="No such file"):
        await store.read(lambda tx: tx.revision())
    path.write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="another file"):
        await bind(store, "d1", "v1")
    (tmp_path / "away.db").rename(path)
    assert await bind(store, "d1", "v1") == 1


FULL_DISK = """
import asyncio, resource, signal, sys
from control_plane.storage import open_store
from pointsman.errors import StoreUnavailable

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    store = await open_store(sys.argv[1])
    written = 0

    async def one(number):
        await store.write(lambda tx: tx.insert_snapshot(f"sha256:{number}", b"x" * 20_000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            await one(written)
            written += 1
    except StoreUnavailable as error:
        print("refused", error.metadata["cause"])
    for number in range(written):
        assert await store.read(lambda tx: tx.snapshot(f"sha256:{number}"))
    assert await store.read(lambda tx: tx.snapshot(f"sha256:{written}")) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for number in range(written, written + 50):
        await one(number)
    await store.close()
    print("kept", written)

asyncio.run(main())
"""


async def test_a_disk_that_fills_up_for_real_refuses_and_recovers_in_the_same_process(tmp_path):
    url = f"sqlite:///{tmp_path}/pointsman.db"
    told = await run(sys.executable, "-c", FULL_DISK, url)
    assert told.code == 0, told.stderr
    refusal, kept = told.stdout.splitlines()[-2:]
    assert refusal.startswith("refused SQLITE_")
    store = await open_store(url)
    try:
        for number in range(int(kept.split()[1]) + 50):
            assert len(await store.read(lambda tx, number=number: tx.snapshot(f"sha256:{number}"))) == 20_000
    finally:
        await store.close()
