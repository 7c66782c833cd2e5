"""What a PostgreSQL store asks its server about others and about the past: changes by other replicas, and the fate of a commit.

What waits for the server too long is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import structlog

from control_plane.storage.postgres_connection import commit, connect, delays, location_of, one_line, shut

CHANNEL = "pointsman_change"
POLL_SECONDS = 1.0
ANSWER_SECONDS = 3.0
OUTCOME_SECONDS = 10.0
CHECK_SECONDS = 0.2
# Under which `outcome` commits; writers are called by UUIDs.
QUESTION = "question"

log = structlog.get_logger()


async def listen(parameters: dict[str, Any], ring: Callable[[], None], cut: Callable[[], None]) -> None:
    """Rings when the counter is not what it was, and after every reconnect, on a connection of its own; never ends.

    A server that takes a question and does not answer it is one that others would wait for without end: `cut` is called then.
    """
    waits = delays()
    while True:
        try:
            async with await connected(parameters) as connection:
                heard: object = None
                await ask(connection, f"LISTEN {CHANNEL}")
                waits = delays()
                while True:
                    found = await (await ask(connection, "SELECT revision FROM counter")).fetchone()
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


async def connected(parameters: dict[str, Any]) -> psycopg.AsyncConnection[Any]:
    """A connection. Cancelled, it waits for the driver, which would leave a half-made one open."""
    connecting = asyncio.ensure_future(psycopg.AsyncConnection.connect(**parameters, autocommit=True))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with contextlib.suppress(psycopg.Error):
            await (await connecting).close()
        raise


async def ask(connection: psycopg.AsyncConnection[Any], sql: str, parameters: Sequence[Any] = ()) -> psycopg.AsyncCursor[Any]:
    """Runs a statement.

    Raises:
        TimeoutError: no answer. The connection is shut then: a driver that is cancelled would first wait for the server again.
    """
    asking = asyncio.ensure_future(connection.execute(sql.encode(), parameters or None))
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
    values = f"INSERT INTO writers (writer, batch) VALUES ('{writer}', {batch:d})"  # noqa: S608 -- a name of ours and a number
    return f"{values} ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, used_time = now(); "


def outcome(parameters: dict[str, Any], writer: str, batch: int, limits: Limits) -> bool | None:
    """Whether the batch was committed, asked until the server knows; None when it could not be asked in time.

    The counter's row is held by whoever writes, so the batch has ended when it is ours. (Transaction ids would say less: a standby
    that takes over gives them again.) What was committed just before the server went may not have reached a synchronous standby:
    this commit waits for it, and so for the one before. Its mark is not the batch's: its answer may be lost as well.
    """
    deadline = time.monotonic() + OUTCOME_SECONDS
    for delay in delays():
        try:
            with connect(parameters) as connection, limits.within(connection, deadline - time.monotonic()):
                connection.execute(b"BEGIN; SELECT 1 FROM counter FOR UPDATE")
                row = connection.execute("SELECT batch FROM writers WHERE writer = %s", [writer]).fetchone()
                if commit(connection, mark(QUESTION, 0)):
                    return row is not None and bool(row[0] >= batch)
        except psycopg.Error as error:
            log.info("the outcome of a commit is not known yet", store=location_of(parameters), error=one_line(error))
        if time.monotonic() > deadline or limits.closing.wait(delay):
            break
    return None


class Limits:
    """Ends what waits too long for a server, by shutting its connection: a commit whose standby is away waits without end.

    The server cannot be asked to end it: it would call the commit done.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._until: dict[psycopg.Connection[Any], float] = {}
        self._end = math.inf

    @contextlib.contextmanager
    def within(self, connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
        """What is done inside fails with psycopg.OperationalError, soon after so many seconds at the latest."""
        until = self._until[connection] = time.monotonic() + seconds
        try:
            yield
        except psycopg.Error as error:
            if time.monotonic() > min(until, self._end):
                raise psycopg.OperationalError("the server gave no answer in time; is its synchronous standby away?") from error
            raise
        finally:
            del self._until[connection]

    def close(self, seconds: float) -> None:
        """From now on everything has at most so many seconds."""
        self._end = min(self._end, time.monotonic() + seconds)
        self.closing.set()

    async def keep(self, cut: Callable[[], None]) -> None:
        """Sees to it until it is cancelled; `cut` ends the rest, when the store closes."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            for connection, until in list(self._until.items()):
                if now > min(until, self._end):
                    shut(connection)
            if now > self._end:
                cut()
