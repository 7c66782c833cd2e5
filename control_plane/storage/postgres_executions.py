"""Executions in the store's PostgreSQL, on connections of their own: a table in partitions by day, each of which goes as a whole."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg

from control_plane.execution_model import Execution, Figures, Outcome, Report, Wanted
from control_plane.storage.base import CannotOpenStore
from control_plane.storage.executions import (
    COLUMNS,
    INDEXED,
    LISTED,
    NEWEST_FIRST,
    PERCENTILES,
    WHOLE,
    Run,
    SqlExecutions,
    conditions,
    execution_of,
    row_of,
)
from control_plane.storage.postgres_connection import cause_of, connect, location_of, one_line, parse, translated
from pointsman.errors import StoreUnavailable

READ_TIMEOUT = "30s"
WRITE_TIMEOUT = "60s"
DAY_MICROS = 86_400_000_000
# Made before they are needed: today's and the next ones.
DAYS_AHEAD = 3
# A writer that stored nothing for so long is forgotten; it stores under another name then.
WRITER_MEMORY_MICROS = 3_600_000_000
# Only one replica sweeps at a time, "PMSW".
SWEEP_LOCK = 0x504D5357
# Of what passes one filter: how many are searched for those that pass the others too.
LOOKED_AT = 5_000
MAX_MOMENT = 2**63 - 1
# Summing up 100,000 needs 16 MB to stay off the disk; compiling a statement, or planning one for all values, takes longer than running it.
_BEGIN_READ = (
    b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
    b"SET LOCAL work_mem = '64MB'; SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_custom_plan"
)
_PARTITION = "executions_%Y%m%d"

_TYPES = {"execution_id": "bytea", "detail": "bytea"} | dict.fromkeys(
    ("revision", "start_time", "duration", "outcome", "input_tokens", "output_tokens"), "bigint"
)
_ARRAYS = ", ".join(f"?::{_TYPES.get(name, 'text')}[]" for name in COLUMNS)
_INSERT = (
    f"INSERT INTO executions ({', '.join(COLUMNS)}, writer) SELECT *, ?::integer FROM unnest({_ARRAYS}) "
    "ON CONFLICT DO NOTHING RETURNING execution_id, position"
)
_FIGURES = (
    "SELECT e.app, e.environment, e.release, "
    f"{', '.join(f'count(*) FILTER (WHERE e.outcome = {outcome:d})' for outcome in Outcome)}, "
    f"percentile_disc(ARRAY[{', '.join(map(str, PERCENTILES))}]) WITHIN GROUP (ORDER BY e.duration) "
    f"FILTER (WHERE e.outcome IN ({Outcome.SUCCEEDED:d}, {Outcome.FAILED:d})), "
    "sum(e.input_tokens)::bigint, sum(e.output_tokens)::bigint, min(e.start_time), max(e.start_time) FROM executions e WHERE "
)


class PostgresExecutions(SqlExecutions):
    """Implements base.ExecutionStore on the database of an open PostgresStore, which has made the tables."""

    shared = True

    def __init__(self, url: str) -> None:
        """Makes the partitions of today and the next days.

        Raises:
            CannotOpenStore: when the database cannot be reached.
        """
        self._parameters = parse(url)
        super().__init__(location_of(self._parameters))
        self._writer: psycopg.Connection[Any] | None = None
        self._writer_number = self._writer_used = 0
        self._local = threading.local()
        self._opened: set[psycopg.Connection[Any]] = set()
        try:
            with self._writing() as run:
                _make_partitions(run)
        except (StoreUnavailable, psycopg.Error) as error:
            raise CannotOpenStore(f"cannot keep executions in {self._location}: {one_line(error)}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Run]:
        with self._translated():
            connection = self._begin(self._local.__dict__.pop("connection", None), READ_TIMEOUT, _BEGIN_READ)
            self._local.connection = connection
            try:
                yield _runner(connection)
                connection.execute(b"COMMIT")
            except BaseException:
                if not self._undone(connection):
                    del self._local.connection
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Run]:
        with self._translated():
            connection, self._writer = self._begin(self._writer, WRITE_TIMEOUT, b"BEGIN"), None
            try:
                yield _runner(connection)
                connection.execute(b"COMMIT")
                self._writer = connection
            except BaseException:
                if self._undone(connection):
                    self._writer = connection
                raise

    def _begin(self, connection: psycopg.Connection[Any] | None, timeout: str, begin: bytes) -> psycopg.Connection[Any]:
        """A connection in a new transaction; one that broke while nobody used it is replaced without a word."""
        if connection is not None:
            try:
                connection.execute(begin, prepare=False)
            except psycopg.Error:
                self._forget(connection)
            else:
                return connection
        connection = connect(self._parameters, statement_timeout=timeout)
        self._opened.add(connection)
        connection.execute(begin, prepare=False)
        return connection

    def _undone(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether the connection can be used again."""
        try:
            connection.execute(b"ROLLBACK")
        except psycopg.Error:
            self._forget(connection)
            return False
        return True

    def _forget(self, connection: psycopg.Connection[Any]) -> None:
        self._opened.discard(connection)
        with contextlib.suppress(psycopg.Error):
            connection.close()

    def _let_go(self) -> None:
        for connection in list(self._opened):
            self._forget(connection)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if cause := cause_of(error):
                raise self._unavailable(one_line(error), cause) from error
            raise

    def _newest(self, run: Run, wanted: Wanted, before: tuple[int, bytes] | None, limit: int) -> list[Sequence[Any]]:
        """By one filter's index until there are enough; when these are rare among its newest, all that pass every filter, then sorted.

        The server knows how many pass each filter, not how many pass both, nor when: left alone it looks through all that ever came for
        the few that took long, or that failed last week.
        """
        filters = [name for name in INDEXED if name in wanted.equalities]
        if len(filters) <= 1 and not wanted.min_duration and wanted.revision is None:
            near, bounds = _near(wanted, "".join(filters), before)
            return run(f"SELECT {LISTED} FROM executions e WHERE {near} LIMIT ?", *bounds, limit)
        where, parameters = conditions(wanted, before)
        for name in filters or [""]:
            near, bounds = _near(wanted, name, before)
            looked_at = f"(SELECT * FROM executions e WHERE {near} LIMIT {LOOKED_AT}) e"
            rows = run(f"SELECT {LISTED} FROM {looked_at} WHERE {where} {NEWEST_FIRST} LIMIT ?", *bounds, *parameters, limit)
            if len(rows) == limit:
                return rows
        # OFFSET 0 hides the order and the limit while the server chooses its indexes.
        return run(f"SELECT {LISTED} FROM (SELECT * FROM executions e WHERE {where} OFFSET 0) e {NEWEST_FIRST} LIMIT ?", *parameters, limit)

    def _record(self, run: Run, report: Report, now: int) -> list[Execution]:
        # A process reports one thing at a time, but its calls may overlap when one was given up.
        run("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", report.instance_id)
        return super()._record(run, report, now)

    def _insert(self, run: Run, executions: Sequence[Execution]) -> set[bytes]:
        if _now() - self._writer_used > WRITER_MEMORY_MICROS // 2:
            self._writer_number = run("SELECT nextval('execution_writer')::integer")[0][0]
        self._writer_used = _now()
        columns = [list(column) for column in zip(*map(row_of, executions), strict=True)]
        rows = run(_INSERT, self._writer_number, *columns)
        if rows:
            sql = (
                "INSERT INTO execution_writers (writer, position, used_time) VALUES (?, ?, ?) "
                "ON CONFLICT (writer) DO UPDATE SET position = excluded.position, used_time = excluded.used_time"
            )
            run(sql, self._writer_number, max(row[1] for row in rows), _now())
        return {bytes(row[0]) for row in rows}

    def _figures(self, run: Run, where: str, parameters: Sequence[Any]) -> list[Figures]:
        found = []
        for row in run(f"{_FIGURES}{where} GROUP BY 1, 2, 3", *parameters):
            counts, at = row[3:7], row[7] or (0, 0, 0)
            found.append(
                Figures(
                    app=row[0],
                    environment=row[1],
                    release=row[2],
                    **dict(zip(("succeeded", "failed", "cancelled", "refused"), counts, strict=True)),
                    durations=(at[0], at[1], at[2]),
                    input_tokens=row[8],
                    output_tokens=row[9],
                    first_time=row[10],
                    last_time=row[11],
                )
            )
        return found

    async def news(self, cursor: bytes, limit: int) -> tuple[bytes, list[Execution]]:
        """See base.ExecutionStore. The cursor holds a position for each writer."""
        return await self._read(lambda run: self._news(run, cursor, limit))

    def _news(self, run: Run, cursor: bytes, limit: int) -> tuple[bytes, list[Execution]]:
        known: dict[int, int] = msgspec.msgpack.decode(cursor, type=dict[int, int]) if cursor else {}
        at: dict[int, int] = {row[0]: row[1] for row in run("SELECT writer, position FROM execution_writers")}
        found: list[Execution] = []
        for writer, position in at.items():
            last = known.get(writer, 0)
            if not cursor or writer == self._writer_number or position <= last:
                continue
            rows = run(
                f"SELECT {WHOLE}, e.position FROM executions e WHERE e.writer = ? AND e.position > ? AND e.position <= ? "
                "ORDER BY e.position LIMIT ?",
                writer,
                last,
                position,
                limit,
            )
            found += [execution_of(row[:-1]) for row in rows]
            if len(rows) == limit:
                at[writer] = rows[-1][-1]
        return msgspec.msgpack.encode(known | at), found

    async def sweep(self, *, keep_since: int, keep_rows: int, limit: int) -> int:
        """See base.ExecutionStore. Whole days that are over go as partitions; those to come are made here."""
        await self._write(lambda run: _drop_partitions(run, keep_since))
        return await super().sweep(keep_since=keep_since, keep_rows=keep_rows, limit=limit)

    def _sweep_days(self, run: Run, keep_since: int, limit: int) -> int:
        run("DELETE FROM execution_drops WHERE report_time < ?", keep_since)
        run("DELETE FROM execution_droppers WHERE report_time < ?", keep_since)
        run("DELETE FROM execution_writers WHERE used_time < ? AND writer <> ?", _now() - WRITER_MEMORY_MICROS, self._writer_number)
        sql = (
            "DELETE FROM executions WHERE start_time < ? AND (execution_id, start_time) IN "
            "(SELECT execution_id, start_time FROM executions WHERE start_time < ? ORDER BY start_time LIMIT ?) RETURNING 1"
        )
        return len(run(sql, keep_since, keep_since, limit))


