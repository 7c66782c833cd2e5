"""Who follows executions as they are stored: a ring for each reader, so that a slow one costs bounded memory and delays nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence

import structlog

from control_plane.execution_model import Execution, Wanted
from control_plane.storage.base import ExecutionStore
from pointsman.errors import StoreUnavailable

# For each reader: what it has not taken yet, and what of it with inputs and outputs. The oldest go first.
RING_EXECUTIONS = 1_000
RING_BYTES = 8 * 1024 * 1024
# How soon a reader hears of what another replica stored.
POLL_SECONDS = 0.15
NEWS_AT_ONCE = 500

log = structlog.get_logger()


class Reader:
    """One that follows, made by Tail.reader."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._ring: deque[Execution] = deque()
        self._bytes = 0
        self._missed = 0
        self._woken = asyncio.Event()

    async def next(self, seconds: float) -> tuple[list[Execution], int]:
        """What came since the last call, and how many were lost before these; nothing after so many seconds, or at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()
        found, self._ring, self._bytes = list(self._ring), deque(), 0
        missed, self._missed = self._missed, 0
        return found, missed

    def offer(self, executions: Sequence[Execution]) -> None:
        """What was stored."""
        accepted = [execution for execution in executions if self._wanted.accepts(execution)]
        if not accepted:
            return
        self._ring.extend(accepted)
        self._bytes += sum(len(execution.detail) for execution in accepted)
        # The newest stays, whatever its size: a report is bounded.
        while len(self._ring) > RING_EXECUTIONS or (self._bytes > RING_BYTES and len(self._ring) > 1):
            self._bytes -= len(self._ring.popleft().detail)
            self._missed += 1
        self._woken.set()

    def wake(self) -> None:
        """Ends the wait."""
        self._woken.set()


class Tail:
    """All readers of this control plane."""

    def __init__(self, executions: ExecutionStore) -> None:
        self._executions = executions
        self._readers: set[Reader] = set()
        self._following: asyncio.Task[None] | None = None
        self.closing = False

    @contextlib.asynccontextmanager
    async def reader(self, wanted: Wanted) -> AsyncIterator[Reader]:
        """A reader of what is stored from now on, forgotten at the end."""
        reader = Reader(wanted)
        self._readers.add(reader)
        try:
            if self._executions.shared and self._following is None:
                cursor, _ = await self._executions.news(b"", NEWS_AT_ONCE)
                if self._following is None:
                    self._following = asyncio.create_task(self._follow(cursor), name="executions of other replicas")
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers:
                self._stop_following()

    def publish(self, executions: Sequence[Execution]) -> None:
        """Tells every reader what was stored."""
        for reader in self._readers:
            reader.offer(executions)

    def close(self) -> None:
        """Every reader's wait ends, and it sees `closing`."""
        self.closing = True
        self._stop_following()
        for reader in self._readers:
            reader.wake()

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def _follow(self, cursor: bytes) -> None:
        """Asks what others stored, for as long as anybody wants to know."""
        found: list[Execution] = []
        while True:
            if len(found) < NEWS_AT_ONCE:
                await asyncio.sleep(POLL_SECONDS)
            try:
                cursor, found = await self._executions.news(cursor, NEWS_AT_ONCE)
            except StoreUnavailable as error:
                found = []
                log.warning("executions of other replicas are not told now", error=error.message)
            self.publish(found)
