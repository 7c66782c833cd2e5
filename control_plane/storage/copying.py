"""All of one store into another, of whatever engine, under the same identity: `pointsman copy-store`.

Tables are copied as they are, whatever their columns mean. Every piece is committed with what it needs before it, so that a copy that
was broken off goes on where it stopped; the store that is being filled bears a name by which no control plane opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import msgspec

from control_plane.model import digest_of
from control_plane.storage import SQLITE_PREFIX, UNFINISHED_COPY, CannotCopyStore, open_any_store, open_store
from control_plane.storage.base import Store
from control_plane.storage.migrations import ENVIRONMENTS, IMMUTABLE_TABLES
from control_plane.storage.sql import SqlTransaction
from pointsman.errors import StoreUnavailable

# Every table with something to keep, those first that others refer to. The counter is set at the end.
TABLES = (
    "environments",
    "apps",
    "snapshots",
    "releases",
    "prunings",
    "deployments",
    "bindings",
    "unbindings",
    "requests",
    "staleness_policies",
    "tokens",
    "audit_entries",
)
# What each store has of its own; and executions, which are records of the past that nothing refers to.
NOT_COPIED = (
    *("counter", "writers", "replicas", "replica_messages", "pointsman_steps", "_sqlite_migrations", "sqlite_sequence"),
    *("executions", "executions_of_other_days", "execution_writers", "execution_droppers", "execution_drops"),
)

FIRST_PIECE_ROWS = 16
MAX_PIECE_ROWS = 256
PIECE_BYTES = 4 * 1024 * 1024

_COLUMNS = {
    "sqlite": ("SELECT name FROM pragma_table_info(?) ORDER BY cid", "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"),
    "postgres": (
        "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        """SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = to_regclass(?) AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)""",
    ),
}
Row = Sequence[Any]


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Of one table: how many rows it has in both stores, and how many of them were copied now."""

    rows: int
    copied: int


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What the target is now."""

    store_id: str
    revision: int
    tables: dict[str, Count]


class _Table(msgspec.Struct, frozen=True):
    """A table's name, its columns, and those of its primary key; quoted."""

    name: str
    columns: list[str]
    key: list[str]


async def copy_store(source_url: str, target_url: str) -> Copied:
    """Copies what is missing, verifies all of it, and then gives the target the source's identity and revision.

    The source is read as it is at one moment. A caller that is cancelled leaves an unfinished copy, which the next call finishes.

    Raises:
        CannotOpenStore: one of them.
        CannotCopyStore: the target holds something else; the source is damaged, or has changed since the copy was begun.
        StoreUnavailable: one of them was lost; call again.
    """
    stopping = threading.Event()
    async with _opened(open_store, source_url) as source:
        await _refuse_in_use(source)
        await _begin(source, target_url)
        async with _opened(open_any_store, target_url) as target:
            copying = _Copying(source, target, stopping)
            try:
                copied = await source.read(lambda tx: copying.run(cast("SqlTransaction", tx)))
            finally:
                stopping.set()
            await target.read(lambda tx: _verify_snapshots(cast("SqlTransaction", tx), target))
            await target.write(lambda tx: _finish(cast("SqlTransaction", tx), source, target, copied))
            return copied


@contextlib.asynccontextmanager
async def _opened(opens: Callable[[str], Any], url: str) -> AsyncIterator[Store]:
    store: Store = await opens(url)
    try:
        yield store
    finally:
        await store.close()


async def _refuse_in_use(store: Store) -> None:
    """A SQLite store that is in use cannot be opened at all; those on PostgreSQL tell by their beats."""
    if _engine(store) == "postgres":
        beats = "SELECT address FROM replicas WHERE beat_time > now() - interval '3 s' ORDER BY address"
        found = [row[0] for row in await store.read(lambda tx: cast("SqlTransaction", tx).rows(beats))]
        if found:
            raise CannotCopyStore(f"the store {store.location} is in use by the control plane at {', '.join(found)}; stop it first")