def _runner(connection: psycopg.Connection[Any]) -> Run:
    def run(sql: str, *parameters: Any) -> list[Sequence[Any]]:
        cursor = connection.execute(translated(sql), parameters or None, binary=True)
        return cursor.fetchall() if cursor.description else []

    return run


def _near(wanted: Wanted, name: str, before: tuple[int, bytes] | None) -> tuple[str, list[Any]]:
    """WHERE and ORDER BY, and their parameters, of all in the window that pass the one filter; without a name: of all.

    Written so that only the filter's own index has them in this order: of a plain equality the server would believe that one in twenty is
    of a release that nobody has run for days, and look for these by time.
    """
    first = -MAX_MOMENT if wanted.since is None else wanted.since
    last = MAX_MOMENT if wanted.until is None else wanted.until - 1
    bounds: list[Any] = [first, last]
    where, order = "e.start_time >= ? AND e.start_time <= ?", "e.start_time DESC, e.execution_id DESC"
    if before is not None:
        bounds[1] = min(last, before[0])
    if name:
        value = wanted.equalities[name]
        bounds = [value, bounds[0], value, bounds[1]]
        where, order = f"(e.{name}, e.start_time) >= (?, ?) AND (e.{name}, e.start_time) <= (?, ?)", f"e.{name} DESC, {order}"
    if before is not None:
        where, bounds = f"{where} AND (e.start_time, e.execution_id) < (?, ?)", [*bounds, *before]
    return f"{where} ORDER BY {order}", bounds


