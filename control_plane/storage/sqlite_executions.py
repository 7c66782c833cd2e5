"""Executions in a SQLite file of their own, beside the store's: PATH-executions.

It is flushed less often than the store (synchronous=NORMAL): losing the power costs the last moment of records, never the file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from control_plane.execution_model import Execution, Figures, Outcome, Wanted
from control_plane.storage.base import CannotOpenStore
from control_plane.storage.executions import COLUMNS, INDEXED, LISTED, NEWEST_FIRST, PERCENTILES, Run, SqlExecutions, conditions, row_of
from control_plane.storage.sqlite_file import cause_of, connect, remedy, sqlite3

SUFFIX = "-executions"
# "PMEX": tells our files from other SQLite files.
APPLICATION_ID = 0x504D4558
VERSION = 1
# One statement for so many rows: meanwhile other threads have their turn in Python.
ROWS_AT_ONCE = 100
WRITER_CACHE_KIB = 64 * 1024
# Of log: pages that change again and again reach the file once in so many.
CHECKPOINT_PAGES = 8_000
# A filter that more pass is not the one that finds the wanted ones quickest.
FEW = 5_000

_BY_TIME = "executions e INDEXED BY executions_by_time"
_MARKS = f"({', '.join('?' * len(COLUMNS))})"
_INSERT = f"INSERT INTO executions ({', '.join(COLUMNS)}) VALUES "


class SqliteExecutions(SqlExecutions):
    """Implements base.ExecutionStore on one file."""

    def __init__(self, store: Path, store_id: str) -> None:
        """Opens the file beside the store, which the caller has locked, or makes it.

        Raises:
            CannotOpenStore: when it cannot be opened, is not ours, of another store, or newer than this program.
        """
        self._path = store.with_name(store.name + SUFFIX)
        super().__init__(f"sqlite:///{self._path}")
        self._store_id = store_id
        self._writer: Any = _open(self._path, store_id)
        found = self._path.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._local = threading.local()
        self._opened: set[Any] = set()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Run]:
        with self._translated():
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
                self._opened.add(connection)
            try:
                connection.execute("BEGIN")
                try:
                    yield _runner(connection)
                finally:
                    connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                if cause_of(error):
                    self._opened.discard(self._local.__dict__.pop("connection", None))
                    _shut(connection)
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Run]:
        with self._translated():
            self._check_in_place()
            if self._writer is None:
                self._writer = _open(self._path, self._store_id)
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield _runner(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        """Undoes the transaction; a connection that cannot even do that is left behind, and the next write opens another."""
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            _shut(self._writer)
            self._writer = None

    def _let_go(self) -> None:
        for connection in [*self._opened, self._writer]:
            _shut(connection)

    def _insert(self, run: Run, executions: Sequence[Execution]) -> set[bytes]:
        new: set[bytes] = set()
        for start in range(0, len(executions), ROWS_AT_ONCE):
            piece = executions[start : start + ROWS_AT_ONCE]
            ids = [execution.execution_id for execution in piece]
            there = {
                row[0] for row in run(f"SELECT execution_id FROM executions WHERE execution_id IN ({', '.join('?' * len(ids))})", *ids)
            }
            rows = [row_of(execution) for execution in piece if execution.execution_id not in there]
            if rows:
                run(_INSERT + ", ".join([_MARKS] * len(rows)), *(value for row in rows for value in row))
            new.update(set(ids) - there)
        return new

    def _newest(self, run: Run, wanted: Wanted, before: tuple[int, bytes] | None, limit: int) -> list[Sequence[Any]]:
        where, parameters = conditions(wanted, before)
        return run(f"SELECT {LISTED} FROM {_source(run, wanted, before)} WHERE {where} {NEWEST_FIRST} LIMIT ?", *parameters, limit)

    def _everything(self) -> str:
        return _BY_TIME

    def _figures(self, run: Run, where: str, parameters: Sequence[Any]) -> list[Figures]:
        rows = run(
            "SELECT e.app, e.environment, e.release, e.outcome, count(*), group_concat(e.duration), sum(e.input_tokens), "
            "sum(e.output_tokens), min(e.start_time), max(e.start_time) "
            f"FROM {_BY_TIME} WHERE {where} GROUP BY 1, 2, 3, 4",
            *parameters,
        )
        grouped: dict[tuple[str, str, str], dict[int, Sequence[Any]]] = {}
        for row in rows:
            grouped.setdefault((row[0], row[1], row[2]), {})[row[3]] = row
        return [_summed(*key, outcomes) for key, outcomes in grouped.items()]

    def _sweep_days(self, run: Run, keep_since: int, limit: int) -> int:
        run("DELETE FROM execution_drops WHERE report_time < ?", keep_since)
        run("DELETE FROM execution_droppers WHERE report_time < ?", keep_since)
        sql = "DELETE FROM executions WHERE position IN (SELECT position FROM executions WHERE start_time < ? ORDER BY start_time LIMIT ?)"
        return len(run(f"{sql} RETURNING 1", keep_since, limit))

    def _check_in_place(self) -> None:
        """A file that was moved or deleted could still be written, and all of it would be lost with the last handle."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._unavailable(f"its file: {error.strerror}", "SQLITE_CANTOPEN") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._unavailable("another file is in the place of its file", "SQLITE_READONLY_DBMOVED")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if cause := cause_of(error):
                raise self._unavailable(str(error), cause) from error
            raise
        except CannotOpenStore as error:
            raise self._unavailable(str(error), "SQLITE_CANTOPEN") from error


def _runner(connection: Any) -> Run:
    def run(sql: str, *parameters: Any) -> list[Sequence[Any]]:
        found: list[Sequence[Any]] = connection.execute(sql, parameters).fetchall()
        return found

    return run


