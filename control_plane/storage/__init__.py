"""What is kept: the Store protocol (base) and its backends."""

from __future__ import annotations

from pathlib import Path

from control_plane.peers import Alone, Peers
from control_plane.storage.base import CannotCopyStore, CannotOpenStore, ExecutionStore, Store

SQLITE_PREFIX = "sqlite:///"
POSTGRES_PREFIXES = ("postgresql://", "postgres://")


# What a store is called while a copy is being made in it.
UNFINISHED_COPY = "unfinished copy of "


async def open_store(url: str, *, beside: bool = False) -> Store:
    """Opens the store that a URL names, as open_any_store; but not the unfinished copy of another.

    `beside`: for a moment, also while a control plane uses it.

    Raises:
        CannotOpenStore: with one line for a person.
    """
    store = await open_any_store(url, beside=beside)
    if store.store_id.startswith(UNFINISHED_COPY):
        await store.close()
        raise CannotOpenStore(f"the store {store.location} is an {store.store_id}: finish it with `pointsman copy-store`")
    return store


async def open_any_store(url: str, *, beside: bool = False) -> Store:
    """Opens the store that a URL names.

    sqlite:///PATH, with an absolute PATH too (sqlite:////var/lib/...), or postgresql://USER@HOST/DATABASE as libpq knows it.

    Raises:
        CannotOpenStore: with one line for a person.
    """
    if url.startswith(POSTGRES_PREFIXES):
        try:
            from control_plane.storage.postgres import PostgresStore
        except ImportError as error:
            raise CannotOpenStore(f"PostgreSQL needs more packages ({error}): pip install 'pointsman[postgres]'") from error
        return await PostgresStore.open(url)
    path = sqlite_path(url)
    from control_plane.storage.sqlite import SqliteStore

    return SqliteStore(path, beside=beside)


def sqlite_path(url: str) -> Path:
    """The file that a URL names.

    Raises:
        CannotOpenStore: it names none.
    """
    if not url.startswith(SQLITE_PREFIX) or url == SQLITE_PREFIX:
        raise CannotOpenStore(f"{url.rpartition('@')[2] or url!r} is not a store; use sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    return Path(url.removeprefix(SQLITE_PREFIX))


def open_executions(url: str, store_id: str) -> ExecutionStore:
    """Where the executions of an open store with this URL are kept. May take a moment: to be called on a thread.

    Raises:
        CannotOpenStore: with one line for a person.
    """
    if url.startswith(POSTGRES_PREFIXES):
        from control_plane.storage.postgres_executions import PostgresExecutions

        return PostgresExecutions(url)
    from control_plane.storage.sqlite_executions import SqliteExecutions

    return SqliteExecutions(sqlite_path(url), store_id)


def open_peers(url: str, store_id: str) -> Peers:
    """The other control planes on the store of an open_store with this URL. They are joined by its start()."""
    if not url.startswith(POSTGRES_PREFIXES):
        return Alone()
    from control_plane.storage.postgres_peers import PostgresPeers

    return PostgresPeers(url, store_id)


__all__ = [
    "CannotCopyStore",
    "CannotOpenStore",
    "ExecutionStore",
    "Store",
    "open_any_store",
    "open_executions",
    "open_peers",
    "open_store",
    "sqlite_path",
]
