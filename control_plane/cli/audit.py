"""pointsman audit: who changed what and who was refused, and whether anybody has touched what is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

import click

from control_plane.cli.client import Connection, server_options
from control_plane.cli.moments import MOMENT
from control_plane.cli.names import ENVIRONMENT
from control_plane.cli.output import REFUSED, one_of_many, output_option, print_plain, short, show, when
from control_plane.cli.tables import table
from pointsman.audit import FIRST, entry_hash
from pointsman.v1 import audit_pb2 as pb
from pointsman.v1 import audit_pb2_grpc

PAGE = 500
ANCHOR = "POSITION:HASH"


@click.group("audit")
def command() -> None:
    """Who changed what, and who was refused."""


@command.command("list", short_help="List entries, newest first.")
@click.option("-e", "--environment", type=ENVIRONMENT, default="", help="Only in this one.")
@click.option("--actor", default="", help="Only by this one: a name as it is listed, or a token's id.")
@click.option("--method", default="", help="Only this one, e.g. Deploy.")
@click.option("--outcome", default="", help="OK, REFUSED, or one reason, e.g. PERMISSION_DENIED.")
@click.option("--since", type=MOMENT, metavar="TIME", help="From then on: 2026-01-31T12:00 (UTC, or with +02:00 or Z), or 2h ago.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Before then.")
@click.option("--limit", type=click.IntRange(1, PAGE), default=50, show_default=True, help="How many of the newest.")
@server_options()
@output_option
def list_(
    environment: str,
    actor: str,
    method: str,
    outcome: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    server: str | None,
    app: str | None,
    output: str,
) -> None:
    """List entries, newest first; with -o json also from which address, and the revisions before and after.

    Example: pointsman audit list --outcome REFUSED
    """
    connection = Connection("server", server)
    request = pb.ListAuditEntriesRequest(
        app=app or "", environment=environment, actor=actor, method=method, outcome=outcome, page_size=limit
    )
    for field, moment in (("since_time", since), ("until_time", until)):
        if moment is not None:
            getattr(request, field).FromDatetime(moment)
    response = connection.call(audit_pb2_grpc.AuditServiceStub(connection.channel).ListAuditEntries, request)
    rows = [
        (
            str(entry.position),
            when(entry.entry_time),
            entry.actor or "-",
            entry.method,
            "/".join(part for part in (entry.app, entry.environment) if part) or "-",
            entry.outcome + (f" x{entry.count}" if entry.count > 1 else ""),
            short(entry.reason or entry.message or entry.detail),
        )
        for entry in response.entries
    ]
    headings = ("ENTRY", "WHEN (UTC)", "BY", "METHOD", "WHERE", "OUTCOME", "WHY")
    show(response, output, lambda: table(headings, rows, "Nothing is recorded that passes."))


@command.command(short_help="Print all entries, oldest first.")
@click.option("--out", type=click.File("w"), default="-", help="File to write to. [stdout]")
@server_options(app=False)
@output_option
def export(out: Any, server: str | None, output: str) -> None:
    """Print all entries, oldest first, one JSON object on each line, for `audit verify --file` and other programs.

    Example: pointsman audit export --out audit.jsonl
    """
    for entry in _all(Connection("server", server)):
        out.write(one_of_many(entry, "yaml" if output == "yaml" else "json"))


@command.command()
@click.option("--file", "exported", type=click.File("rb"), help="Of `audit export`; instead of asking the control plane.")
@click.option("--expect", metavar=ANCHOR, help="An entry's hash that was kept elsewhere: the chain must still have it.")
@server_options(app=False)
@output_option
def verify(exported: BinaryIO | None, expect: str | None, server: str | None, output: str) -> None:
    """Compute the chain anew, here, and compare. Exit status 1: somebody has changed, added or taken out entries.

    What was cut off at the end shows only by --expect: keep a line that this command prints, where nobody can change it.

    Example: pointsman audit verify
    """
    position, kept = _anchor(expect)
    entries = _read(exported) if exported is not None else _all(Connection("server", server))
    previous, count, met = FIRST, 0, position == 0
    for entry in entries:
        count += 1
        if entry.position != count:
            _broken(f"entry {count} is missing: the next one is {entry.position}")
        hashed = entry_hash(previous, entry.entry_time.ToMicroseconds(), entry)
        if hashed.hex() != entry.hash:
            _broken(f"entry {count} is not what was recorded: its hash is {entry.hash}, and what it says gives {hashed.hex()}")
        if count == position and entry.hash != kept:
            _broken(f"entry {count} has the hash {entry.hash}, and {kept} is expected: the log was written anew")
        met = met or count == position
        previous = hashed
    if not met:
        _broken(f"entry {position} is missing: the log ends with entry {count}")
    anchor = f"{count}:{previous.hex()}"
    if output != "text":
        print_plain({"entries": count, "anchor": anchor}, output)
        return
    click.echo(f"{count} entries, the chain is whole; to check later that it was only added to: --expect {anchor}")


def _all(connection: Connection) -> Iterator[pb.AuditEntry]:
    stub = audit_pb2_grpc.AuditServiceStub(connection.channel)
    request = pb.ListAuditEntriesRequest(oldest_first=True, page_size=PAGE)
    while True:
        page = connection.call(stub.ListAuditEntries, request)
        yield from page.entries
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _read(lines: Iterable[bytes]) -> Iterator[pb.AuditEntry]:
    from google.protobuf import json_format

    for number, line in enumerate(lines, 1):
        try:
            yield json_format.Parse(line, pb.AuditEntry())
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--file: line {number} is no entry: {error}") from None


def _anchor(expect: str | None) -> tuple[int, str]:
    if expect is None:
        return 0, ""
    position, _, kept = expect.partition(":")
    if not (position.isdecimal() and int(position) and len(kept) == len(FIRST.hex())):
        raise click.UsageError(f"--expect: {expect!r} is not {ANCHOR}, as `audit verify` prints it")
    return int(position), kept.lower()


def _broken(what: str) -> NoReturn:
    click.echo(f"pointsman: the audit log was tampered with: {what}. Compare it with a backup or an export.", err=True)
    sys.exit(REFUSED)
