"""What a PostgreSQL store asks its server about others and about the past: changes by other replicas, and the fate of a commit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

from control_plane.storage.postgres_connection import commit, connect, delays, location_of, one_line, shut

CHANNEL = "pointsman_change"
POLL_SECONDS = 1.0
ANSWER_SECONDS = 3.0
OUTCOME_SECONDS = 20.0

log = structlog.get_logger()


async def listen(parameters: dict[str, Any], ring: Callable[[], None], cut: Callable[[], None]) -> None:
    """Rings when the counter is not what it was, and after every reconnect, on a connection of its own; never ends.

    A server that takes a question and does not answer it is one that others would wait for without end: `cut` is called then.
    """
    waits = delays()
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as connection:
                heard: object = None
                await _ask(connection, f"LISTEN {CHANNEL}")
                waits = delays()
                while True:
                    found = await (await _ask(connection, "SELECT revision FROM counter")).fetchone()
                    if found != heard:
                        heard = found
                        ring()
                    async for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                        pass
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            log.warning("the store does not answer", store=location_of(parameters))
            cut()
        except (psycopg.Error, OSError) as error:
            log.info("changes of other control planes are not heard now", store=location_of(parameters), error=one_line(error))
        await asyncio.sleep(next(waits))


async def _ask(connection: psycopg.AsyncConnection[Any], sql: str) -> psycopg.AsyncCursor[Any]:
    """Runs a statement.

    Raises:
        TimeoutError: no answer. The connection is shut then: a driver that is cancelled would first wait for the server again.
    """
    asking = asyncio.ensure_future(connection.execute(sql.encode()))
    try:
        answered, _ = await asyncio.wait([asking], timeout=ANSWER_SECONDS)
        if answered:
            return asking.result()
        shut(connection)
        await asyncio.wait([asking])
        raise TimeoutError
    finally:
        if not asking.cancel():
            asking.exception()


def mark(writer: str, batch: int) -> str:
    """The statement of a transaction that says whose it is, for `outcome`."""
    values = f"INSERT INTO writers (writer, batch) VALUES ('{writer}', {batch:d})"  # noqa: S608 -- a UUID of ours and a number
    return f"{values} ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, used_time = now(); "


def outcome(parameters: dict[str, Any], writer: str, batch: int, stopping: threading.Event) -> bool | None:
    """Whether the batch was committed, asked until the server knows; None when it could not be asked in time.

    The counter's row is held by whoever writes, so the batch has ended when it is ours. (Transaction ids would say less: a standby
    that takes over gives them again.) What was committed just before the server went may not have reached a synchronous standby:
    this commit waits for it, and so for the one before.
    """
    deadline = time.monotonic() + OUTCOME_SECONDS
    for delay in delays():
        try:
            with connect(parameters) as connection:
                connection.execute(b"BEGIN; SELECT 1 FROM counter FOR UPDATE")
                row = connection.execute("SELECT batch FROM writers WHERE writer = %s", [writer]).fetchone()
                if commit(connection, mark(writer, batch)):
                    return row is not None and bool(row[0] >= batch)
        except psycopg.Error as error:
            log.info("the outcome of a commit is not known yet", store=location_of(parameters), error=one_line(error))
        if time.monotonic() > deadline or stopping.wait(delay):
            break
    return None
