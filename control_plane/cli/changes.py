"""How the difference between two releases is told: a line for each change, coloured on a terminal, those that break callers marked."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from pointsman.v1 import releases_pb2 as pb

MAX_BESIDE_CHARS = 60
SIGNS = {
    pb.DiffReleasesResponse.Change.ADDED: ("+", "green"),
    pb.DiffReleasesResponse.Change.REMOVED: ("-", "red"),
    pb.DiffReleasesResponse.Change.CHANGED: ("~", "yellow"),
}


def tell_changes(changes: Iterable[pb.DiffReleasesResponse.Change]) -> None:
    """E.g. `~ endpoints[chat].timeout: "10s" -> "5s"`; long values stand one under the other, where they can be compared."""
    for change in changes:
        sign, colour = SIGNS[change.kind]
        old, new = (_value(change, field) for field in ("old_value", "new_value"))
        both = f"{old} -> {new}" if old and new else old or new
        apart = old and new and len(both) > MAX_BESIDE_CHARS
        breaking = click.style(f"  BREAKING: {change.breaking_reason}", fg="red", bold=True) if change.breaking else ""
        click.echo(click.style(f"{sign} {change.path}:" + ("" if apart else f" {both}"), fg=colour) + breaking)
        if apart:
            click.secho(f"    - {old}", fg="red")
            click.secho(f"    + {new}", fg="green")


def _value(change: pb.DiffReleasesResponse.Change, field: str) -> str:
    from pointsman.plain import plain

    values = plain(change)
    return json.dumps(values[field], ensure_ascii=False) if field in values else ""
