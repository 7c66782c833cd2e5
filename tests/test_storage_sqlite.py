"""What only the SQLite store can suffer: its file, its disk, its power."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from control_plane.storage import CannotOpenStore, open_store
from pointsman.errors import StoreUnavailable
from tests.processes import ROOT, clean_environment
from tests.test_storage_contract import an_app, bind, filled, write


@pytest.fixture
async def store(tmp_path):
    opened = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
    yield opened
    await opened.close()


async def refused(path: Path) -> str:
    """The one line that opening it gives."""
    with pytest.raises(CannotOpenStore) as cannot:
        await open_store(f"sqlite:///{path}")
    message = str(cannot.value)
    assert "\n" not in message
    assert str(path) in message
    return message


async def test_a_store_belongs_to_one_process(store, tmp_path):
    assert "in use by another control plane" in await refused(tmp_path / "pointsman.db")


async def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_bytes(b"not a database\n" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE theirs (a)")
    database.close()
    before = other.read_bytes()
    assert "not a database" in await refused(text)
    assert "of another program" in await refused(other)
    assert other.read_bytes() == before
    await refused(tmp_path)
    assert "folder must exist" in await refused(tmp_path / "none" / "x.db")


async def test_a_damaged_store_is_refused(store, tmp_path):
    await filled(store)
    await store.close()
    path = tmp_path / "pointsman.db"
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)
    assert "malformed" in await refused(path) or "not a database" in await refused(path)


@pytest.mark.parametrize("table", ["snapshots", "releases", "deployments"])
async def test_promise_01_the_database_itself_refuses_updates_and_deletes(store, tmp_path, table):
    await filled(store)
    await bind(store, "d1", "v1")
    await store.close()
    database = sqlite3.connect(tmp_path / "pointsman.db")
    change = {"snapshots": "data = x'00'", "releases": "description = 'x'", "deployments": "reason = 'x'"}[table]
    for statement in (f"UPDATE {table} SET {change}", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} never change"):
            database.execute(statement)
    database.close()


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


async def test_durability_settings_are_on(store):
    pragmas = {name: store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


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


async def test_one_bad_row_is_the_callers_error_and_not_the_stores(store):
    await filled(store)
    with pytest.raises(Exception, match="UNIQUE"):
        await write(store, lambda tx: tx.insert_app(an_app()))
    await bind(store, "d1", "v1")
