"""App files from where the command line finds them, and `pointsman app validate`, which needs no server and so does not load gRPC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from control_plane.cli.output import REFUSED, counted, output_option, print_plain, refuse
from pointsman.appfile import MAX_FILE_BYTES, Found, Reading
from pointsman.appfile import read as read_text
from pointsman.nodes import NotReadableError


def read(path: str) -> Reading:
    """Reads a file; `-` is the standard input.

    Raises:
        NotReadableError: when it is no YAML or JSON, or no mapping.
        OSError: when there is no such file, or it may not be read.
    """
    if path == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise NotReadableError(f"the file has more than {MAX_FILE_BYTES} bytes; at most that many are allowed")
    try:
        return read_text(data.decode())
    except UnicodeDecodeError as error:
        raise NotReadableError(f"the file is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_or_refuse(file: str) -> Reading:
    """Reads a file; one that cannot be read ends the command."""
    try:
        return read(file)
    except NotReadableError as error:
        refuse("INVALID_FIELD", f"{name_of(file)}: {error}", [])
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None


def refuse_unsound(file: str, reading: Reading) -> None:
    """Ends the command when the file breaks a rule: every violation, with its line."""
    if violations := reading.check().violations:
        _refuse(file, violations)


@click.command()
@click.argument("file")
@output_option
def validate(file: str, output: str) -> None:
    """Check an app FILE (YAML or JSON; - is stdin) without a server: every violation with its path, line and column.

    Example: pointsman app validate app.yaml
    """
    found = read_or_refuse(file).check()
    if output != "text":
        print_plain({"violations": [_plain(one) for one in found.violations]}, output)
        sys.exit(REFUSED if found.violations else 0)
    if found.violations:
        _refuse(file, found.violations)
    config = found.config
    click.echo(
        f"{name_of(file)} is sound: {counted(len(config.endpoints), 'endpoint')}, {counted(len(config.pipelines), 'pipeline')}, "
        f"{counted(len(config.tools), 'tool')}, {counted(len(config.models), 'model')}"
    )


def name_of(file: str) -> str:
    """As it is told."""
    return "the standard input" if file == "-" else file


def _refuse(file: str, violations: list[Found]) -> NoReturn:
    count = len(violations)
    click.echo(f"INVALID_FIELD: {name_of(file)} has {count} violation{'s' if count > 1 else ''}", err=True)
    for one in violations:
        click.echo(f"  {one}", err=True)
    sys.exit(REFUSED)


def _plain(one: Found) -> dict[str, object]:
    return {"field": one.violation.field, "description": one.violation.description, "line": one.line, "column": one.column}
