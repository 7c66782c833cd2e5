"""What only a SQLite store has: a file, which may be another program's, damaged, or not ours to write."""

import os
import sqlite3
import sys
from pathlib import Path

import pytest

from control_plane.storage import CannotOpenStore, open_store
from control_plane.storage.migrations import steps
from pointsman.errors import StoreUnavailable
from tests.processes import run
from tests.test_storage_contract import NOW, bind, filled, write


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
    assert "it is a folder" in await refused(tmp_path)
    assert "folder must exist" in await refused(tmp_path / "none" / "x.db")


async def test_a_damaged_store_is_refused(store, tmp_path):
    await filled(store)
    await store.close()
    path = tmp_path / "pointsman.db"
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)
    assert "malformed" in await refused(path) or "not a database" in await refused(path)


@pytest.mark.parametrize("table", ["snapshots", "releases", "deployments", "unbindings"])
async def test_promise_01_the_database_itself_refuses_updates_and_deletes(store, tmp_path, table):
    await filled(store)
    await bind(store, "d1", "v1")
    await write(store, lambda tx: tx.unbind("shop", "staging", revision=2, unbind_time=NOW))
    await store.close()
    database = sqlite3.connect(tmp_path / "pointsman.db")
    change = {"snapshots": "data = x'00'", "releases": "description = 'x'", "deployments": "reason = 'x'", "unbindings": "revision = 3"}[
        table
    ]
    for statement in (f"UPDATE {table} SET {change}", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} never change"):
            database.execute(statement)
    database.close()


async def test_durability_settings_are_on(store):
    pragmas = {name: store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_a_store_from_the_future_is_refused(store, tmp_path):
    await store.close()
    database = sqlite3.connect(tmp_path / "pointsman.db")
    database.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('pointsman', 'hyperdrive', 'now')")
    database.commit()
    database.close()
    assert "newer Pointsman (it has the step 'hyperdrive')" in await refused(tmp_path / "pointsman.db")


async def test_a_store_from_before_there_were_staleness_policies_is_brought_up_to_date(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(steps, "_migrations", steps._migrations[:1])
        old = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
        await filled(old)
        await old.close()
    store = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
    try:
        assert (await store.read(lambda tx: tx.environment("production"))).max_staleness is None
        assert await store.read(lambda tx: tx.staleness_policies_since(0)) == []
        assert await store.read(lambda tx: tx.release_tags("shop")) == ["v2", "v1"]
    finally:
        await store.close()


@pytest.mark.parametrize("name", ["a b.db", "50%20.db", "what?.db", "#1.db", "ünï.db"])
async def test_any_file_name_will_do(tmp_path, name):
    store = await open_store(f"sqlite:///{tmp_path}/{name}")
    try:
        await filled(store)
        assert await store.read(lambda tx: tx.app_ids()) == ["shop"]
    finally:
        await store.close()
    assert (tmp_path / name).exists()


AS_NOBODY = """
import asyncio, os, sys
from control_plane.storage import CannotOpenStore, open_store
from control_plane.storage.sqlite_file import sqlite3 as sqlite
import control_plane.storage.sqlite

async def main():
    store = await open_store("sqlite:///pointsman.db")
    await store.close()

os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setegid(65534), os.seteuid(65534)
try:
    asyncio.run(main())
except CannotOpenStore as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_what_may_not_be_written_is_refused_in_one_line(store, tmp_path, what):
    await store.close()
    file = tmp_path / "pointsman.db"
    lock = tmp_path / "pointsman.db.lock"
    file.chmod(0o444)
    if what == "folder":
        lock.unlink()
        tmp_path.chmod(0o555)
    else:
        tmp_path.chmod(0o777)
        lock.chmod(0o666)
    told = await run(sys.executable, "-c", AS_NOBODY, tmp_path)
    tmp_path.chmod(0o755)
    assert told.stderr == ""
    assert told.stdout.startswith("cannot open the store pointsman.db: ")
    assert "writable" in told.stdout
    assert told.stdout.count("\n") == 1


async def test_after_close_everything_is_refused_and_a_second_close_does_nothing(store):
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read(lambda tx: tx.revision())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.write(lambda tx: tx.next_revision())
