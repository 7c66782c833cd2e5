"""The SQLite store: one file, one writer thread, a few readers.

Exactly one connection writes and checkpoints, on one thread: SQLite wants that, and so does an event loop. Writes that wait while
another commits share the next commit (group commit): each runs in a savepoint of its own, so that one that fails undoes only
itself, and one fsync makes all of them durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from control_plane.storage.base import CannotOpenStore, ReadTransaction, Transaction
from control_plane.storage.jobs import Job, run_to_end
from control_plane.storage.sql import SqlTransaction
from control_plane.storage.sqlite_file import cause_of, connect, lock, open_file, sqlite3
from pointsman.errors import StoreUnavailable

T = TypeVar("T")
READERS = 4
MAX_BATCH = 256
log = structlog.get_logger()


class SqliteTransaction(SqlTransaction):
    """Runs statements on a connection of the thread that it is used on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        found: list[Sequence[Any]] = self._connection.execute(sql, parameters).fetchall()
        return found


class SqliteStore:
    """Implements base.Store on one file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it, and brings its schema up to date.

        Raises:
            CannotOpenStore: when it cannot be opened, is not ours, or is newer than this program.
        """
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._lock_file = lock(path)
        try:
            self._writer = open_file(path)
            found = path.stat()
            self._identity = (found.st_dev, found.st_ino)
            self._store_id = str(self._writer.execute("SELECT store_id FROM counter").fetchone()[0])
            self._revision = int(self._writer.execute("SELECT revision FROM counter").fetchone()[0])
        except BaseException:
            self._lock_file.close()
            raise
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._on_change: list[Callable[[], None]] = []
        self._local = threading.local()
        self._opened: set[Any] = set()
        self._closed = False
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
        self._refuse_when_closed()
        return await self._loop.run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """On a connection of this thread, which is left behind when the file cannot be used: the next read opens another."""
        with self._translated():
            try:
                self._check_in_place()
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
                    self._opened.add(connection)
                connection.execute("BEGIN")
                try:
                    return run_to_end(work(SqliteTransaction(connection)))
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                if cause_of(error):
                    self._forget(self._local.__dict__.pop("connection", None))
                raise

    def _forget(self, connection: Any) -> None:
        if connection is not None:
            self._opened.discard(connection)
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, dry_run: bool = False) -> T:
        """See base.Store."""
        self._refuse_when_closed()
        job = Job(work, dry_run, self._loop.create_future())
        self._jobs.put(job)
        result: T = await job.done
        return result

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"The store {self.location} is closed. Nothing was changed.", store=self.location, cause="closed")

    async def close(self) -> None:
        """See base.Store."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        await self._loop.run_in_executor(None, self._readers.shutdown)
        for connection in [*self._opened, self._writer]:
            self._forget(connection)
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

    def _resolve(self, batch: list[Job], changed: bool) -> None:
        for job in batch:
            job.resolve()
        for call in self._on_change if changed else ():
            try:
                call()
            except Exception:
                log.exception("a listener of the store failed")

    def _commit(self, batch: list[Job]) -> bool:
        """Runs the batch in one transaction; whether the revision grew. A failed commit fails every job of the batch."""
        try:
            with self._translated():
                self._check_in_place()
                if self._writer is None:
                    self._writer = open_file(self._path)
                self._writer.execute("BEGIN IMMEDIATE")
                for job in batch:
                    self._run(job)
                revision = int(self._writer.execute("SELECT revision FROM counter").fetchone()[0])
                self._check_in_place()
                self._writer.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 -- the writer outlives every failure; its callers are told
            self._leave()
            for job in batch:
                job.error = error
            return False
        changed, self._revision = revision > self._revision, revision
        return changed

    def _leave(self) -> None:
        """Undoes the transaction; a connection that cannot even do that is left behind, and the next batch opens another."""
        try:
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            self._forget(self._writer)
            self._writer = None

    def _run(self, job: Job) -> None:
        """One job in its savepoint. What the store itself refuses (disk full, I/O) is passed on, for it ends the whole batch."""
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = run_to_end(job.work(SqliteTransaction(self._writer)))
        except BaseException as error:
            if cause_of(error):
                raise
            job.error = error
        if job.error is not None or job.dry_run:
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    def _check_in_place(self) -> None:
        """A file that was moved or deleted could still be written, and all of it would be lost with the last handle."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._unavailable(f"its file: {error.strerror}", "SQLITE_CANTOPEN") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._unavailable("another file is in the place of its file", "SQLITE_READONLY_DBMOVED")

    def _unavailable(self, why: str, cause: str) -> StoreUnavailable:
        log.warning("the store cannot be used", store=self.location, cause=cause, error=why)
        return StoreUnavailable(
            f"The store {self.location} cannot be used now: {why}. Nothing was changed; it works again when the cause is gone.",
            store=self.location,
            cause=cause,
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors that say that the file cannot be read or written become StoreUnavailable."""
        try:
            yield
        except sqlite3.Error as error:
            if cause := cause_of(error):
                raise self._unavailable(str(error), cause) from error
            raise
        except CannotOpenStore as error:
            raise self._unavailable(str(error), "SQLITE_CANTOPEN") from error