def _now() -> int:
    return time.time_ns() // 1000


def _drop_partitions(run: Run, keep_since: int) -> None:
    """Drops those whose days are over, and makes those that will be needed; one replica at a time."""
    if not run("SELECT pg_try_advisory_xact_lock(?)", SWEEP_LOCK)[0][0]:
        return
    for day in _days(run):
        if _micros(day + timedelta(days=1)) <= keep_since:
            run(f"DROP TABLE {day:{_PARTITION}}")
    _make_partitions(run)


def _make_partitions(run: Run) -> None:
    """Rows of a day for which there was no partition lie in the default one, and keep it from getting its own: then they stay there."""
    there = set(_days(run))
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (today + timedelta(days=number) for number in range(DAYS_AHEAD)):
        if day in there:
            continue
        run("SELECT pg_advisory_xact_lock(?)", SWEEP_LOCK)
        bounds = _micros(day), _micros(day + timedelta(days=1))
        if not run("SELECT 1 FROM executions_of_other_days WHERE start_time >= ? AND start_time < ? LIMIT 1", *bounds):
            run(f"CREATE TABLE IF NOT EXISTS {day:{_PARTITION}} PARTITION OF executions FOR VALUES FROM ({bounds[0]:d}) TO ({bounds[1]:d})")


def _days(run: Run) -> list[datetime]:
    rows = run(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'executions'::regclass AND c.relname LIKE 'executions\\_2%' ORDER BY 1"
    )
    return [datetime.strptime(row[0], _PARTITION).replace(tzinfo=UTC) for row in rows]


def _micros(day: datetime) -> int:
    return int(day.timestamp()) * 1_000_000
