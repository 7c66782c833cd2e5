"""Turns digests into compiled releases: from the state directory or from the control plane, each once, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from data_plane.holder import Holder
from data_plane.loaded import LoadedRelease, compile_release
from data_plane.secrets import Secrets

MAX_CONCURRENT_LOADS = 8

Fetch = Callable[[str], Awaitable[bytes]]
"""digest -> verified bytes, however long it takes. Raises ReleaseUnusableError when they are not to be had."""

log = structlog.get_logger()


class Blobs(Protocol):
    """Where snapshots are kept between two lives of the process."""

    async def read_blob(self, digest: str) -> bytes | None:
        """The snapshot, if it is there and whole."""

    async def write_blob(self, digest: str, data: bytes) -> None:
        """Keeps a verified snapshot. Raises OSError."""


class Compiler:
    """Compiles on one worker thread: more of them would only take turns, and take more turns from the event loop."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._thread = ThreadPoolExecutor(1, "compile")

    async def compile(self, digest: str, snapshot: bytes) -> LoadedRelease:
        """Verifies and compiles. Raises ReleaseUnusableError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, compile_release, digest, snapshot, self._secrets)

    def close(self) -> None:
        """Takes no more work; does not wait for what runs."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Loader:
    """Loads releases into the holder, for one connection to a control plane."""

    def __init__(self, holder: Holder, compiler: Compiler, fetch: Fetch, blobs: Blobs | None) -> None:
        self._holder = holder
        self._compiler = compiler
        self._fetch = fetch
        self._blobs = blobs
        self._tasks: dict[str, asyncio.Task[LoadedRelease]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_LOADS)

    async def get(self, digest: str) -> LoadedRelease:
        """The compiled release, which the holder then holds; loaded once, however many ask at the same time.

        A caller that is cancelled leaves the loading to the others; keep_only and close end it.

        Raises:
            ReleaseUnusableError: this gateway cannot run it.
        """
        found = self._holder.held.get(digest)
        if found is not None:
            return found
        task = self._tasks.get(digest)
        if task is None:
            task = self._tasks[digest] = asyncio.create_task(self._load(digest), name=f"load {digest}")
            self._holder.loading.add(digest)
            task.add_done_callback(lambda done: self._done(digest, done))
        return await asyncio.shield(task)

    def keep_only(self, digests: Collection[str]) -> None:
        """Gives up loading everything else."""
        for digest in self._tasks.keys() - digests:
            # Out of the way at once: whoever asks for it again gets a task that is not dying.
            self._tasks.pop(digest).cancel()

    async def close(self) -> None:
        """Gives up loading."""
        tasks = list(self._tasks.values())
        self.keep_only(())
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, digest: str, task: asyncio.Task[LoadedRelease]) -> None:
        if self._tasks.get(digest) is task:
            del self._tasks[digest]
        if digest not in self._tasks:
            self._holder.loading.discard(digest)
        if not task.cancelled():
            # Whoever still waits gets it; when nobody does any more, it is of no account.
            task.exception()

    async def _load(self, digest: str) -> LoadedRelease:
        """On disk before anyone is told that it is ready, so that what is prepared survives a restart."""
        async with self._slots:
            kept = await self._blobs.read_blob(digest) if self._blobs else None
            data = await self._fetch(digest) if kept is None else kept
            loaded = await self._compiler.compile(digest, data)
            if self._blobs and kept is None:
                try:
                    await self._blobs.write_blob(digest, data)
                except OSError as error:
                    log.warning("a release cannot be kept on disk; a restart would fetch it again", digest=digest, problem=str(error))
            self._holder.keep(loaded)
            return loaded
