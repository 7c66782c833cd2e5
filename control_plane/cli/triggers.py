"""pointsman trigger: runs an endpoint on a gateway."""

from __future__ import annotations

import json
from typing import Any

import click
import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from control_plane.cli.client import Connection, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.names import ENDPOINT, ENVIRONMENT, TAG
from control_plane.cli.output import harmless, harmless_lines, output_option, print_one, show
from pointsman.v1 import trigger_pb2 as pb
from pointsman.v1 import trigger_pb2_grpc
from pointsman.values import from_value


@click.command()
@click.argument("endpoint", type=ENDPOINT)
@click.option("-e", "--environment", type=ENVIRONMENT, default="", help="Which one. [the gateway's default]")
@click.option("-d", "--data", default="{}", help="The input, a JSON object; @FILE reads it from a file, @- from stdin. [{}]")
@click.option("--min-revision", type=click.IntRange(0), help="Never run on anything older.")
@click.option("--release", type=TAG, default="", metavar="TAG", help="Run exactly this release, or refuse.")
@click.option("--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for the answer: 10s, 500ms, 2m.")
@click.option("--stream", is_flag=True, help="Tell as it goes: steps on stderr, text as a model writes it; -o json: one event a line.")
@server_options(gateway=True)
@output_option
def trigger(
    endpoint: str,
    environment: str,
    data: str,
    min_revision: int | None,
    release: str,
    timeout: float,
    stream: bool,
    gateway: str | None,
    app: str | None,
    output: str,
) -> None:
    """Run an endpoint: prints the answer, and on stderr what ran.

    Example: pointsman trigger chat -e staging -d '{"message": "Test message"}'
    """
    connection = Connection("gateway", gateway)
    stub = trigger_pb2_grpc.TriggerServiceStub(connection.channel)
    asked: dict[str, Any] = {"app": app or "", "environment": environment, "endpoint": endpoint, "input": _input(data), "release": release}
    if stream:
        _stream(connection, stub, pb.TriggerStreamRequest(**asked, min_revision=min_revision), timeout, output)
        return
    response = connection.call(stub.Trigger, pb.TriggerRequest(**asked, min_revision=min_revision), timeout)

    def text() -> None:
        click.echo(_answer(response.output))
        click.echo(_ran(response), err=True)

    show(response, output, text)


def _answer(output: Value) -> str:
    return json.dumps(from_value(output), indent=2, ensure_ascii=False, sort_keys=True)


def _ran(what: pb.TriggerResponse | pb.TriggerStreamResponse.ExecutionStarted) -> str:
    """For stderr: what stands on stdout is the answer alone, so that it can be piped."""
    where = f"{what.app} in {what.environment}, revision {what.revision}, on {what.gateway_id}"
    return f"# {what.release} of {where}, execution {what.execution_id}"


def _stream(connection: Connection, stub: Any, request: pb.TriggerStreamRequest, timeout: float, output: str) -> None:
    """Prints the events as they come; ends the command when the trigger is refused or fails."""
    told = _Told()
    try:
        for event in connection.stream(stub.TriggerStream, request, timeout):
            if output == "text":
                told.tell(event)
            else:
                print_one(event, output)
    except grpc.RpcError as error:
        told.end_line()
        connection.fail(error)


class _Told:
    """What a person sees of a stream: steps and a model's words on stderr; on stdout the whole answer alone, for programs."""

    def __init__(self) -> None:
        self._in_a_line = False

    def tell(self, event: pb.TriggerStreamResponse) -> None:
        match event.WhichOneof("event"):
            case "execution_started":
                click.echo(_ran(event.execution_started), err=True)
            case "step_finished":
                self.end_line()
                step = event.step_finished
                milliseconds = step.duration.ToTimedelta().total_seconds() * 1000
                error = f": {harmless(step.error)}" if step.error else ""
                click.echo(f"# {step.stage}/{step.step} {step.outcome} after {milliseconds:.0f} ms{error}", err=True)
            case "output_delta":
                text = harmless_lines(event.output_delta.text)
                click.echo(text, nl=False, err=True)
                self._in_a_line = bool(text) and not text.endswith("\n")
            case "execution_completed":
                self.end_line()
                click.echo(_answer(event.execution_completed.output))

    def end_line(self) -> None:
        """After a model's words, which end where they end."""
        if self._in_a_line:
            click.echo(err=True)
            self._in_a_line = False


def _input(data: str) -> Struct:
    if data.startswith("@"):
        try:
            with click.open_file(data[1:]) as file:
                data = file.read()
        except OSError as error:
            raise click.UsageError(f"cannot read {data[1:]}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise click.UsageError(f"cannot read {data[1:]}: {error}") from None
    try:
        return json_format.Parse(data, Struct())
    except json_format.ParseError as error:
        problem = str(error).removeprefix("Failed to load JSON: ").rstrip(".")
        raise click.UsageError(f'-d is not a JSON object such as \'{{"message": "hello"}}\': {problem}') from None
