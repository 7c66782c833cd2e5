"""What every backend shares: one thread that writes, in batches that share a commit, and a few threads that read beside it.

Writes that wait while another batch commits share the next commit: each runs in a savepoint of its own, so that one that fails
undoes only itself, and one flush makes all of them durable.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import msgspec
import structlog

from control_plane.storage.base import ReadTransaction, Transaction
from pointsman.errors import StoreUnavailable

T = TypeVar("T")
MAX_BATCH = 256

log = structlog.get_logger()


class Job(msgspec.Struct):
    """One call of Store.write."""

    work: Callable[[Transaction], Awaitable[Any]]
    dry_run: bool
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        """Gives the verdict to the caller, if it still waits."""
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


class VerdictLater(Exception):
    """What became of a batch can be told only after a while; `settle` finds out as _commit would. Others go on meanwhile."""

    def __init__(self, settle: Callable[[], bool]) -> None:
        super().__init__("the outcome is not known yet")
        self.settle = settle


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


class GroupCommitStore:
    """The part of base.Store that does not know what it writes to. A backend starts its threads when it is ready to be used."""

    def __init__(self, location: str, readers: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._location = location
        self._closed = False
        self._on_change: list[Callable[[], None]] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store reader")
        self._settlers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._write_batches, name="store writer", daemon=True)

    # What a backend supplies

    def _commit(self, batch: list[Job]) -> bool:
        """On the writer thread: runs the batch in one transaction, fills in results and errors, and says whether to ring.

        Raises:
            VerdictLater: it may have been committed; all else that is raised says that nothing was changed.
        """
        raise NotImplementedError

    def _read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """On a reader thread: runs work on one consistent view."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Closes every file and connection; no thread runs any more."""
        raise NotImplementedError

    # base.Store

    @property
    def location(self) -> str:
        """See base.Store."""
        return self._location

    def on_change(self, call: Callable[[], None]) -> None:
        """See base.Store."""
        self._on_change.append(call)

    async def read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """See base.Store."""
        self._refuse_when_closed()
        return await self._loop.run_in_executor(self._readers, self._read, work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, dry_run: bool = False) -> T:
        """See base.Store."""
        self._refuse_when_closed()
        job = Job(work, dry_run, self._loop.create_future())
        self._jobs.put(job)
        result: T = await job.done
        return result

    async def close(self) -> None:
        """See base.Store."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        for settler in self._settlers:
            await self._loop.run_in_executor(None, settler.join)
        await self._loop.run_in_executor(None, self._readers.shutdown)
        self._let_go()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"The store {self._location} is closed. Nothing was changed.", store=self._location, cause="closed")

    def _write_batches(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                waiting = self._jobs.get()
                if waiting is None:
                    self._jobs.put(None)
                    break
                batch.append(waiting)
            self._settle(batch, functools.partial(self._commit, batch))

    def _settle(self, batch: list[Job], find_out: Callable[[], bool]) -> None:
        try:
            ring = find_out()
        except VerdictLater as later:
            settler = threading.Thread(target=self._settle, args=(batch, later.settle), name="store settler", daemon=True)
            self._settlers = [thread for thread in self._settlers if thread.is_alive()] + [settler]
            settler.start()
            return
        except BaseException as error:  # noqa: BLE001 -- the writer outlives every failure; its callers are told
            ring = False
            for job in batch:
                job.error = error
        self._loop.call_soon_threadsafe(self._resolve, batch, ring)

    def _resolve(self, batch: list[Job], ring: bool) -> None:
        for job in batch:
            job.resolve()
        if ring:
            self._ring()

    def _ring(self) -> None:
        for call in self._on_change:
            try:
                call()
            except Exception:
                log.exception("a listener of the store failed")

    def _unavailable(self, why: str, cause: str) -> StoreUnavailable:
        log.warning("the store cannot be used", store=self._location, cause=cause, error=why)
        return StoreUnavailable(
            f"The store {self._location} cannot be used now: {why}. Nothing was changed; it works again when the cause is gone.",
            store=self._location,
            cause=cause,
        )
