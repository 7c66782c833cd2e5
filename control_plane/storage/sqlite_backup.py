"""A copy of a SQLite store of one moment, made while a control plane writes to it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from control_plane.storage.base import CannotCopyStore
from control_plane.storage.sqlite_file import APPLICATION_ID, cause_of, connect, sqlite3

MAX_NAMED_FAULTS = 3


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy holds: the store's newest revision at that moment, how many releases, and how large it is."""

    revision: int
    releases: int
    size_bytes: int


def back_up(store: Path, path: Path) -> Backup:
    """Copies the store to a path where nothing is yet; nobody waits for it, and nothing is there before it is whole and checked.

    Raises:
        CannotCopyStore: the path is taken or cannot be written, there is no such store, or it is damaged.
    """
    if os.path.lexists(path):
        raise CannotCopyStore(f"{path} is there already, and a backup never writes over anything; choose another path")
    if not store.is_file():
        raise CannotCopyStore(f"there is no store {store} to back up")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise CannotCopyStore(f"cannot write {path}: {error.strerror}; its folder must exist and be writable") from error
    os.close(descriptor)
    part = Path(name)
    try:
        _copy(store, part)
        found = _checked(part, store)
        # Atomic, and unlike a rename it refuses what came to be there meanwhile.
        os.link(part, path)
        _sync(path.parent)
    except sqlite3.Error as error:
        if cause_of(error).startswith("SQLITE_CORRUPT"):
            raise _damaged(store, [str(error)]) from error
        raise CannotCopyStore(f"cannot back up {store} to {path}: {error}") from error
    except OSError as error:
        raise CannotCopyStore(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink()
    return found


def _copy(store: Path, part: Path) -> None:
    """In one step, and so of one moment: in WAL mode whoever reads holds no writer up."""
    with (
        contextlib.closing(connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)) as source,
        contextlib.closing(connect(str(part))) as target,
    ):
        if source.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise CannotCopyStore(f"{store} is not a Pointsman store; name one with --store sqlite:///PATH")
        source.backup(target)
        # One file, without a log beside it.
        target.execute("PRAGMA journal_mode = DELETE")
    _sync(part)


def _checked(part: Path, store: Path) -> Backup:
    with contextlib.closing(connect(f"{part.absolute().as_uri()}?mode=ro", uri=True)) as copy:
        faults = [str(row[0]) for row in copy.execute(f"PRAGMA integrity_check({MAX_NAMED_FAULTS})") if row[0] != "ok"]
        faults += [f"{row[0]} refers to a row of {row[2]} that is not there" for row in copy.execute("PRAGMA foreign_key_check")]
        if faults:
            raise _damaged(store, faults)
        return Backup(
            revision=_number(copy, "SELECT revision FROM counter"),
            releases=_number(copy, "SELECT count(*) FROM releases"),
            size_bytes=part.stat().st_size,
        )


def _damaged(store: Path, faults: Sequence[str]) -> CannotCopyStore:
    named = "; ".join(" ".join(fault.split()) for fault in faults[:MAX_NAMED_FAULTS])
    return CannotCopyStore(f"the store {store} is damaged, and no backup of it was made: {named}")


def _number(connection: Any, sql: str) -> int:
    return int(connection.execute(sql).fetchone()[0])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
