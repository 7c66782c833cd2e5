"""pointsman execution rerun: what went wrong, once more, on the release that is live now."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click
import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from control_plane.cli.client import Connection, metadata, server_options, told
from control_plane.cli.durations import DURATION
from control_plane.cli.output import REFUSED, output_option, print_plain, short, whole
from control_plane.cli.tables import table
from pointsman.captured import why_not_again
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1 import executions_pb2_grpc, trigger_pb2, trigger_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What came of one; `answer` is None when it was refused or failed."""

    was: pb.Execution
    answer: Any
    reason: str = ""
    message: str = ""


@click.command("rerun", short_help="Send captured inputs again, to what is live now.")
@click.argument("execution_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for each answer: 10s, 500ms, 2m.")
@server_options(app=False, gateway=True, server=True)
@output_option
def rerun(execution_ids: tuple[str, ...], timeout: float, server: str | None, gateway: str | None, output: str) -> None:
    """Send the captured input of executions to a gateway again, one after the other, on the release that is live now.

    Nothing is sent unless the inputs of all of them are on record, whole and without secrets. Exit status 1 when one of them failed.

    Example: pointsman execution rerun 01980f6e-7c1a-7000-8000-000000000000
    """
    connection = Connection("server", server)
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    executions = [connection.call(stub.GetExecution, pb.GetExecutionRequest(execution_id=name)).execution for name in execution_ids]
    problems = [f"{one.execution_id}: {why}" for one in executions if (why := why_not_again(one.input))]
    if problems:
        for problem in problems:
            click.echo(f"pointsman: {problem}", err=True)
        click.echo("pointsman: nothing was sent", err=True)
        sys.exit(REFUSED)
    triggers = trigger_pb2_grpc.TriggerServiceStub(Connection("gateway", gateway).channel)
    found = [_again(triggers, one, timeout) for one in executions]
    _show(found, output)
    if any(one.answer is None for one in found):
        sys.exit(REFUSED)


def _again(stub: Any, one: pb.Execution, timeout: float) -> Rerun:
    given = json_format.Parse(one.input, Struct())
    request = trigger_pb2.TriggerRequest(app=one.app, environment=one.environment, endpoint=one.endpoint, input=given)
    try:
        return Rerun(was=one, answer=stub.Trigger(request, timeout=timeout, metadata=metadata()))
    except grpc.RpcError as error:
        reason, message, _ = told(error)
        return Rerun(was=one, answer=None, reason=reason, message=message)


def _show(found: list[Rerun], output: str) -> None:
    if output != "text":
        print_plain({"reruns": [_plain(one) for one in found]}, output)
        return
    rows = [
        (
            one.was.execution_id,
            pb.Execution.Outcome.Name(one.was.outcome),
            one.was.release or "-",
            "SUCCEEDED" if one.answer is not None else one.reason,
            one.answer.release if one.answer is not None else "-",
            one.answer.execution_id if one.answer is not None else short(one.message),
        )
        for one in found
    ]
    table(("EXECUTION", "WAS", "ON", "IS", "ON", "AS"), rows, "")


def _plain(one: Rerun) -> dict[str, Any]:
    answer = {"answer": whole(one.answer)} if one.answer is not None else {"error": one.reason, "message": one.message}
    return {"execution_id": one.was.execution_id, "release": one.was.release, **answer}
