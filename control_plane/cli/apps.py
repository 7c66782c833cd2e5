"""pointsman app ...: an app and its draft."""

from __future__ import annotations

import click

from control_plane.cli.client import Connection, new_request_id, only_app, server_options
from control_plane.cli.output import output_option, print_config, short, show, when
from control_plane.cli.tables import table
from pointsman.v1 import apps_pb2 as pb
from pointsman.v1 import apps_pb2_grpc


@click.command()
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


@click.command("list")
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


@click.command()
@click.argument("file")
@click.option("--expected-draft-version", type=click.IntRange(0), help="Refuse when the draft is at another version.")
@click.option("--dry-run", is_flag=True, help="Check only; store nothing.")
@server_options()
@output_option
def push(file: str, expected_draft_version: int | None, dry_run: bool, server: str | None, app: str | None, output: str) -> None:
    """Make the app's draft what FILE says (YAML or JSON; - is stdin); the app is created if there is none of that name.

    Example: pointsman --app shop app push app.yaml
    """
    # No other command of this module reads YAML.
    from control_plane.cli.appfile import read_or_refuse, refuse_unsound

    reading = read_or_refuse(file)
    if not reading.is_whole:
        refuse_unsound(file, reading)
    connection = Connection("server", server)
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    name = app or only_app(connection)
    if not dry_run and connection.find(stub.GetApp, pb.GetAppRequest(app=name)) is None:
        # No app is made for a file that is refused then.
        refuse_unsound(file, reading)
        connection.call(stub.CreateApp, pb.CreateAppRequest(app=name, request_id=new_request_id()))
    request = pb.UpdateDraftRequest(
        app=name,
        config=reading.config,
        expected_draft_version=expected_draft_version,
        request_id=new_request_id(),
        validate_only=dry_run,
    )
    # The server has the same rules, and knows no lines.
    response = connection.call(stub.UpdateDraft, request, if_invalid=lambda: refuse_unsound(file, reading))
    done = "would be" if dry_run else "is"
    show(response, output, lambda: click.echo(f"the draft of {name} {done} at version {response.app.draft_version}"))


@click.command()
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
