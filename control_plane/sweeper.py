"""Lets old executions go, in slices between which whoever reports has its turn."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import structlog

from control_plane.service.calls import Clock
from control_plane.storage.base import ExecutionStore
from control_plane.storage.sql import to_micros
from pointsman.errors import StoreUnavailable

SWEEP_SECONDS = 60.0
SLICE_ROWS = 1_000
# After each slice, as a multiple of what it took: at most a third of the writing thread's time goes into sweeping.
PAUSE_SHARE = 2

log = structlog.get_logger()


class Sweeper:
    """Keeps executions for so many days, and so many of an environment."""

    def __init__(self, executions: ExecutionStore, clock: Clock, *, keep_days: int, keep_rows: int) -> None:
        self._executions = executions
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._keep_rows = keep_rows

    async def run(self) -> None:
        """Sweeps every minute until cancelled."""
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("old executions cannot be swept away now", error=error.message)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> int:
        """Until nothing is left that may go; returns how many went. Raises StoreUnavailable."""
        total = 0
        while True:
            began = time.monotonic()
            keep_since = to_micros(self._clock() - self._keep)
            gone = await self._executions.sweep(keep_since=keep_since, keep_rows=self._keep_rows, limit=SLICE_ROWS)
            total += gone
            if not gone:
                break
            await asyncio.sleep((time.monotonic() - began) * PAUSE_SHARE)
        if total:
            log.info("old executions were swept away", executions=total)
        return total
