"""The PostgreSQL store: any number of control planes on one database.

Each has one connection that writes. Its batch holds the counter's row from its first statement to its commit, so all writers take
turns and every transaction sees the one before it. NOTIFY tells the others; it is only a doorbell: the counter is the truth, and
it is also looked at every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from control_plane.storage.base import CannotOpenStore, ReadTransaction
from control_plane.storage.group_commit import GroupCommitStore, Job, VerdictLater, run_to_end
from control_plane.storage.postgres_connection import cause_of, commit, connect, location_of, one_line, parse, shut, translated
from control_plane.storage.postgres_following import CHANNEL, Limits, listen, mark, outcome
from control_plane.storage.postgres_schema import bring_up_to_date
from control_plane.storage.sql_audit import SqlAudit
from control_plane.storage.sql_history import SqlHistory
from control_plane.storage.sql_tokens import SqlTokens
from pointsman.errors import StoreUnavailable

T = TypeVar("T")
READERS = 8
READ_TIMEOUT = "30s"
# How long a commit may wait for a synchronous standby before its caller is told that what became of it is not known.
COMMIT_SECONDS = 10.0
# How long closing waits for what was begun.
CLOSE_SECONDS = 10.0

_BEGIN_WRITE = (
    b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
    b"SELECT store_id FROM counter FOR UPDATE"
)  # fmt: skip
_BEGIN_READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresTransaction(SqlHistory, SqlTokens, SqlAudit):
    """Runs statements on a connection of the thread that it is used on."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    async def _rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        cursor = self._connection.execute(translated(sql), parameters, binary=True)
        return cursor.fetchall() if cursor.description else []


