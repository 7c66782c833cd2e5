"""What is kept: the Store protocol (base) and its backends."""

from __future__ import annotations

from pathlib import Path

from control_plane.storage.base import CannotOpenStore, Store

SQLITE_PREFIX = "sqlite:///"


async def open_store(url: str) -> Store:
    """Opens the store that a URL names: sqlite:///PATH, with an absolute PATH too (sqlite:////var/lib/...).

    Raises:
        CannotOpenStore: with one line for a person.
    """
    if not url.startswith(SQLITE_PREFIX) or url == SQLITE_PREFIX:
        raise CannotOpenStore(f"{url.partition('@')[2] or url!r} is not a store; use sqlite:///PATH")
    from control_plane.storage.sqlite import SqliteStore

    return SqliteStore(Path(url.removeprefix(SQLITE_PREFIX)))


__all__ = ["CannotOpenStore", "Store", "open_store"]