def _shut(connection: Any) -> None:
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _source(run: Run, wanted: Wanted, before: tuple[int, bytes] | None) -> str:
    """What stands after FROM. Names an index, since SQLite keeps no statistics by itself: of the only filter, or of the one that few pass.

    Else newest first until there are enough, by the index that holds everything that is filtered by.
    """
    filters = [name for name in INDEXED if name in wanted.equalities]
    if len(filters) == 1 and not wanted.min_duration and wanted.revision is None:
        return f"executions e INDEXED BY executions_by_{filters[0]}"
    until = min([moment for moment in (wanted.until, before and before[0] + 1) if moment is not None], default=None)
    counted = {}
    for name in filters:
        alone = Wanted(**{name: wanted.equalities[name]}, since=wanted.since, until=until)  # type: ignore[arg-type]  # each of its own type
        counted[f"executions_by_{name}"] = _count(run, f"executions_by_{name}", alone)
    if wanted.min_duration:
        counted["executions_by_duration"] = _count(run, "executions_by_duration", Wanted(min_duration=wanted.min_duration))
    index = min(counted, key=lambda name: counted[name], default="")
    return f"executions e INDEXED BY {index}" if index and counted[index] < FEW else _BY_TIME


def _count(run: Run, index: str, wanted: Wanted) -> int:
    where, parameters = conditions(wanted)
    sql = f"SELECT count(*) FROM (SELECT 1 FROM executions e INDEXED BY {index} WHERE {where} LIMIT {FEW})"
    return int(run(sql, *parameters)[0][0])


def _summed(app: str, environment: str, release: str, outcomes: dict[int, Sequence[Any]]) -> Figures:
    """From one row for each outcome."""
    counts = {outcome: row[4] for outcome, row in outcomes.items()}
    ran = [row[5] for outcome, row in outcomes.items() if outcome in (Outcome.SUCCEEDED, Outcome.FAILED)]
    durations = sorted(int(duration) for text in ran for duration in text.split(","))
    at = [durations[-int(-share * len(durations) // 1) - 1] if durations else 0 for share in PERCENTILES]
    rows = outcomes.values()
    return Figures(
        app=app,
        environment=environment,
        release=release,
        succeeded=counts.get(Outcome.SUCCEEDED, 0),
        failed=counts.get(Outcome.FAILED, 0),
        cancelled=counts.get(Outcome.CANCELLED, 0),
        refused=counts.get(Outcome.REFUSED, 0),
        durations=(at[0], at[1], at[2]),
        input_tokens=sum(row[6] for row in rows),
        output_tokens=sum(row[7] for row in rows),
        first_time=min(row[8] for row in rows),
        last_time=max(row[9] for row in rows),
    )


def _open(path: Path, store_id: str) -> Any:
    """The connection that writes. Raises CannotOpenStore."""
    connection = None
    try:
        connection = connect(str(path))
        _check_ours(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        _make_schema(connection, store_id)
        _check_owner(connection, path, store_id)
    except BaseException as error:
        _shut(connection)
        if isinstance(error, sqlite3.Error):
            raise CannotOpenStore(f"cannot open {path}: {error}{remedy(error)}") from error
        raise
    return connection


def _check_ours(connection: Any, path: Path) -> None:
    """Nothing is written to a file before it is known to be new, or ours and not newer than this program."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and tables:
        raise CannotOpenStore(f"{path} is a SQLite file of another program, and executions are kept under that name; move it away")
    if version > VERSION:
        raise CannotOpenStore(f"{path} was written by a newer Pointsman; use that version or a newer one")


def _check_owner(connection: Any, path: Path, store_id: str) -> None:
    found = connection.execute("SELECT store_id FROM execution_owner").fetchone()[0]
    if found != store_id:
        raise CannotOpenStore(f"{path} holds the executions of another store, {found}; this store is {store_id}: move the file away")


def _make_schema(connection: Any, store_id: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO execution_owner (store_id) VALUES (?)", [store_id])
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


_SCHEMA = (
    "CREATE TABLE execution_owner (store_id TEXT NOT NULL) STRICT",
    """CREATE TABLE executions (
        position INTEGER PRIMARY KEY,
        execution_id BLOB NOT NULL UNIQUE,
        app TEXT NOT NULL,
        environment TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        release TEXT NOT NULL,
        digest TEXT NOT NULL,
        revision INTEGER NOT NULL,
        gateway_id TEXT NOT NULL,
        start_time INTEGER NOT NULL,
        duration INTEGER NOT NULL,
        outcome INTEGER NOT NULL,
        error_reason TEXT NOT NULL,
        error_message TEXT NOT NULL,
        token_id TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        detail BLOB NOT NULL
    ) STRICT""",
    # Everything that is filtered by or summed up: what many filters together leave is found without looking at a row.
    """CREATE INDEX executions_by_time ON executions (start_time, app, environment, release, endpoint, outcome, duration, gateway_id,
        error_reason, revision, input_tokens, output_tokens)""",
    *(f"CREATE INDEX executions_by_{name} ON executions ({name}, start_time)" for name in INDEXED),
    "CREATE INDEX executions_by_duration ON executions (duration)",
    # How many each process of a gateway had dropped when it last said so, and by how much that grew when.
    """CREATE TABLE execution_droppers (
        instance_id TEXT PRIMARY KEY,
        dropped INTEGER NOT NULL,
        report_time INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE execution_drops (
        report_time INTEGER NOT NULL,
        gateway_id TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        dropped INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX execution_drops_by_time ON execution_drops (report_time)",
)
