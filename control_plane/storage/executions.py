"""What every backend of an ExecutionStore shares: its threads, and the statements that are the same everywhere.

One thread writes and a few read, none of them the Store's: a batch of thousands never holds up a deploy.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec
import structlog

from control_plane.execution_model import Execution, Figures, Outcome, Report, Use, Wanted
from pointsman.errors import StoreUnavailable

T = TypeVar("T")
Run = Callable[..., list[Sequence[Any]]]
"""Runs a statement with its parameters in the present transaction and returns the rows."""

READERS = 4
# Reports that wait for the thread that writes, each with its records; a gateway sends one after the other.
MAX_WAITING_REPORTS = 64
SLOW_DOWN_SECONDS = 2.0

COLUMNS = tuple(Execution.__struct_fields__)
LISTED = ", ".join(f"e.{name}" for name in COLUMNS[:-1])
WHOLE = f"{LISTED}, e.detail"
NEWEST_FIRST = "ORDER BY e.start_time DESC, e.execution_id DESC"
# Columns with an index of their own that goes on with start_time, the usually most selective first.
INDEXED = ("error_reason", "outcome", "gateway_id", "release", "endpoint", "app", "environment")
PERCENTILES = (0.5, 0.95, 0.99)

log = structlog.get_logger()


class SqlExecutions:
    """The part of base.ExecutionStore that does not know its driver."""

    shared = False

    def __init__(self, location: str) -> None:
        self._location = location
        self._closed = False
        self._waiting = 0
        self._writing_thread = ThreadPoolExecutor(1, thread_name_prefix="executions writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="executions reader")

    # What a backend supplies; all of it is called on threads

    def _reading(self) -> AbstractContextManager[Run]:
        """One consistent view. Raises StoreUnavailable."""
        raise NotImplementedError

    def _writing(self) -> AbstractContextManager[Run]:
        """One transaction, committed at the end, undone when something is raised. Raises StoreUnavailable."""
        raise NotImplementedError

    def _insert(self, run: Run, executions: Sequence[Execution]) -> set[bytes]:
        """Stores executions with different ids; the ids of those that were not there yet."""
        raise NotImplementedError

    def _figures(self, run: Run, where: str, parameters: Sequence[Any]) -> list[Figures]:
        raise NotImplementedError

    def _sweep_days(self, run: Run, keep_since: int, limit: int) -> int:
        """Deletes what began before, see base."""
        raise NotImplementedError

    def _newest(self, run: Run, wanted: Wanted, before: tuple[int, bytes] | None, limit: int) -> list[Sequence[Any]]:
        """The first of what is wanted, newest first; the columns LISTED."""
        raise NotImplementedError

    def _everything(self) -> str:
        """What stands after FROM to look at all that pass."""
        return "executions e"

    def _let_go(self) -> None:
        """Closes every file and connection; no thread runs any more."""
        raise NotImplementedError

    # base.ExecutionStore

    async def record(self, report: Report, now: int) -> list[Execution]:
        """See base.ExecutionStore."""
        if self._waiting >= MAX_WAITING_REPORTS:
            raise StoreUnavailable(
                f"{self._waiting} reports wait to be stored in {self._location}, which is too many. Report again a little later.",
                retry_after_seconds=SLOW_DOWN_SECONDS,
                store=self._location,
                cause="busy",
            )
        self._waiting += 1
        try:
            return await self._write(lambda run: self._record(run, report, now))
        finally:
            self._waiting -= 1

    async def execution(self, execution_id: bytes) -> Execution | None:
        """See base.ExecutionStore."""
        sql = f"SELECT {WHOLE} FROM executions e WHERE e.execution_id = ?"
        rows = await self._read(lambda run: run(sql, execution_id))
        return execution_of(rows[0]) if rows else None

    async def executions(self, wanted: Wanted, *, before: tuple[int, bytes] | None, limit: int) -> list[Execution]:
        """See base.ExecutionStore."""
        rows = await self._read(lambda run: self._newest(run, wanted, before, limit))
        return [execution_of(row) for row in rows]

    async def figures(self, wanted: Wanted) -> list[Figures]:
        """See base.ExecutionStore."""
        return await self._read(lambda run: self._figures(run, *conditions(wanted)))

    async def dropped(self, since: int, until: int) -> int:
        """See base.ExecutionStore."""
        sql = "SELECT coalesce(sum(dropped), 0) FROM execution_drops WHERE report_time >= ? AND report_time < ?"
        rows = await self._read(lambda run: run(sql, since, until))
        return int(rows[0][0])

    async def uses(self, wanted: Wanted, *, late_after: int | None) -> list[Use]:
        """See base.ExecutionStore."""
        where, parameters = conditions(wanted)
        late = f"sum(CASE WHEN e.start_time > {late_after:d} THEN 1 ELSE 0 END)" if late_after is not None else "0"
        sql = (
            f"SELECT e.gateway_id, count(*), sum(CASE WHEN e.outcome = {Outcome.FAILED:d} THEN 1 ELSE 0 END), {late}, max(e.start_time) "
            f"FROM {self._everything()} WHERE {where} GROUP BY e.gateway_id ORDER BY e.gateway_id"
        )
        rows = await self._read(lambda run: run(sql, *parameters))
        return [Use(gateway_id=row[0], executions=row[1], failed=int(row[2]), late=int(row[3]), last_time=row[4]) for row in rows]

    async def news(self, cursor: bytes, limit: int) -> tuple[bytes, list[Execution]]:  # noqa: ARG002 -- there are no others
        """See base.ExecutionStore."""
        return cursor, []

    async def sweep(self, *, keep_since: int, keep_rows: int, limit: int) -> int:
        """See base.ExecutionStore."""
        gone = await self._write(lambda run: self._sweep_days(run, keep_since, limit))
        if gone >= limit:
            return gone
        for environment, oldest in await self._read(lambda run: _beyond(run, keep_rows)):
            gone += await self._write(functools.partial(_delete_rows, environment=environment, up_to=oldest, limit=limit - gone))
            if gone >= limit:
                break
        return gone

    async def close(self) -> None:
        """See base.ExecutionStore."""
        if self._closed:
            return
        self._closed = True
        for threads in (self._writing_thread, self._readers):
            await asyncio.to_thread(threads.shutdown)
        self._let_go()

    async def _read(self, work: Callable[[Run], T]) -> T:
        return await self._on(self._readers, self._reading, work)

    async def _write(self, work: Callable[[Run], T]) -> T:
        return await self._on(self._writing_thread, self._writing, work)

    async def _on(self, threads: ThreadPoolExecutor, begin: Callable[[], AbstractContextManager[Run]], work: Callable[[Run], T]) -> T:
        if self._closed:
            raise StoreUnavailable(f"The store {self._location} is closed. Nothing was changed.", store=self._location, cause="closed")

        def job() -> T:
            with begin() as run:
                return work(run)

        return await asyncio.get_running_loop().run_in_executor(threads, job)

    def _record(self, run: Run, report: Report, now: int) -> list[Execution]:
        given = {execution.execution_id: execution for execution in report.executions}
        new = self._insert(run, list(given.values())) if given else set()
        if report.dropped:
            _count_dropped(run, report, now)
        return [execution for execution in given.values() if execution.execution_id in new]

    def _unavailable(self, why: str, cause: str) -> StoreUnavailable:
        log.warning("executions cannot be stored or read", store=self._location, cause=cause, error=why)
        return StoreUnavailable(
            f"The executions in {self._location} cannot be used now: {why}. It works again when the cause is gone.",
            store=self._location,
            cause=cause,
        )


def execution_of(row: Sequence[Any]) -> Execution:
    """From the columns, in their order, with or without the last one."""
    values = dict(zip(COLUMNS, row, strict=False))
    values["execution_id"] = bytes(values["execution_id"])
    return Execution(**values)


def row_of(execution: Execution) -> tuple[Any, ...]:
    """The columns, in their order."""
    return msgspec.structs.astuple(execution)


def conditions(wanted: Wanted, before: tuple[int, bytes] | None = None) -> tuple[str, list[Any]]:
    """The WHERE of a statement over `executions e`, and its parameters."""
    where, parameters = [f"e.{name} = ?" for name in wanted.equalities], list[Any](wanted.equalities.values())
    for condition, value in (
        ("e.duration >= ?", wanted.min_duration or None),
        ("e.start_time >= ?", wanted.since),
        ("e.start_time < ?", wanted.until),
    ):
        if value is not None:
            where.append(condition)
            parameters.append(value)
    if before is not None:
        where.append("(e.start_time, e.execution_id) < (?, ?)")
        parameters += before
    return " AND ".join(where) or "1 = 1", parameters


def _count_dropped(run: Run, report: Report, now: int) -> None:
    known = run("SELECT dropped FROM execution_droppers WHERE instance_id = ?", report.instance_id)
    grown = report.dropped - (known[0][0] if known else 0)
    if grown <= 0:
        return
    run(
        "INSERT INTO execution_droppers (instance_id, dropped, report_time) VALUES (?, ?, ?) "
        "ON CONFLICT (instance_id) DO UPDATE SET dropped = excluded.dropped, report_time = excluded.report_time",
        report.instance_id,
        report.dropped,
        now,
    )
    sql = "INSERT INTO execution_drops (report_time, gateway_id, instance_id, dropped) VALUES (?, ?, ?, ?)"
    run(sql, now, report.gateway_id, report.instance_id, grown)


def _beyond(run: Run, keep_rows: int) -> list[tuple[str, int]]:
    """Of each environment with more than so many rows: the start_time of the newest one that is too many."""
    found: list[tuple[str, int]] = []
    last = run("SELECT min(environment) FROM executions")
    while last and last[0][0] is not None:
        environment = last[0][0]
        sql = "SELECT start_time FROM executions WHERE environment = ? ORDER BY start_time DESC LIMIT 1 OFFSET ?"
        found += [(environment, row[0]) for row in run(sql, environment, keep_rows)]
        last = run("SELECT min(environment) FROM executions WHERE environment > ?", environment)
    return found


def _delete_rows(run: Run, *, environment: str, up_to: int, limit: int) -> int:
    """Deletes of an environment what is not newer, the oldest first; returns how many."""
    sql = (
        "DELETE FROM executions WHERE start_time <= ? AND (execution_id, start_time) IN (SELECT execution_id, start_time FROM executions "
        "WHERE environment = ? AND start_time <= ? ORDER BY start_time LIMIT ?) RETURNING 1"
    )
    return len(run(sql, up_to, environment, up_to, limit))
