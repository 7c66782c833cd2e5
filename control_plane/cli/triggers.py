"""pointsman trigger: runs an endpoint on a gateway."""

from __future__ import annotations

import json

import click
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from control_plane.cli.client import Connection, server_options
from control_plane.cli.output import output_option, plain, show
from pointsman.v1 import trigger_pb2 as pb
from pointsman.v1 import trigger_pb2_grpc


@click.command()
@click.argument("endpoint")
@click.option("-e", "--environment", default="", help="Which one. [the gateway's default]")
@click.option("-d", "--data", default="{}", help="The input, a JSON object; @FILE reads it from a file, @- from stdin. [{}]")
@click.option("--min-revision", type=click.IntRange(0), help="Never run on anything older.")
@click.option("--release", default="", metavar="TAG", help="Run exactly this release, or refuse.")
@click.option("--timeout", type=click.FloatRange(0.001, 3600), default=60.0, show_default=True, help="Seconds to wait for the answer.")
@server_options(gateway=True)
@output_option
def trigger(
    endpoint: str,
    environment: str,
    data: str,
    min_revision: int | None,
    release: str,
    timeout: float,
    gateway: str | None,
    app: str | None,
    output: str,
) -> None:
    """Run an endpoint: prints the answer, then what ran.

    Example: pointsman trigger chat -e staging -d '{"message": "Test message"}'
    """
    connection = Connection("gateway", gateway)
    request = pb.TriggerRequest(
        app=app or "", environment=environment, endpoint=endpoint, input=_input(data), min_revision=min_revision, release=release
    )
    response = connection.call(trigger_pb2_grpc.TriggerServiceStub(connection.channel).Trigger, request, timeout)

    def text() -> None:
        click.echo(json.dumps(plain(response).get("output"), indent=2, ensure_ascii=False))
        click.echo(
            f"# {response.release} of {response.app} in {response.environment}, revision {response.revision}, "
            f"on {response.gateway_id}, execution {response.execution_id}",
        )

    show(response, output, text)


def _input(data: str) -> Struct:
    if data.startswith("@"):
        with click.open_file(data[1:]) as file:
            data = file.read()
    try:
        return json_format.Parse(data, Struct())
    except json_format.ParseError as error:
        raise click.UsageError(f"-d is not a JSON object: {error}") from None