class PostgresStore(GroupCommitStore):
    """Implements base.Store on one database."""

    @classmethod
    async def open(cls, url: str) -> PostgresStore:
        """Connects and brings the schema up to date.

        Raises:
            CannotOpenStore: when it cannot be reached, is not ours, or is newer than this program.
        """
        store = cls(parse(url))
        await asyncio.to_thread(store._prepare)
        store._thread.start()
        store._tasks = [
            asyncio.create_task(listen(store._parameters, store._ring, store._cut), name="store listener"),
            asyncio.create_task(store._limits.keep(store._cut), name="store limits"),
        ]
        return store

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(location_of(parameters), READERS)
        self._parameters = parameters
        self._writer: psycopg.Connection[Any] | None = None
        self._local = threading.local()
        self._opened: set[psycopg.Connection[Any]] = set()
        self._store_id = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._limits = Limits()
        self._name, self._batch = str(uuid.uuid4()), 0

    def _prepare(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        try:
            connection = connect(self._parameters)
            bring_up_to_date(connection, self.location)
            row = connection.execute("SELECT store_id FROM counter").fetchone()
        except psycopg.Error as error:
            self._forget(connection)
            raise CannotOpenStore(f"cannot open the store {self.location}: {one_line(error)}") from error
        except BaseException:
            self._forget(connection)
            raise
        if row is None:
            self._forget(connection)
            raise CannotOpenStore(f"cannot open the store {self.location}: its table `counter` is empty; restore a backup")
        self._store_id, self._writer = str(row[0]), connection

    @property
    def store_id(self) -> str:
        """See base.Store."""
        return self._store_id

    async def close(self) -> None:
        """See base.Store."""
        self._limits.close(CLOSE_SECONDS)
        await super().close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _let_go(self) -> None:
        for connection in [*self._opened, self._writer]:
            self._forget(connection)

    def _forget(self, connection: psycopg.Connection[Any] | None) -> None:
        if connection is not None:
            self._opened.discard(connection)
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _cut(self) -> None:
        for connection in [*self._opened, self._writer]:
            if connection is not None:
                shut(connection)

    # Reads

    def _read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        with self._translated():
            connection = self._begin_read()
            try:
                result = run_to_end(work(PostgresTransaction(connection)))
                connection.execute(b"COMMIT")
            except BaseException as error:
                if cause_of(error):
                    self._forget(self._local.__dict__.pop("connection", None))
                elif connection.info.transaction_status != TransactionStatus.IDLE:
                    connection.execute(b"ROLLBACK")
                raise
            return result

    def _begin_read(self) -> psycopg.Connection[Any]:
        """This thread's connection in a new transaction; one that broke while nobody used it is replaced without a word."""
        connection: psycopg.Connection[Any] | None = self._local.__dict__.pop("connection", None)
        if connection is not None:
            try:
                connection.execute(_BEGIN_READ)
            except psycopg.Error:
                self._forget(connection)
                connection = None
        if connection is None:
            connection = connect(self._parameters, statement_timeout=READ_TIMEOUT)
            self._opened.add(connection)
            connection.execute(_BEGIN_READ)
        self._local.connection = connection
        return connection

    # Writes

    def _commit(self, batch: list[Job]) -> bool:
        """See GroupCommitStore. A failed commit fails every job of the batch."""
        try:
            with self._translated():
                writer = self._begin_write()
                ring = self._run_all(writer, batch)
                if all(job.error is not None or job.dry_run for job in batch):
                    writer.execute(b"ROLLBACK")
                    return False
        except BaseException:
            self._leave()
            raise
        self._finish(writer, ring)
        return ring

    def _begin_write(self) -> psycopg.Connection[Any]:
        """The connection that writes, when its turn has come among all replicas. One that broke meanwhile is replaced."""
        found = None
        if self._writer is not None:
            try:
                found = self._writer.execute(_BEGIN_WRITE)
            except psycopg.Error:
                if not self._writer.closed:
                    raise
                self._leave()
        if self._writer is None or found is None:
            self._writer = connect(self._parameters)
            found = self._writer.execute(_BEGIN_WRITE)
        found.nextset()
        row = found.fetchone()
        if row is None or row[0] != self._store_id:
            raise self._unavailable("another store is in the place of its database", "replaced")
        return self._writer

    def _run_all(self, writer: psycopg.Connection[Any], batch: list[Job]) -> bool:
        """Whether the revision grew. A job that is alone needs no savepoint: the whole is undone with it."""
        if len(batch) == 1:
            return self._run(writer, batch[0])
        ring = False
        for job in batch:
            writer.execute(b"SAVEPOINT job")
            grew = self._run(writer, job)
            undo = job.error is not None or job.dry_run
            writer.execute(b"ROLLBACK TO job; RELEASE job" if undo else b"RELEASE job")
            ring = ring or (grew and not undo)
        return ring

    def _run(self, writer: psycopg.Connection[Any], job: Job) -> bool:
        """One job. What is about the store (connection lost, disk full) is passed on, for it ends the whole batch."""
        transaction = PostgresTransaction(writer)
        try:
            job.result = run_to_end(job.work(transaction))
        except BaseException as error:
            if cause_of(error):
                raise
            job.error = error
        if job.error is None and writer.info.transaction_status != TransactionStatus.INTRANS:
            job.error = RuntimeError("a transaction may not go on after a statement of it failed")
        return transaction.grown is not None

    def _finish(self, writer: psycopg.Connection[Any], ring: bool) -> None:
        """Commits. When the answer is lost, the server is asked what became of it; what is written next bears another name."""
        self._batch += 1
        try:
            notify = f"NOTIFY {CHANNEL}; " if ring else ""
            with self._limits.within(writer, COMMIT_SECONDS):
                if commit(writer, mark(self._name, self._batch) + notify):
                    return
            lost = "it committed without waiting for its standby"
        except psycopg.Error as error:
            self._leave()
            if not writer.closed:
                raise self._unavailable(one_line(error), cause_of(error) or type(error).__name__) from error
            lost = one_line(error)
        name, self._name = self._name, str(uuid.uuid4())
        raise VerdictLater(functools.partial(self._ask_outcome, name, self._batch, lost, ring))

    def _ask_outcome(self, name: str, batch: int, lost: str, ring: bool) -> bool:
        committed = outcome(self._parameters, name, batch, self._limits)
        if committed is None:
            raise StoreUnavailable(
                f"The store {self.location} was lost in the midst of a commit: {lost}. "
                "Whether it was changed is not known; ask again, with the same request_id.",
                store=self.location,
                cause="outcome unknown",
            )
        if not committed:
            raise self._unavailable(lost, "connection")
        return ring

    def _leave(self) -> None:
        """Undoes the transaction; a connection that cannot even do that is left behind, and the next batch opens another."""
        connection, self._writer = self._writer, None
        if connection is None:
            return
        try:
            if connection.info.transaction_status != TransactionStatus.IDLE:
                connection.execute(b"ROLLBACK")
        except psycopg.Error:
            self._forget(connection)
        else:
            self._writer = connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors that say that the server cannot be used become StoreUnavailable."""
        try:
            yield
        except psycopg.Error as error:
            if cause := cause_of(error):
                raise self._unavailable(one_line(error), cause) from error
            raise
