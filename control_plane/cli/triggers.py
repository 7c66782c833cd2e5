"""pointsman trigger: runs an endpoint on a gateway."""

from __future__ import annotations

import json

import click
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from control_plane.cli.client import Connection, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.output import output_option, show
from pointsman.v1 import trigger_pb2 as pb
from pointsman.v1 import trigger_pb2_grpc


@click.command()
@click.argument("endpoint")
@click.option("-e", "--environment", default="", help="Which one. [the gateway's default]")
@click.option("-d", "--data", default="{}", help="The input, a JSON object; @FILE reads it from a file, @- from stdin. [{}]")
@click.option("--min-revision", type=click.IntRange(0), help="Never run on anything older.")
@click.option("--release", default="", metavar="TAG", help="Run exactly this release, or refuse.")
@click.option("--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for the answer: 10s, 500ms, 2m.")
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
    """Run an endpoint: prints the answer, and on stderr what ran.

    Example: pointsman trigger chat -e staging -d '{"message": "Test message"}'
    """
    connection = Connection("gateway", gateway)
    request = pb.TriggerRequest(
        app=app or "", environment=environment, endpoint=endpoint, input=_input(data), min_revision=min_revision, release=release
    )
    response = connection.call(trigger_pb2_grpc.TriggerServiceStub(connection.channel).Trigger, request, timeout)

    def text() -> None:
        click.echo(json.dumps(json_format.MessageToDict(response.output), indent=2, ensure_ascii=False, sort_keys=True))
        click.echo(
            f"# {response.release} of {response.app} in {response.environment}, revision {response.revision}, "
            f"on {response.gateway_id}, execution {response.execution_id}",
            # What stands on stdout is the answer alone, so that it can be piped.
            err=True,
        )

    show(response, output, text)


def _input(data: str) -> Struct:
    if data.startswith("@"):
        try:
            with click.open_file(data[1:]) as file:
                data = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"cannot read {data[1:]}: {error}") from None
    try:
        return json_format.Parse(data, Struct())
    except json_format.ParseError as error:
        raise click.UsageError(f"-d is not a JSON object: {error}") from None
