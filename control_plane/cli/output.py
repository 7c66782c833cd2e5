"""How commands print: `-o json` and `-o yaml` are the response by the proto JSON mapping, in snake_case; else text for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

F = TypeVar("F", bound=Callable[..., Any])
REFUSED = 1
"""Exit status."""
FORMATS = ["text", "json", "yaml"]
MAX_CELL_CHARS = 60


def output_option(command: F) -> F:
    """Adds -o; without it the one given before the command counts."""

    def resolve(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str:
        return value or ctx.find_root().params.get("output") or "text"

    option: Any = click.option("-o", "--output", type=click.Choice(FORMATS), callback=resolve, help="How to print. [text]")
    decorated: F = option(command)
    return decorated


def whole(message: Message) -> dict[str, Any]:
    """The same with empty lists, texts and zeros, so that a script finds every name; but for configs, which are as `plain` gives them."""
    # Most commands print text, for which YAML and JSON need not be loaded.
    from google.protobuf import json_format

    from pointsman.plain import ordered, plain
    from pointsman.v1.config_pb2 import AppConfig

    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.full_name == AppConfig.DESCRIPTOR.full_name:
            found[field.name] = plain(value)
        elif isinstance(value, Message) and field.message_type.file.package == AppConfig.DESCRIPTOR.file.package:
            found[field.name] = whole(value)
    return ordered(message.DESCRIPTOR, found)


def show(message: Message, output: str, text: Callable[[], None]) -> None:
    """Prints the message as asked for; `text` prints it for people."""
    if output == "text":
        text()
    else:
        print_plain(whole(message), output)


def refuse(reason: str, message: str, violations: list[tuple[str, str]]) -> NoReturn:
    """`REASON: message` on stderr, then a line for each violation when there are several; exit status 1."""
    if len(violations) > 1:
        click.echo(f"{reason}: {len(violations)} violations", err=True)
        for field, description in violations:
            click.echo(harmless_lines(f"  {field}: {description}" if field else f"  {description}"), err=True)
    else:
        click.echo(harmless_lines(f"{reason}: {message}"), err=True)
    sys.exit(REFUSED)


def print_plain(value: object, output: str) -> None:
    """Prints a plain value as `json` or `yaml`."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        from pointsman.plain import as_yaml

        click.echo(as_yaml(value), nl=False)


def print_one(message: Message, output: str) -> None:
    """Prints one message of many."""
    click.echo(one_of_many(message, output), nl=False)


def one_of_many(message: Message, output: str) -> str:
    """One message of many as `json`, on one line, or as `yaml`, a document."""
    if output == "json":
        return json.dumps(whole(message), ensure_ascii=False) + "\n"
    from pointsman.plain import as_yaml

    return as_yaml(whole(message), document=True)


def print_config(config: Message) -> None:
    """Prints an app's config as the file that a person writes."""
    from pointsman.plain import as_yaml, plain

    click.echo(as_yaml(plain(config)), nl=False)


def when(moment: Timestamp) -> str:
    """The moment in UTC, to the second; `-` when absent."""
    if not moment.seconds:
        return "-"
    return moment.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(moment: Timestamp) -> str:
    """How long ago, in one unit."""
    return f"{lasting(moment)} ago" if moment.seconds else "never"


def lasting(moment: Timestamp) -> str:
    """For how long already, in one unit."""
    seconds = (datetime.now(UTC) - moment.ToDatetime(tzinfo=UTC)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def harmless(text: str) -> str:
    """Without the control characters by which a text that somebody stored could steer the terminal of the one who reads it."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def harmless_lines(text: str) -> str:
    """The same for a text of several lines, which stay apart."""
    return "\n".join(map(harmless, text.split("\n")))


def short(text: str) -> str:
    """The first line, cut to fit a cell."""
    line = harmless(text.splitlines()[0]) if text else ""
    return line if len(line) <= MAX_CELL_CHARS else line[: MAX_CELL_CHARS - 3] + "..."


def counted(count: int, noun: str) -> str:
    """`1 gateway`, `2 gateways`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
