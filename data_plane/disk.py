"""The last good state on disk, so that a gateway starts and serves without its control plane.

`--state-dir` holds snapshots by digest (`blobs/<hex>`) and the table of bindings in two generations (`table.json`, `table.old.json`).
Everything is written beside, synced, and renamed. Nothing is trusted when read: a table whose sum is wrong gives way to the older
one, a blob that does not hash to its name is as good as missing. All work is done by one thread, in its order, beside the event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import structlog

from data_plane.holder import Holder
from data_plane.loaded import LoadedRelease, ReleaseUnusableError
from data_plane.loading import Compiler
from data_plane.saved import SavedBinding, SavedRelease, SavedTable, UnusableTableError, decode, encode, restored, to_save
from data_plane.table import Active
from pointsman.serving import StartupError

TABLE, OLD_TABLE, BLOBS, LOCK = "table.json", "table.old.json", "blobs", "lock"
BESIDE = ".tmp"
RETRY_SECONDS = 5.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
T = TypeVar("T")

log = structlog.get_logger()


class Disk:
    """One gateway's state directory. Asks for the bindings of `apps` and `environments` only, when there are any."""

    def __init__(
        self, folder: Path, clock: Callable[[], datetime], *, apps: tuple[str, ...] = (), environments: tuple[str, ...] = ()
    ) -> None:
        """Makes the folder and locks it.

        Raises:
            StartupError: when it cannot be used, or another gateway uses it.
        """
        self._folder = folder
        self._clock = clock
        self._apps, self._environments = apps, environments
        self._lock = _locked(folder)
        self._thread = ThreadPoolExecutor(1, "disk")
        self._dirty = asyncio.Event()
        # What the two tables on disk refer to, the newer first; None where there is none, or a damaged one.
        self._generations: list[set[str] | None] = [None, None]
        self._stood_by: list[tuple[SavedBinding, SavedRelease]] = []

    async def close(self) -> None:
        """Lets go of the folder once everything asked for before is done."""
        await asyncio.to_thread(self._thread.shutdown)
        self._lock.close()

    async def read_blob(self, digest: str) -> bytes | None:
        """The snapshot, if it is there and whole."""
        return await self._do(partial(self._read_blob, digest))

    async def write_blob(self, digest: str, data: bytes) -> None:
        """Keeps a verified snapshot. Raises OSError."""
        await self._do(partial(_write, self._blob(digest), data))

    async def load(self, holder: Holder, compiler: Compiler) -> None:
        """Gives the holder what was kept, as far as it is good. Never fails: damage costs what is damaged, and is logged."""
        try:
            saved = await self._do(self._read_tables)
            if saved is None:
                return
            saved = saved.only(self._apps, self._environments)
            loaded, problems = await self._compile(dict.fromkeys(d.digest for b in saved.bindings for d in b.serve()), compiler)
            holder.restore(restored(saved, loaded, problems, self._clock()))
        except Exception:
            # Starting with nothing is better than not starting: the control plane has it all.
            log.exception("the state directory could not be used", folder=str(self._folder))
            return
        self._stood_by = [(binding, known) for binding in saved.bindings for known in binding.standby]
        for rejected in holder.table.rejected.values():
            log.error("a saved release cannot be served", reason=rejected.reason)
        log.info("started from the state directory", revision=saved.revision, bindings=len(saved.bindings), folder=str(self._folder))

    async def warm(self, holder: Holder, compiler: Compiler) -> None:
        """Compiles what stood by before the start, so that a rollback to it is a message again. Done while serving."""
        for binding, known in self._stood_by:
            loaded = holder.held.get(known.digest) or (await self._compile([known.digest], compiler))[0].get(known.digest)
            if loaded is not None:
                holder.add_standby(Active(bound=binding.bound(known), loaded=loaded, load_time=self._clock()))
        self._stood_by = []

    def changed(self) -> None:
        """The holder's table has changed; it is written soon, the newest only."""
        self._dirty.set()

    async def keep(self, holder: Holder) -> None:
        """Writes the table whenever it has changed, until cancelled; then writes what is not written yet."""
        try:
            while True:
                await self._dirty.wait()
                # No pause after a good one: who kills both planes right after a deploy expects it to be here.
                if not await self._save(holder):
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            if self._dirty.is_set():
                await self._save(holder)

    async def _save(self, holder: Holder) -> bool:
        """False when the disk refused; then it is to be tried again."""
        self._dirty.clear()
        try:
            await self._do(partial(self._write_table, to_save(holder.table, self._apps, self._environments)))
            # Whoever asks for a blob from here on comes after this in the thread's order, and so do the blobs of what is loading now.
            await self._do(partial(self._remove_unused, {*holder.held, *holder.loading}))
        except OSError as error:
            self._dirty.set()
            log.warning(
                "the state cannot be kept on disk; a restart would begin from an older one", folder=str(self._folder), problem=str(error)
            )
            return False
        return True

    async def _compile(self, digests: Iterable[str], compiler: Compiler) -> tuple[dict[str, LoadedRelease], dict[str, str]]:
        """What could be compiled from disk, by digest, and why the others could not."""
        loaded: dict[str, LoadedRelease] = {}
        problems: dict[str, str] = {}
        for digest in digests:
            data = await self.read_blob(digest)
            if data is None:
                problems[digest] = "its copy on disk is missing or damaged"
                continue
            try:
                loaded[digest] = await compiler.compile(digest, data)
            except ReleaseUnusableError as error:
                problems[digest] = str(error)
        return loaded, problems

    async def _do(self, work: Callable[[], T]) -> T:
        """On the thread. What has been asked for is done, also when the caller is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    # From here on: on the thread.

    def _blob(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest), digest
        return self._folder / BLOBS / digest.removeprefix("sha256:")

    def _read_blob(self, digest: str) -> bytes | None:
        if not _DIGEST.fullmatch(digest):
            return None
        path = self._blob(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("a saved release cannot be read", file=str(path), problem=str(error))
            return None
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            log.warning("a saved release is damaged and is not used", file=str(path))
            return None
        return data

    def _read_tables(self) -> SavedTable | None:
        """The newest good one."""
        found: list[SavedTable | None] = []
        for name in (TABLE, OLD_TABLE):
            path = self._folder / name
            try:
                found.append(decode(path.read_bytes()))
            except FileNotFoundError:
                found.append(None)
            except (OSError, UnusableTableError) as error:
                log.warning("a saved table is not used", file=str(path), problem=str(error))
                found.append(None)
        self._generations = [saved.digests() if saved else None for saved in found]
        return next((saved for saved in found if saved is not None), None)

    def _write_table(self, saved: SavedTable) -> None:
        path = self._folder / TABLE
        beside = _write_beside(path, encode(saved))
        if self._generations[0] is not None:
            # Only a good one becomes the older generation; a damaged one is written over.
            path.replace(self._folder / OLD_TABLE)
            self._generations[1] = self._generations[0]
        beside.replace(path)
        self._generations[0] = saved.digests()
        _sync_folder(self._folder)

    def _remove_unused(self, wanted: set[str]) -> None:
        used = wanted.union(*(digests for digests in self._generations if digests))
        names = {digest.removeprefix("sha256:") for digest in used}
        for path in (self._folder / BLOBS).iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)


def _locked(folder: Path) -> IO[str]:
    try:
        (folder / BLOBS).mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise StartupError(f"cannot use --state-dir {folder}: {error.strerror}; it must be a folder that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StartupError(f"--state-dir {folder} is in use by another gateway; give each its own") from error
    return lock


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the power goes."""
    _write_beside(path, data).replace(path)
    _sync_folder(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    beside = path.with_name(path.name + BESIDE)
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return beside


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
