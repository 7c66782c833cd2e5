"""When the control plane was last heard, kept beside the table: a start from disk goes on from there, not from fresh."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog

from data_plane.disk import BESIDE, OLD_TABLE, TABLE
from data_plane.saved import UnusableTableError, seal, unseal

HEARD = "heard.json"
# How exact the time on disk is.
WRITE_EVERY_SECONDS = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger()


class Moment(msgspec.Struct, frozen=True):
    """By the clock on the wall, and by how long the machine has been up: no change of the clock moves that one.

    `boot_id` is empty where the machine does not tell it; the uptime then means nothing.
    """

    wall: float
    boot_id: str = ""
    uptime: float = 0.0

    def seconds_until(self, later: Moment) -> float:
        """Never negative, even if the clock was set back while the machine was down."""
        if self.boot_id and self.boot_id == later.boot_id and self.uptime <= later.uptime:
            return later.uptime - self.uptime
        return max(0.0, later.wall - self.wall)


@functools.cache
def _boot_id() -> str:
    """Empty where there is none, or no clock that counts from it: not Linux."""
    try:
        return _BOOT_ID.read_text().strip() if hasattr(time, "CLOCK_BOOTTIME") else ""
    except OSError:
        return ""


def this_moment() -> Moment:
    """Now."""
    boot_id = _boot_id()
    return Moment(time.time(), boot_id, time.clock_gettime(time.CLOCK_BOOTTIME) if boot_id else 0.0)


class HeardFile:
    """The file in a state directory. Whole at any time, but not worth a sync: after a power failure an older time is the safer one."""

    def __init__(self, folder: Path, now: Callable[[], Moment] = this_moment) -> None:
        self._folder = folder
        self._path = folder / HEARD
        self._now = now
        self._moment = now()
        self._heard = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "heard")

    def heard(self) -> None:
        """The control plane has said something; when that was is written soon."""
        self._moment = self._now()
        self._heard.set()

    async def keep(self) -> None:
        """Writes when the control plane was last heard, until cancelled; then once more if there is need."""
        try:
            while True:
                await self._heard.wait()
                await self._save()
                await asyncio.sleep(WRITE_EVERY_SECONDS)
        finally:
            if self._heard.is_set():
                await self._save()

    async def seconds_ago(self) -> float:
        """When the process before this one last heard of the control plane; if that is lost, when its table was written last."""
        return await asyncio.to_thread(self._seconds_ago)

    async def _save(self) -> None:
        self._heard.clear()
        try:
            # What has been asked for is done, also when the caller is cancelled.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._write, self._moment))
        except OSError as error:
            log.warning("cannot keep when the control plane was heard; a restart would take the state for older", problem=str(error))

    def _write(self, moment: Moment) -> None:
        beside = self._path.with_name(HEARD + BESIDE)
        beside.write_bytes(seal(msgspec.json.encode(moment)))
        beside.replace(self._path)

    def _seconds_ago(self) -> float:
        now = self._now()
        try:
            return msgspec.json.decode(unseal(self._path.read_bytes()), type=Moment).seconds_until(now)
        except (OSError, UnusableTableError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("it is not known when the control plane was last heard; the last change counts", problem=str(error))
        tables = [path for name in (TABLE, OLD_TABLE) if (path := self._folder / name).exists()]
        return Moment(max((path.stat().st_mtime for path in tables), default=now.wall)).seconds_until(now)
