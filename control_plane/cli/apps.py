"""pointsman app ...: an app and its draft."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from control_plane.cli.client import REFUSED, Connection, new_request_id, only_app, refuse, server_options
from control_plane.cli.output import counted, output_option, print_config, print_plain, short, show, when
from control_plane.cli.tables import table
from pointsman.v1 import apps_pb2 as pb
from pointsman.v1 import apps_pb2_grpc

if TYPE_CHECKING:
    from pointsman.appfile import AppFile, Found


@click.group("app")
def command() -> None:
    """An app and its draft: the configuration that people edit."""


@command.command()
@click.argument("name")
@click.option("--description", default="", help="For people.")
@server_options(app=False)
@output_option
def create(name: str, description: str, server: str | None, output: str) -> None:
    """Create an app with an empty draft.

    Example: pointsman app create shop --description "Support chat of the shop"
    """
    connection = Connection("server", server)
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    request = pb.CreateAppRequest(app=name, description=description, request_id=new_request_id())
    response = connection.call(stub.CreateApp, request)
    show(response, output, lambda: click.echo(f"app {response.app.app} created"))


@command.command("list")
@server_options(app=False)
@output_option
def list_apps(server: str | None, output: str) -> None:
    """List the apps, newest first.

    Example: pointsman app list
    """
    connection = Connection("server", server)
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    response = connection.every(stub.ListApps, pb.ListAppsRequest(), "apps")
    rows = [(app.app, str(app.draft_version), when(app.create_time), app.created_by, short(app.description)) for app in response.apps]
    headings = ("APP", "DRAFT", "CREATED", "BY", "DESCRIPTION")
    show(response, output, lambda: table(headings, rows, "There is no app yet. Make one: pointsman --app NAME app push FILE"))


@command.command(short_help="Check an app file without a server.")
@click.argument("file")
@output_option
def validate(file: str, output: str) -> None:
    """Check an app FILE (YAML or JSON; - is stdin) without a server: every violation with its path, line and column.

    Example: pointsman app validate app.yaml
    """
    found = _read(file)
    if output != "text":
        print_plain({"violations": [_plain(one) for one in found.violations]}, output)
        sys.exit(REFUSED if found.violations else 0)
    if found.violations:
        _refuse(file, found)
    config = found.config
    click.echo(
        f"{_name(file)} is sound: {counted(len(config.endpoints), 'endpoint')}, {counted(len(config.pipelines), 'pipeline')}, "
        f"{counted(len(config.tools), 'tool')}, {counted(len(config.models), 'model')}"
    )


@command.command(short_help="Make the app's draft what a file says.")
@click.argument("file")
@click.option("--expected-draft-version", type=click.IntRange(0), help="Refuse when the draft is at another version.")
@click.option("--dry-run", is_flag=True, help="Check only; store nothing.")
@server_options()
@output_option
def push(file: str, expected_draft_version: int | None, dry_run: bool, server: str | None, app: str | None, output: str) -> None:
    """Make the app's draft what FILE says (YAML or JSON; - is stdin); the app is created if there is none of that name.

    Example: pointsman --app shop app push app.yaml
    """
    found = _read_sound(file)
    connection = Connection("server", server)
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    name = app or only_app(connection)
    if not dry_run and connection.find(stub.GetApp, pb.GetAppRequest(app=name)) is None:
        connection.call(stub.CreateApp, pb.CreateAppRequest(app=name, request_id=new_request_id()))
    request = pb.UpdateDraftRequest(
        app=name,
        config=found.config,
        expected_draft_version=expected_draft_version,
        request_id=new_request_id(),
        validate_only=dry_run,
    )
    response = connection.call(stub.UpdateDraft, request)
    done = "would be" if dry_run else "is"
    show(response, output, lambda: click.echo(f"the draft of {name} {done} at version {response.app.draft_version}"))


@command.command()
@server_options()
@output_option
def draft(server: str | None, app: str | None, output: str) -> None:
    """Show the draft as a file that `app push` takes.

    Example: pointsman --app shop app draft > app.yaml
    """
    connection = Connection("server", server)
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    response = connection.call(stub.GetDraft, pb.GetDraftRequest(app=app or only_app(connection)))

    def text() -> None:
        changes = "differs from" if response.draft_has_changes else "is the same as"
        click.echo(f"# draft version {response.draft_version}, {changes} the newest release; {response.digest}")
        print_config(response.config)

    show(response, output, text)


def _read(file: str) -> AppFile:
    # What checks a file, expressions and schemas in it too, is as much again as all else that a command imports.
    from control_plane.cli.appfile import read
    from pointsman.nodes import NotReadableError

    try:
        return read(file)
    except NotReadableError as error:
        refuse("INVALID_FIELD", f"{_name(file)}: {error}", [])
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None


def _read_sound(file: str) -> AppFile:
    found = _read(file)
    if found.violations:
        _refuse(file, found)
    return found


def _refuse(file: str, found: AppFile) -> NoReturn:
    count = len(found.violations)
    click.echo(f"INVALID_FIELD: {_name(file)} has {count} violation{'s' if count > 1 else ''}", err=True)
    for one in found.violations:
        click.echo(f"  {one}", err=True)
    sys.exit(REFUSED)


def _plain(one: Found) -> dict[str, object]:
    return {"field": one.violation.field, "description": one.violation.description, "line": one.line, "column": one.column}


def _name(file: str) -> str:
    return "the standard input" if file == "-" else file
