"""Starts what is done to stores themselves: `pointsman backup` and `pointsman copy-store` run this."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
import structlog

from control_plane.config import Settings
from control_plane.service.calls import utc_now
from control_plane.service.tokens import bootstrap
from control_plane.storage import POSTGRES_PREFIXES, CannotCopyStore, CannotOpenStore, open_store, sqlite_path
from control_plane.storage.copying import copy_store
from pointsman.errors import StoreUnavailable
from pointsman.settings import describe
from pointsman.tokens import token_id_of

REFUSED = 1
MIB = 1024 * 1024
_STORE = next(found for found in describe(Settings) if found.flag == "--store")

output_option = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print. [text]")


@click.group()
def main() -> None:
    """What is done to stores themselves, without a control plane."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(_STORE.flag, envvar=_STORE.variable, default=_STORE.default, show_default=True, show_envvar=True, help="sqlite:///PATH")
@output_option
def backup(path: Path, store: str, output: str) -> None:
    """Copy a SQLite store to PATH, as it is at one moment, while a control plane uses it.

    Example: pointsman backup --store sqlite:////var/lib/pointsman/pointsman.db /backups/monday.db
    """
    if store.startswith(POSTGRES_PREFIXES):
        refuse("backup is for SQLite; PostgreSQL has a tool of its own: pg_dump --format=custom --file=PATH --dbname=URL")
    from control_plane.storage.sqlite_backup import back_up

    try:
        made = back_up(sqlite_path(store), path)
    except (CannotOpenStore, CannotCopyStore) as error:
        refuse(str(error))
    releases = f"{made.releases} release{'' if made.releases == 1 else 's'}"
    text = f"{path}: revision {made.revision}, {releases}, {made.size_bytes / MIB:.1f} MiB; whole and checked"
    tell(output, {"path": str(path), **msgspec.to_builtins(made)}, text)


@main.command("copy-store")
@click.option("--from", "source", required=True, metavar="URL", help="The store to copy; stop its control planes first.")
@click.option("--to", "target", required=True, metavar="URL", help="A new store, or one that an earlier call began to fill.")
@output_option
def copy(source: str, target: str, output: str) -> None:
    """Move an installation to another store: all of it, under the same identity and revision, so that gateways go on.

    Example: pointsman copy-store --from sqlite:///pointsman.db --to postgresql://pointsman@db/pointsman
    """
    try:
        made = asyncio.run(copy_store(source, target))
    except (CannotOpenStore, CannotCopyStore) as error:
        refuse(str(error))
    except StoreUnavailable as error:
        refuse(f"{error.message} Call copy-store again: it goes on from there.")
    rows = "\n".join(f"{table}: {count.rows} ({count.copied} copied now)" for table, count in made.tables.items())
    text = f"{rows}\nstore {made.store_id}, revision {made.revision}: everything is there, every digest is right"
    tell(output, msgspec.to_builtins(made), text)


@main.group()
def token() -> None:
    """Tokens, on the store's machine."""


@token.command("bootstrap")
@click.option(_STORE.flag, envvar=_STORE.variable, default=_STORE.default, show_default=True, show_envvar=True, help="URL of the store")
@click.option("--force", is_flag=True, help="Make one more although there are tokens: when the last admin token is lost.")
@output_option
def bootstrap_token(store: str, output: str, *, force: bool) -> None:
    """Make the first admin token and print its secret, once. From then on every call needs a token.

    Example: pointsman token bootstrap --store sqlite:////var/lib/pointsman/pointsman.db
    """

    async def work() -> str | None:
        opened = await open_store(store, beside=True)
        try:
            return await bootstrap(opened, utc_now(), force=force)
        finally:
            await opened.close()

    try:
        secret = asyncio.run(work())
    except CannotOpenStore as error:
        refuse(str(error))
    except StoreUnavailable as error:
        refuse(error.message)
    if secret is None:
        refuse("there are tokens already; an admin makes others with `pointsman token create`, or --force makes one more admin token")
    tell(output, {"token_id": token_id_of(secret), "role": "ADMIN", "secret": secret}, secret)


def tell(output: str, found: dict[str, Any], text: str) -> None:
    """Prints what was done."""
    click.echo(json.dumps(found, indent=2) if output == "json" else text)


def refuse(why: str) -> NoReturn:
    """One line on stderr."""
    click.echo(f"pointsman: {why}", err=True)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main(prog_name="pointsman")
