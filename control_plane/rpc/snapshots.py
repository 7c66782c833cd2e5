"""Snapshots on their way to gateways: read, checked and serialised once, however many ask for one at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from control_plane.service.releases import Releases
from pointsman.v1 import gateways_pb2 as pb

KIB = 1024
CHUNK_BYTES = 256 * KIB
# Who asks a little later than the others gets the same bytes.
KEPT_SECONDS = 10.0
MAX_KEPT_BYTES = 32 * KIB * KIB
# grpcio copies what it sends: more transfers at once would take more memory, and be no quicker.
MAX_TRANSFERS = 32
# A transfer that takes longer is slow or stuck: it goes on, and does not hold up the next.
SLOW_SECONDS = 1.0


class _Kept(msgspec.Struct):
    messages: asyncio.Task[Sequence[bytes]]
    end: asyncio.TimerHandle


class Snapshots:
    """Streams snapshots by their digests, as serialised FetchSnapshotResponses."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self._turns = asyncio.Semaphore(MAX_TRANSFERS)
        # The one that was used last is the last.
        self._kept: dict[str, _Kept] = {}

    async def stream(self, digest: str) -> AsyncIterator[bytes]:
        """The messages in their order. Raises as Releases.snapshot."""
        messages = await asyncio.shield(self._messages(digest))
        turn = _Turn(self._turns)
        async with turn:
            for message in messages:
                yield message

    def _messages(self, digest: str) -> asyncio.Task[Sequence[bytes]]:
        loop = asyncio.get_running_loop()
        kept = self._kept.pop(digest, None)
        if kept is None:
            task = loop.create_task(self._read(digest))
            task.add_done_callback(lambda _: self._has_read(digest, task))
        else:
            kept.end.cancel()
            task = kept.messages
        self._kept[digest] = _Kept(task, loop.call_later(KEPT_SECONDS, self._kept.pop, digest, None))
        return task

    async def _read(self, digest: str) -> Sequence[bytes]:
        data = await self._releases.snapshot(digest)
        chunks = (data[start : start + CHUNK_BYTES] for start in range(0, max(1, len(data)), CHUNK_BYTES))
        messages = [pb.FetchSnapshotResponse(data=chunk, size_bytes=0 if n else len(data)) for n, chunk in enumerate(chunks)]
        return [message.SerializeToString() for message in messages]

    def _has_read(self, digest: str, task: asyncio.Task[Sequence[bytes]]) -> None:
        """What failed is asked for anew by the next; the oldest go when all are too large."""
        if task.cancelled() or task.exception() is not None:
            self._forget(digest)
        sizes = {known: sum(map(len, kept.messages.result())) for known, kept in self._kept.items() if kept.messages.done()}
        excess = sum(sizes.values()) - MAX_KEPT_BYTES
        for known, size in sizes.items():
            if excess > 0:
                self._forget(known)
                excess -= size

    def _forget(self, digest: str) -> None:
        kept = self._kept.pop(digest, None)
        if kept is not None:
            kept.end.cancel()


class _Turn:
    """The turn of one transfer, over after SLOW_SECONDS at the latest."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._turns.acquire()
        self._timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._over)

    async def __aexit__(self, *_: object) -> None:
        self._over()

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._turns.release()
