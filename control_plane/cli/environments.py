"""pointsman environment ...: the names that traffic asks for."""

from __future__ import annotations

from typing import Any

import click

from control_plane.cli.client import Connection, new_request_id, server_options
from control_plane.cli.output import output_option, short, show, table, when
from pointsman.v1 import environments_pb2 as pb
from pointsman.v1 import environments_pb2_grpc


@click.group("environment")
def command() -> None:
    """The names that traffic asks for, shared by all apps."""


def _open(server: str | None) -> tuple[Connection, Any]:
    connection = Connection("server", server)
    return connection, environments_pb2_grpc.EnvironmentServiceStub(connection.channel)


@command.command()
@click.argument("name")
@click.option("--description", default="", help="For people.")
@server_options(app=False)
@output_option
def create(name: str, description: str, server: str | None, output: str) -> None:
    """Create an environment.

    Example: pointsman environment create canary --description "One percent of the traffic"
    """
    connection, stub = _open(server)
    request = pb.CreateEnvironmentRequest(environment=name, description=description, request_id=new_request_id())
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
    rows = [(one.environment, when(one.create_time), one.created_by, short(one.description)) for one in response.environments]
    show(response, output, lambda: table(("ENVIRONMENT", "CREATED (UTC)", "BY", "DESCRIPTION"), rows, "There is no environment."))


@command.command()
@click.argument("name")
@click.option("--description", required=True, help="The new one.")
@server_options(app=False)
@output_option
def update(name: str, description: str, server: str | None, output: str) -> None:
    """Change an environment's description.

    Example: pointsman environment update canary --description "Five percent of the traffic"
    """
    connection, stub = _open(server)
    request = pb.UpdateEnvironmentRequest(environment=name, description=description, request_id=new_request_id())
    response = connection.call(stub.UpdateEnvironment, request)
    show(response, output, lambda: click.echo(f"environment {name} changed"))


@command.command()
@click.argument("name")
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
