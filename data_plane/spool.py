"""Batches of executions that were not delivered yet, oldest first: in memory, and in a folder too, so that they survive the process.

A batch is the message that will be sent, serialised; this module only keeps it. What was not delivered when keep() is called gets a file,
`<number>-<how many>.executions`: a CRC-32, then the bytes, written once and unlinked when it was delivered. They are not synced: what a
killed process has written is there, what a power cut takes is the last half minute. When there is no more room the oldest batch goes, and
is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

MIB = 1024 * 1024
MAX_MEMORY_BYTES = 16 * MIB
CHECKSUM_BYTES = 4
JOIN_BYTES = 128 * 1024
JOIN_RECORDS = 1000
_NAME = re.compile(r"[0-9]{16}-[0-9]{1,9}\.executions")

log = structlog.get_logger()


class Batch(msgspec.Struct, eq=False):
    """Some executions that are delivered together. `data` is None while they are only on disk; sizes are bytes."""

    count: int
    size: int
    data: bytes | None
    path: Path | None = None
    on_its_way: bool = False
    """It is being delivered, and is not given up meanwhile: it would be both delivered and counted as lost."""
    unwritable: bool = False
    """The disk did not take it; it is not asked again and again."""


class Spool:
    """For one event loop. `max_bytes` is what may wait on disk, or in memory without a folder."""

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        """Takes over what a process before this one has left. Raises OSError when the folder cannot be used."""
        self.dropped = 0
        """How many had to be given up."""
        self._folder = folder
        self._max_bytes = max_bytes if folder is not None else min(max_bytes, MAX_MEMORY_BYTES)
        self._batches: deque[Batch] = deque()
        self._bytes = 0
        self._memory_bytes = 0
        self._there = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._numbers = itertools.count()
        self._problem = ""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_over(folder)

    @property
    def depth(self) -> int:
        """How many wait."""
        return sum(batch.count for batch in self._batches)

    @property
    def is_kept(self) -> bool:
        """Whether what waits survives the process."""
        return self._folder is not None

    @property
    def size_bytes(self) -> int:
        """Of what waits."""
        return self._bytes

    def append(self, count: int, data: bytes) -> None:
        """Takes a batch of so many executions, into memory, and makes room for it."""
        newest = self._batches[-1] if self._batches else None
        if newest is not None and newest.path is None and self._joins(newest, count, len(data)):
            self._forget(newest)
            count, data = newest.count + count, (newest.data or b"") + data
        self._add(Batch(count, len(data), data))

    async def keep(self) -> None:
        """Writes down what is in memory alone: a process that is killed afterwards loses none of it."""
        if self._folder is None:
            return
        for batch in [batch for batch in self._batches if batch.path is None and not batch.unwritable]:
            if batch in self._batches:
                await self._keep(batch, self._folder)

    async def _keep(self, batch: Batch, folder: Path) -> None:
        """Together with the one before it when both are small: else an outage of a day would leave a file for each moment of it."""
        before = self._batches[self._batches.index(batch) - 1]
        parts = [batch]
        if before is not batch and before.path is not None and not batch.on_its_way and self._joins(before, batch.count, batch.size):
            parts = [before, batch]
        # Messages that follow each other are one message.
        whole = Batch(sum(part.count for part in parts), sum(part.size for part in parts), b"".join(part.data or b"" for part in parts))
        path = folder / f"{next(self._numbers):016}-{whole.count}.executions"
        written = await asyncio.to_thread(self._write, path, whole.data or b"")
        batch.unwritable = not written
        if not written:
            return
        if parts == [batch] and batch in self._batches:
            batch.path = path
            self._shed(batch)
        elif all(part in self._batches and not part.on_its_way for part in parts):
            whole.path = path
            self._batches.insert(self._batches.index(batch), whole)
            self._bytes += whole.size
            self._memory_bytes += whole.size
            for part in parts:
                self._forget(part)
            if before.path is not None:
                await asyncio.to_thread(before.path.unlink, missing_ok=True)
        else:
            # Meanwhile one was delivered, is being delivered, or had to make room.
            path.unlink(missing_ok=True)

    async def wait(self) -> None:
        """Until there is something to deliver."""
        await self._there.wait()

    @contextlib.contextmanager
    def oldest(self) -> Iterator[Batch]:
        """The batch to deliver now; there is one. It stays until done() is called."""
        batch = self._batches[0]
        batch.on_its_way = True
        try:
            yield batch
        finally:
            batch.on_its_way = False

    async def read(self, batch: Batch) -> bytes:
        """Its bytes; none, counted as dropped, when the disk has damaged or lost them."""
        if batch.data is not None:
            return batch.data
        assert batch.path is not None, "what is not in memory is on disk"
        data = await asyncio.to_thread(_read, batch.path)
        if not data:
            self.dropped += batch.count
        return data

    async def done(self, batch: Batch) -> None:
        """It was delivered, or cannot be."""
        self._forget(batch)
        self._tell()
        if batch.path is not None:
            await asyncio.to_thread(batch.path.unlink, missing_ok=True)

    async def drained(self) -> None:
        """Waits until nothing waits."""
        await self._idle.wait()

    def _add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._bytes += batch.size
        self._memory_bytes += batch.size
        self._shed(batch)
        self._make_room()
        self._tell()

    def _shed(self, batch: Batch) -> None:
        """Leaves to the disk what memory has no room for."""
        if batch.path is not None and batch.data is not None and self._memory_bytes > MAX_MEMORY_BYTES:
            batch.data = None
            self._memory_bytes -= batch.size

    def _forget(self, batch: Batch) -> None:
        self._batches.remove(batch)
        self._bytes -= batch.size
        if batch.data is not None:
            self._memory_bytes -= batch.size

    def _joins(self, batch: Batch, count: int, size: int) -> bool:
        """Whether the batch has room for so much more. The oldest is left alone: it is the next one to be delivered."""
        fits = batch.size + size <= JOIN_BYTES and batch.count + count <= JOIN_RECORDS
        return fits and batch.data is not None and not batch.on_its_way and batch is not self._batches[0]

    def _tell(self) -> None:
        if self._batches:
            self._there.set()
            self._idle.clear()
        else:
            self._there.clear()
            self._idle.set()

    def _make_room(self) -> None:
        given_up = 0
        while self._bytes > self._max_bytes and len(self._batches) > 1:
            batch = next(batch for batch in self._batches if not batch.on_its_way)
            self._forget(batch)
            given_up += batch.count
            if batch.path is not None:
                batch.path.unlink(missing_ok=True)
        if given_up:
            self.dropped += given_up
            log.error("executions were given up: the control plane does not take them, and there is no more room", count=given_up)

    def _write(self, path: Path, data: bytes) -> bool:
        """False when it could not be written: then memory has to do."""
        try:
            path.write_bytes(zlib.crc32(data).to_bytes(CHECKSUM_BYTES) + data)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._say(f"{error.strerror}: {path.parent}")
            return False
        self._say("")
        return True

    def _say(self, problem: str) -> None:
        """One line for each problem, not one for each batch."""
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.error("executions cannot be written to disk; they are kept in memory", problem=problem)

    def _take_over(self, folder: Path) -> None:
        paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        last = -1
        for path in paths:
            number, _, count = path.stem.partition("-")
            last, size = int(number), max(0, path.stat().st_size - CHECKSUM_BYTES)
            self._batches.append(Batch(int(count), size, None, path))
            self._bytes += size
        self._numbers = itertools.count(last + 1)
        if paths:
            log.info("executions of an earlier run are still to be delivered", count=self.depth)
        self._make_room()
        self._tell()


def _read(path: Path) -> bytes:
    """What was written there, or nothing: a process that was killed may have written half of it."""
    try:
        found = path.read_bytes()
    except OSError as error:
        log.warning("executions cannot be read back", path=str(path), problem=error.strerror)
        return b""
    data = found[CHECKSUM_BYTES:]
    if zlib.crc32(data).to_bytes(CHECKSUM_BYTES) != found[:CHECKSUM_BYTES]:
        log.error("executions on disk are damaged and given up", path=str(path))
        return b""
    return data
