"""The last good state on disk, so that a gateway starts and serves without its control plane.

`--state-dir` holds snapshots by digest (`blobs/<hex>`) and the table of bindings in two generations (`table.json`, `table.old.json`).
A table is one line with the SHA-256 of the rest, then JSON. Everything is written beside and renamed, and synced before; nothing is
trusted when read: a table whose sum is wrong gives way to the older one, a blob that does not hash to its name is refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from data_plane.holder import Holder
from data_plane.loaded import LoadedRelease, ReleaseUnusableError
from data_plane.table import Active, Bound, Key, Rejected, Table
from pointsman.serving import StartupError

TABLE, OLD_TABLE, BLOBS, LOCK = "table.json", "table.old.json", "blobs", "lock"

log = structlog.get_logger()


class SavedBinding(msgspec.Struct, frozen=True):
    """A binding as it was told, and what was served before it, newest first, as (release, digest, revision)."""

    app: str
    environment: str
    release: str
    digest: str
    revision: int
    served: tuple[tuple[str, str, int], ...] = ()


class SavedTable(msgspec.Struct, frozen=True):
    """The table of bindings as it is on disk."""

    revision: int
    store_id: str
    bindings: tuple[SavedBinding, ...]


class Disk:
    """One gateway's state directory."""

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        """Makes the folder and locks it.

        Raises:
            StartupError: when it cannot be used, or another gateway uses it.
        """
        self._folder = folder
        self._clock = clock
        try:
            (folder / BLOBS).mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("w")
        except OSError as error:
            raise StartupError(f"cannot use --state-dir {folder}: {error.strerror}; it must be a folder that can be written") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StartupError(f"--state-dir {folder} is in use by another gateway; give each its own") from error
        self._dirty = asyncio.Event()

    def close(self) -> None:
        """Lets go of the folder."""
        self._lock.close()

    def read_blob(self, digest: str) -> bytes | None:
        """The snapshot, if it is there and whole."""
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
            path.unlink(missing_ok=True)
            return None
        return data

    def write_blob(self, digest: str, data: bytes) -> None:
        """Keeps a verified snapshot."""
        _write(self._blob(digest), data)

    async def load(self, holder: Holder) -> None:
        """Gives the holder what was kept, as far as it is good. Never fails: damage costs what is damaged, and is logged."""
        saved = await asyncio.to_thread(self._read_table)
        if saved is None:
            return
        loaded: dict[str, LoadedRelease] = {}
        problems: dict[str, str] = {}
        for digest in dict.fromkeys(digest for binding in saved.bindings for digest in _digests(binding)):
            data = await asyncio.to_thread(self.read_blob, digest)
            if data is None:
                problems[digest] = "its copy on disk is missing or damaged"
                continue
            try:
                loaded[digest] = await holder.compiled(digest, data)
            except ReleaseUnusableError as error:
                problems[digest] = str(error)
        holder.restore(_restored(saved, loaded, problems, self._clock()))
        log.info("started from the state directory", revision=saved.revision, bindings=len(saved.bindings), folder=str(self._folder))

    def changed(self) -> None:
        """The holder's table has changed; it is written soon, the newest only."""
        self._dirty.set()

    async def keep(self, holder: Holder) -> None:
        """Writes the table whenever it has changed, until cancelled. A disk that refuses is logged, and tried again at the next change."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await asyncio.to_thread(self._write_table, holder.table, holder.wanted())
            except OSError as error:
                log.warning(
                    "cannot keep the state on disk; a restart would begin from an older one", folder=str(self._folder), problem=str(error)
                )

    def _blob(self, digest: str) -> Path:
        return self._folder / BLOBS / digest.removeprefix("sha256:")

    def _read_table(self) -> SavedTable | None:
        """The newer good one. A damaged one is removed, so that it never takes the place of a good older one."""
        for name in (TABLE, OLD_TABLE):
            path = self._folder / name
            try:
                saved = _parse(path.read_bytes())
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("a saved table cannot be read", file=str(path), problem=str(error))
                continue
            if saved is not None:
                return saved
            log.warning("a saved table is damaged and is not used", file=str(path))
            path.unlink(missing_ok=True)
        return None

    def _write_table(self, table: Table, wanted: set[str]) -> None:
        body = msgspec.json.encode(_saved(table))
        path, old = self._folder / TABLE, self._folder / OLD_TABLE
        if path.exists():
            path.replace(old)
        _write(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        self._remove_unused(wanted)

    def _remove_unused(self, wanted: set[str]) -> None:
        """Blobs that are not wanted now and that neither generation of the table refers to."""
        used = {self._blob(digest).name for digest in wanted}
        for name in (TABLE, OLD_TABLE):
            path = self._folder / name
            saved = _parse(path.read_bytes()) if path.exists() else None
            used.update(self._blob(digest).name for binding in (saved.bindings if saved else ()) for digest in _digests(binding))
        for path in (self._folder / BLOBS).iterdir():
            if path.name not in used and not path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)


def _parse(data: bytes) -> SavedTable | None:
    """The table, None when it is damaged."""
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        return None
    return msgspec.json.decode(body, type=SavedTable)


def _digests(binding: SavedBinding) -> list[str]:
    return [binding.digest, *(digest for _, digest, _ in binding.served)]


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the power goes."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _saved(table: Table) -> SavedTable:
    bindings = []
    told: dict[Key, Bound] = {key: active.bound for key, active in table.active.items()}
    told.update({key: rejected.bound for key, rejected in table.rejected.items()})
    for key, bound in told.items():
        served = [] if key not in table.active or table.active[key].bound == bound else [table.active[key]]
        served += table.standby.get(key, ())
        before = tuple((known.bound.release, known.bound.digest, known.bound.revision) for known in served)
        bindings.append(SavedBinding(bound.app, bound.environment, bound.release, bound.digest, bound.revision, before))
    return SavedTable(table.revision, table.store_id, tuple(bindings))


def _restored(saved: SavedTable, loaded: dict[str, LoadedRelease], problems: dict[str, str], now: datetime) -> Table:
    """A binding whose release is not usable goes on with the newest that was served before it, and is told as rejected."""
    active: dict[Key, Active] = {}
    rejected: dict[Key, Rejected] = {}
    standby: dict[Key, tuple[Active, ...]] = {}
    for binding in saved.bindings:
        key = (binding.app, binding.environment)
        usable = [
            Active(bound=_bound(binding, *known), loaded=loaded[known[1]], load_time=now)
            for known in ((binding.release, binding.digest, binding.revision), *binding.served)
            if known[1] in loaded
        ]
        if usable:
            active[key], *rest = usable
            standby[key] = tuple(rest)
        if binding.digest not in loaded:
            bound = _bound(binding, binding.release, binding.digest, binding.revision)
            rejected[key] = Rejected(bound=bound, reason=f"release {binding.release}: {problems[binding.digest]}")
            log.warning("a saved release is not served", app=binding.app, environment=binding.environment, reason=problems[binding.digest])
    return Table(revision=saved.revision, store_id=saved.store_id, synced=True, active=active, rejected=rejected, standby=standby)


def _bound(binding: SavedBinding, release: str, digest: str, revision: int) -> Bound:
    return Bound(app=binding.app, environment=binding.environment, release=release, digest=digest, revision=revision)
