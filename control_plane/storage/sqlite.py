"""The SQLite store: one file, one writer thread, a few readers.

Exactly one connection writes and checkpoints, on one thread: SQLite wants that, and so does an event loop. Writes that wait while
another commits share the next commit (group commit): each runs in a savepoint of its own, so that one that fails undoes only
itself, and one fsync makes all of them durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import queue
import sqlite3 as standard_sqlite3
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from sqlite_utils import Database

from control_plane.storage.base import CannotOpenStore, ReadTransaction, Transaction
from control_plane.storage.migrations import steps
from control_plane.storage.sql import SqlTransaction
from pointsman.errors import StoreUnavailable

try:
    import pysqlite3 as sqlite3
except ImportError:
    sqlite3 = standard_sqlite3

T = TypeVar("T")
# "PMAN": tells our files from other SQLite files.
APPLICATION_ID = 0x504D414E
READERS = 4
MAX_BATCH = 256
BUSY_TIMEOUT_MS = 5000
# Earlier ones can corrupt a WAL file when a write and a checkpoint meet (fixed in 3.51.3).
FIRST_SOUND_SQLITE = (3, 51, 3)

log = structlog.get_logger()


class SqliteTransaction(SqlTransaction):
    """Runs statements on a connection of the thread that it is used on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        found: list[Sequence[Any]] = self._connection.execute(sql, parameters).fetchall()
        return found


def run_to_end(work: Awaitable[T]) -> T:
    """Runs a coroutine that awaits nothing but a transaction's methods, which never wait, without an event loop.

    Raises:
        RuntimeError: when it awaits anything else.
    """
    coroutine = cast("Coroutine[Any, Any, T]", work)
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a transaction may await nothing but its own methods")


@dataclass(slots=True)
class _Job:
    work: Callable[[Transaction], Awaitable[Any]]
    dry_run: bool
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        if self.done.cancelled():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


class SqliteStore:
    """Implements base.Store on one file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it, and brings its schema up to date.

        Raises:
            CannotOpenStore: when it cannot be opened, is not ours, or is newer than this program.
        """
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._lock_file = _lock(path)
        try:
            self._writer = _open(path)
            self._store_id = str(self._writer.execute("SELECT store_id FROM counter").fetchone()[0])
            self._revision = int(self._writer.execute("SELECT revision FROM counter").fetchone()[0])
        except BaseException:
            self._lock_file.close()
            raise
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._on_change: list[Callable[[], None]] = []
        self._local = threading.local()
        self._opened: list[Any] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite reader")
        self._thread = threading.Thread(target=self._write_batches, name="sqlite writer", daemon=True)
        self._thread.start()

    @property
    def store_id(self) -> str:
        """See base.Store."""
        return self._store_id

    @property
    def location(self) -> str:
        """See base.Store."""
        return f"sqlite:///{self._path}"

    def on_change(self, call: Callable[[], None]) -> None:
        """See base.Store."""
        self._on_change.append(call)

    async def read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """See base.Store."""
        return await self._loop.run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        with self._translated():
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = _connect(f"file:{self._path}?mode=ro", uri=True)
                self._opened.append(connection)
            connection.execute("BEGIN")
            try:
                return run_to_end(work(SqliteTransaction(connection)))
            finally:
                connection.execute("ROLLBACK")

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, dry_run: bool = False) -> T:
        """See base.Store."""
        job = _Job(work, dry_run, self._loop.create_future())
        self._jobs.put(job)
        result: T = await job.done
        return result

    async def close(self) -> None:
        """See base.Store."""
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        self._readers.shutdown()
        for connection in [*self._opened, self._writer]:
            connection.close()
        self._lock_file.close()

    def _write_batches(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                waiting = self._jobs.get()
                if waiting is None:
                    self._jobs.put(None)
                    break
                batch.append(waiting)
            changed = self._commit(batch)
            self._loop.call_soon_threadsafe(self._resolve, batch, changed)

    def _resolve(self, batch: list[_Job], changed: bool) -> None:
        for job in batch:
            job.resolve()
        if changed:
            for call in self._on_change:
                call()

    def _commit(self, batch: list[_Job]) -> bool:
        """Runs the batch in one transaction; whether the revision grew. A failed commit fails every job of the batch."""
        try:
            with self._translated():
                self._writer.execute("BEGIN IMMEDIATE")
                for job in batch:
                    self._run(job)
                revision = int(self._writer.execute("SELECT revision FROM counter").fetchone()[0])
                self._writer.execute("COMMIT")
        except StoreUnavailable as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            for job in batch:
                job.error = error
            return False
        changed, self._revision = revision > self._revision, revision
        return changed

    def _run(self, job: _Job) -> None:
        """One job in its savepoint. What the store itself refuses (disk full, I/O) is passed on, for it ends the whole batch."""
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = run_to_end(job.work(SqliteTransaction(self._writer)))
        except sqlite3.OperationalError:
            raise
        except BaseException as error:  # noqa: BLE001 -- it is given to the caller that waits for this job
            job.error = error
        if job.error is not None or job.dry_run:
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Driver errors that say that the file cannot be read or written become StoreUnavailable."""
        try:
            yield
        except sqlite3.OperationalError as error:
            cause = getattr(error, "sqlite_errorname", "") or str(error)
            log.warning("the store cannot be used", store=self.location, cause=cause, error=str(error))
            raise StoreUnavailable(
                f"The store {self.location} cannot be used now: {error}. Nothing was changed; it works again when the cause is gone.",
                store=self.location,
                cause=cause,
            ) from error


def _lock(path: Path) -> Any:
    """A SQLite store belongs to one control plane at a time."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        file = lock_path.open("w")
    except OSError as error:
        raise CannotOpenStore(f"cannot open the store {path}: {error.strerror}; its folder must exist and be writable") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CannotOpenStore(
            f"the store {path} is in use by another control plane; stop that one, or use PostgreSQL for several"
        ) from error
    return file


def _connect(name: str, *, uri: bool = False) -> Any:
    connection = sqlite3.connect(name, uri=uri, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _open(path: Path) -> Any:
    if sqlite3.sqlite_version_info < FIRST_SOUND_SQLITE:
        log.warning("this SQLite can corrupt a store in rare cases; use 3.51.3 or newer", version=sqlite3.sqlite_version)
    try:
        connection = _connect(str(path))
        _check_ours(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        steps.apply(Database(connection, execute_plugins=False))
    except sqlite3.DatabaseError as error:
        raise CannotOpenStore(f"cannot open the store {path}: {error}") from error
    return connection


def _check_ours(connection: Any, path: Path) -> None:
    """Nothing is written to a file before it is known to be new, or ours and not newer than this program."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and tables:
        raise CannotOpenStore(f"{path} is a SQLite file of another program, not a Pointsman store; choose another path")
    if application_id == APPLICATION_ID:
        known = {step.name for step in steps._migrations}  # noqa: SLF001 -- there is no public way to list them
        unknown = [step.name for step in steps.applied(Database(connection, execute_plugins=False)) if step.name not in known]
        if unknown:
            raise CannotOpenStore(
                f"the store {path} was written by a newer Pointsman (it has the step {unknown[-1]!r}); use that version or a newer one"
            )
