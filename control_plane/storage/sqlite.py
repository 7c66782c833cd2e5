"""The SQLite store: one file. Exactly one connection writes and checkpoints, on one thread, and a few read beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from control_plane.storage.base import CannotOpenStore, ReadTransaction
from control_plane.storage.group_commit import GroupCommitStore, Job, run_to_end
from control_plane.storage.sql_audit import SqlAudit
from control_plane.storage.sql_history import SqlHistory
from control_plane.storage.sql_tokens import SqlTokens
from control_plane.storage.sqlite_file import cause_of, connect, lock, open_file, sqlite3

T = TypeVar("T")
READERS = 4


class SqliteTransaction(SqlHistory, SqlTokens, SqlAudit):
    """Runs statements on a connection of the thread that it is used on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def _rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        found: list[Sequence[Any]] = self._connection.execute(sql, parameters).fetchall()
        return found


class SqliteStore(GroupCommitStore):
    """Implements base.Store on one file."""

    def __init__(self, path: Path, *, beside: bool = False) -> None:
        """Opens the file, or makes it, and brings its schema up to date; or `beside` a control plane that uses it, for a moment.

        Raises:
            CannotOpenStore: when it cannot be opened, is not ours, or is newer than this program.
        """
        super().__init__(f"sqlite:///{path}", READERS)
        self._path = path
        self._lock_file = lock(path, beside=beside)
        try:
            self._writer = open_file(path, bring_up_to_date=self._lock_file is not None)
            found = path.stat()
            self._identity = (found.st_dev, found.st_ino)
            self._store_id = str(self._writer.execute("SELECT store_id FROM counter").fetchone()[0])
            self._revision = int(self._writer.execute("SELECT revision FROM counter").fetchone()[0])
        except BaseException:
            self._unlock()
            raise
        self._local = threading.local()
        self._opened: set[Any] = set()
        self._thread.start()

    def _unlock(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()

    @property
    def store_id(self) -> str:
        """See base.Store."""
        return self._store_id

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

    def _let_go(self) -> None:
        for connection in [*self._opened, self._writer]:
            self._forget(connection)
        self._unlock()

    def _commit(self, batch: list[Job]) -> bool:
        """See GroupCommitStore. A failed commit fails every job of the batch."""
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
        except BaseException:
            self._leave()
            raise
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