async def _begin(source: Store, target_url: str) -> None:
    """Marks the target as an unfinished copy of the source, unless it is one already."""
    name = UNFINISHED_COPY + source.store_id
    async with _opened(open_any_store, target_url) as target:
        if target.store_id == name:
            return
        if target.store_id == source.store_id:
            raise CannotCopyStore(f"{target.location} is store {source.store_id} already, or a finished copy of it")

        await _refuse_in_use(target)

        async def work(tx: Any) -> None:
            held = {table: await _count(tx, table) for table in TABLES}
            untouched = held.pop("environments") == len(ENVIRONMENTS) and await tx.revision() == 0
            if target.store_id.startswith(UNFINISHED_COPY) or any(held.values()) or not untouched:
                what = "an " + target.store_id if target.store_id.startswith(UNFINISHED_COPY) else f"store {target.store_id}"
                raise CannotCopyStore(f"{target.location} is not empty, it holds {what}; a copy is made only in a new store")
            await tx.rows("DELETE FROM environments")
            await tx.rows("UPDATE counter SET store_id = ?", name)

        await target.write(work)


class _Copying:
    """Runs on a thread of the source's, inside its transaction, and waits there for the target to write each piece."""

    def __init__(self, source: Store, target: Store, stopping: threading.Event) -> None:
        self._source, self._target, self._stopping = source, target, stopping
        self._loop = asyncio.get_running_loop()

    async def run(self, tx: SqlTransaction) -> Copied:
        """Copies; the source's transaction stays open all the while."""
        tables = {}
        for name in TABLES:
            table = await _describe(self._source, name, tx)
            there = self._write(functools.partial(_describe, self._target, name))
            if sorted(there.columns) != sorted(table.columns):
                raise CannotCopyStore(f"the table {name} has other columns in the target; bring both stores up to date first")
            tables[name] = await self._copy(tx, table)
        return Copied(store_id=self._source.store_id, revision=await tx.revision(), tables=tables)

    async def _copy(self, tx: SqlTransaction, table: _Table) -> Count:
        """Rows that never change are copied if they are missing, others anyhow."""
        seen, copied, size = 0, 0, FIRST_PIECE_ROWS
        last: Row = ()
        while keys := await _keys_after(tx, table, last, size):
            there = self._there(table, keys) if table.name in IMMUTABLE_TABLES else set()
            wanted = [key for key in keys if key not in there]
            rows = await _rows(tx, table, wanted) if wanted else []
            if table.name == "snapshots":
                for row in rows:
                    _check_digest(table, row, self._source.location)
            if rows:
                self._insert(table, rows)
            seen, copied, last = seen + len(keys), copied + len(rows), keys[-1]
            written = sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
            size = max(1, size // 2) if written > PIECE_BYTES else min(size * 2, MAX_PIECE_ROWS)
        return Count(rows=seen, copied=copied)

    def _there(self, table: _Table, keys: Sequence[Row]) -> set[Row]:
        async def work(into: Any) -> set[Row]:
            return {tuple(row) for row in await into.rows(*_selected(table, table.key, keys))}

        return cast("set[Row]", self._write(work))

    def _insert(self, table: _Table, rows: Sequence[Row]) -> None:
        try:
            self._write(lambda into: _insert(into, self._target, table, rows))
        except (CannotCopyStore, StoreUnavailable):
            raise
        except Exception as error:
            raise CannotCopyStore(
                f"the target does not take rows of {table.name} ({' '.join(str(error).split())}): the source was changed since the copy "
                "was begun. Stop its control planes, and copy to a new store"
            ) from error

    def _write(self, work: Callable[[Any], Any]) -> Any:
        if self._stopping.is_set():
            raise CannotCopyStore("the copy was broken off; call copy-store again, it goes on from there")
        return asyncio.run_coroutine_threadsafe(self._target.write(work), self._loop).result()


async def _verify_snapshots(tx: SqlTransaction, target: Store) -> None:
    table = await _describe(target, "snapshots", tx)
    last: Row = ()
    while keys := await _keys_after(tx, table, last, FIRST_PIECE_ROWS):
        for row in await _rows(tx, table, keys):
            _check_digest(table, row, target.location)
        last = keys[-1]


async def _finish(into: SqlTransaction, source: Store, target: Store, copied: Copied) -> None:
    """All is there, and nothing else: now it is the store."""
    for name, count in copied.tables.items():
        there = await _count(into, name)
        if there != count.rows:
            raise CannotCopyStore(
                f"{target.location} has {there} {name}, and {source.location} {count.rows}: it was changed since the copy was begun. "
                "Stop its control planes, and copy to a new store"
            )
        if _engine(target) == "postgres" and "position" in await _names(into, target, name):
            # Null for a position that the program gives, and then nothing is set.
            sequence = f"pg_get_serial_sequence('{name}', 'position')"
            await into.rows(f"SELECT setval({sequence}, (SELECT max(position) FROM {name})) WHERE EXISTS (SELECT 1 FROM {name})")
    await into.rows("UPDATE counter SET store_id = ?, revision = ?", copied.store_id, copied.revision)


def _engine(store: Store) -> str:
    return "sqlite" if store.location.startswith(SQLITE_PREFIX) else "postgres"


async def _names(tx: SqlTransaction, store: Store, name: str) -> list[str]:
    return [row[0] for row in await tx.rows(_COLUMNS[_engine(store)][0], name)]


async def _describe(store: Store, name: str, tx: SqlTransaction) -> _Table:
    key = [row[0] for row in await tx.rows(_COLUMNS[_engine(store)][1], name)]
    return _Table(name, [f'"{column}"' for column in await _names(tx, store, name)], [f'"{column}"' for column in key])


async def _count(tx: SqlTransaction, table: str) -> int:
    return int((await tx.rows(f"SELECT count(*) FROM {table}"))[0][0])


async def _keys_after(tx: SqlTransaction, table: _Table, last: Row, limit: int) -> list[Row]:
    key = ", ".join(table.key)
    after = f"WHERE ({key}) > ({', '.join('?' * len(last))})" if last else ""
    return [tuple(row) for row in await tx.rows(f"SELECT {key} FROM {table.name} {after} ORDER BY {key} LIMIT ?", *last, limit)]


def _selected(table: _Table, columns: list[str], keys: Sequence[Row]) -> tuple[Any, ...]:
    """A statement with its parameters: these columns of the rows with these keys."""
    mark = f"({', '.join('?' * len(table.key))})"
    where = f"({', '.join(table.key)}) IN (VALUES {', '.join([mark] * len(keys))})"
    order = ", ".join(table.key)
    return f"SELECT {', '.join(columns)} FROM {table.name} WHERE {where} ORDER BY {order}", *[value for key in keys for value in key]


async def _rows(tx: SqlTransaction, table: _Table, keys: Sequence[Row]) -> list[Row]:
    return await tx.rows(*_selected(table, table.columns, keys))


async def _insert(into: SqlTransaction, target: Store, table: _Table, rows: Sequence[Row]) -> None:
    """With their positions, which give the order of everything that is listed."""
    given = "OVERRIDING SYSTEM VALUE" if _engine(target) == "postgres" else ""
    marks = ", ".join("?" * len(table.columns))
    changing = ", ".join(f"{name} = excluded.{name}" for name in table.columns if name not in table.key)
    again = "" if table.name in IMMUTABLE_TABLES or not changing else f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {changing}"
    sql = f"INSERT INTO {table.name} ({', '.join(table.columns)}) {given} VALUES ({marks}) {again}"
    for row in rows:
        await into.rows(sql, *row)


def _check_digest(table: _Table, row: Row, location: str) -> None:
    values = dict(zip(table.columns, row, strict=True))
    digest, actual = values['"digest"'], digest_of(bytes(values['"data"']))
    if digest != actual:
        raise CannotCopyStore(f"the snapshot {digest} in {location} is damaged, it hashes to {actual}; restore a backup first")
