"""What a PostgreSQL store asks its server about others and about the past: changes by other replicas, and the fate of a commit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

from control_plane.storage.postgres_connection import connect, delays, location_of, one_line

CHANNEL = "pointsman_change"
POLL_SECONDS = 1.0
ANSWER_SECONDS = 5.0
OUTCOME_SECONDS = 20.0

log = structlog.get_logger()


async def listen(parameters: dict[str, Any], ring: Callable[[], None]) -> None:
    """Rings when the counter is not what it was, and after every reconnect, on a connection of its own; never ends."""
    waits = delays()
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as connection:
                await connection.execute(f"LISTEN {CHANNEL}".encode())
                waits = delays()
                await _follow(connection, ring)
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.info("changes of other control planes are not heard now", store=location_of(parameters), error=one_line(error))
        await asyncio.sleep(next(waits))


async def _follow(connection: psycopg.AsyncConnection[Any], ring: Callable[[], None]) -> None:
    heard: object = None
    while True:
        async with asyncio.timeout(ANSWER_SECONDS):
            row = await (await connection.execute("SELECT revision FROM counter")).fetchone()
        if row != heard:
            heard = row
            ring()
        async for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
            pass


def outcome(parameters: dict[str, Any], xid: str, stopping: threading.Event) -> bool | None:
    """Whether the transaction was committed, asked until the server knows; None when it could not be asked in time.

    What was committed just before the server went may not have reached a synchronous standby: the update that follows waits for
    it, and so for everything before it.
    """
    deadline = time.monotonic() + OUTCOME_SECONDS
    for delay in delays():
        try:
            with connect(parameters) as connection:
                row = connection.execute("SELECT pg_xact_status(%s::xid8)", [xid]).fetchone()
                if row is not None and row[0] == "committed":
                    connection.execute("UPDATE counter SET revision = revision")
                    return True
                if row is not None and row[0] == "aborted":
                    return False
        except psycopg.errors.InvalidParameterValue:
            return False  # a standby that took over and never heard of it
        except psycopg.Error as error:
            log.info("the outcome of a commit is not known yet", store=location_of(parameters), error=one_line(error))
        if time.monotonic() > deadline or stopping.wait(delay):
            break
    return None
