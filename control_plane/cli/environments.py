"""pointsman environment ...: the names that traffic asks for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from control_plane.cli.client import Connection, new_request_id, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.names import ENVIRONMENT
from control_plane.cli.output import output_option, short, show, when
from control_plane.cli.tables import table
from pointsman.v1 import environments_pb2 as pb
from pointsman.v1 import environments_pb2_grpc

ACTIONS = ("serve", "flag", "unready", "refuse")
F = TypeVar("F", bound=Callable[..., Any])


@click.group("environment")
def command() -> None:
    """The names that traffic asks for, shared by all apps."""


def _open(server: str | None) -> tuple[Connection, Any]:
    connection = Connection("server", server)
    return connection, environments_pb2_grpc.EnvironmentServiceStub(connection.channel)


def _staleness_options(command: F) -> F:
    """Adds --max-staleness and --stale-action."""
    limit = "After how long without word of the control plane a gateway counts as stale here, such as 30s; 0: never."
    action = "What it does then: serve on, flag its answers with X-Stale, be unready, or refuse."
    decorated: Any = click.option("--stale-action", type=click.Choice(ACTIONS), help=action)(command)
    found: F = click.option("--max-staleness", type=DURATION, help=limit)(decorated)
    return found


def _set_staleness(
    request: pb.CreateEnvironmentRequest | pb.UpdateEnvironmentRequest, max_staleness: float | None, stale_action: str | None
) -> None:
    if max_staleness is not None:
        request.max_staleness.FromTimedelta(timedelta(seconds=max_staleness))
    if stale_action is not None:
        request.stale_action = pb.Environment.StaleAction.Value(stale_action.upper())


@command.command()
@click.argument("name")
@click.option("--description", default="", help="For people.")
@_staleness_options
@server_options(app=False)
@output_option
def create(name: str, description: str, max_staleness: float | None, stale_action: str | None, server: str | None, output: str) -> None:
    """Create an environment.

    Example: pointsman environment create canary --description "One percent of the traffic"
    """
    connection, stub = _open(server)
    request = pb.CreateEnvironmentRequest(environment=name, description=description, request_id=new_request_id())
    # Of a new one 0 says what absent says.
    _set_staleness(request, max_staleness or None, stale_action)
    response = connection.call(stub.CreateEnvironment, request)
    show(response, output, lambda: click.echo(f"environment {name} created"))


@command.command("list")
@server_options(app=False)
@output_option
def list_environments(server: str | None, output: str) -> None:
    """List the environments, newest first.

    Example: pointsman environment list
    """
    connection, stub = _open(server)
    response = connection.every(stub.ListEnvironments, pb.ListEnvironmentsRequest(), "environments")
    rows = [
        (one.environment, when(one.create_time), one.created_by, _staleness(one), short(one.description)) for one in response.environments
    ]
    headings = ("ENVIRONMENT", "CREATED (UTC)", "BY", "WHEN STALE", "DESCRIPTION")
    show(response, output, lambda: table(headings, rows, "There is no environment."))


def _staleness(one: pb.Environment) -> str:
    if not one.HasField("max_staleness"):
        return "-"
    action = pb.Environment.StaleAction.Name(one.stale_action).lower()
    return f"{action} after {one.max_staleness.ToTimedelta().total_seconds():g} s"


@command.command(short_help="Change an environment.")
@click.argument("name", type=ENVIRONMENT)
@click.option("--description", help="The new one.")
@_staleness_options
@server_options(app=False)
@output_option
def update(
    name: str, description: str | None, max_staleness: float | None, stale_action: str | None, server: str | None, output: str
) -> None:
    """Change an environment's description, or how its gateways treat staleness.

    Example: pointsman environment update production --max-staleness 30s --stale-action flag
    """
    if (description, max_staleness, stale_action) == (None, None, None):
        raise click.UsageError("Nothing to change: give --description, --max-staleness or --stale-action.")
    connection, stub = _open(server)
    request = pb.UpdateEnvironmentRequest(environment=name, description=description, request_id=new_request_id())
    _set_staleness(request, max_staleness, stale_action)
    response = connection.call(stub.UpdateEnvironment, request)
    show(response, output, lambda: click.echo(f"environment {name} changed"))


@command.command()
@click.argument("name", type=ENVIRONMENT)
@click.option("--force", is_flag=True, help="Unbind what is still live there.")
@server_options(app=False)
@output_option
def delete(name: str, force: bool, server: str | None, output: str) -> None:
    """Delete an environment; its history stays.

    Example: pointsman environment delete canary
    """
    connection, stub = _open(server)
    request = pb.DeleteEnvironmentRequest(environment=name, force=force, request_id=new_request_id())
    response = connection.call(stub.DeleteEnvironment, request)
    show(response, output, lambda: click.echo(f"environment {name} deleted"))
