"""The file of a SQLite store: opened, checked, locked for one control plane, and what SQLite's errors say about it."""

from __future__ import annotations

import fcntl
import sqlite3 as standard_sqlite3
from pathlib import Path
from typing import Any

import structlog
from sqlite_utils import Database

from control_plane.storage.base import CannotOpenStore
from control_plane.storage.migrations import steps

try:
    import pysqlite3 as sqlite3
except ImportError:
    sqlite3 = standard_sqlite3

# "PMAN": tells our files from other SQLite files.
APPLICATION_ID = 0x504D414E
BUSY_TIMEOUT_MS = 5000
# Earlier ones can corrupt a WAL file when a write and a checkpoint meet (fixed in 3.51.3).
FIRST_SOUND_SQLITE = (3, 51, 3)

# What says that the file cannot be read or written now. Anything else that SQLite says is about the statement that it was given.
UNAVAILABLE = {
    "PERM", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT", "IOERR", "CORRUPT", "FULL", "CANTOPEN", "PROTOCOL", "NOLFS", "NOTADB",
}  # fmt: skip

__all__ = ["cause_of", "connect", "lock", "open_file", "remedy", "sqlite3"]

log = structlog.get_logger()


def cause_of(error: BaseException) -> str:
    """SQLITE_FULL and the like when the error says that the file cannot be used; empty when it is about a statement."""
    name = str(getattr(error, "sqlite_errorname", "")) if isinstance(error, sqlite3.Error) else ""
    return name if name.removeprefix("SQLITE_").partition("_")[0] in UNAVAILABLE else ""


def lock(path: Path, *, beside: bool = False) -> Any:
    """A SQLite store belongs to one control plane at a time: as long as the file that this returns is open.

    `beside`: who has it may go on; then this returns None.

    Raises:
        CannotOpenStore: it is in use, or its folder cannot be written.
    """
    if path.is_dir():
        raise CannotOpenStore(f"cannot open the store {path}: it is a folder; name a file in it")
    lock_path = path.with_name(path.name + ".lock")
    try:
        file = lock_path.open("w")
    except OSError as error:
        raise CannotOpenStore(f"cannot open the store {path}: {error.strerror}; its folder must exist and be writable") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if beside:
            return None
        raise CannotOpenStore(
            f"the store {path} is in use by another control plane; stop that one, or use PostgreSQL for several"
        ) from error
    return file


def connect(name: str, *, uri: bool = False) -> Any:
    """A connection with our settings; statements outside BEGIN and COMMIT commit by themselves."""
    connection = sqlite3.connect(name, uri=uri, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cell_size_check = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def open_file(path: Path, *, bring_up_to_date: bool = True) -> Any:
    """The connection that writes; the schema is brought up to date.

    Raises:
        CannotOpenStore: when it cannot be opened, is not ours, is newer than this program, or is older and shall stay as it is.
    """
    if sqlite3.sqlite_version_info < FIRST_SOUND_SQLITE:
        log.warning("this SQLite can corrupt a store in rare cases; use 3.51.3 or newer", version=sqlite3.sqlite_version)
    connection = None
    try:
        connection = connect(str(path))
        _check_ours(connection, path)
        if not bring_up_to_date:
            _check_up_to_date(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        steps.apply(Database(connection, execute_plugins=False))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise CannotOpenStore(f"cannot open the store {path}: {error}{remedy(error)}") from error
        raise
    return connection


def remedy(error: Any) -> str:
    """What to do about it, to be put after the message."""
    code = str(getattr(error, "sqlite_errorname", ""))
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return "; the file and its folder must be writable"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "; it is damaged or no SQLite file: restore a backup, or choose another path"
    if code.startswith("SQLITE_FULL"):
        return "; make room and start again"
    return ""


def _check_up_to_date(connection: Any, path: Path) -> None:
    if steps.pending(Database(connection, execute_plugins=False)):
        raise CannotOpenStore(f"the control plane that uses the store {path} is older than this program; start a newer one first")


def _check_ours(connection: Any, path: Path) -> None:
    """Nothing is written to a file before it is known to be new, or ours and not newer than this program."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and tables:
        raise CannotOpenStore(f"{path} is a SQLite file of another program, not a Pointsman store; choose another path")
    if application_id == APPLICATION_ID:
        known = {step.name for step in steps._migrations}  # noqa: SLF001 -- there is no public way to list them
        unknown = [step.name for step in steps.applied(Database(connection, execute_plugins=False)) if step.name not in known]
        if unknown:
            raise CannotOpenStore(
                f"the store {path} was written by a newer Pointsman (it has the step {unknown[-1]!r}); use that version or a newer one"
            )
