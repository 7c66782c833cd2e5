"""pointsman logs, execution list, execution show: what ran, on which release, and what came of it."""

from __future__ import annotations

import random
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
import grpc

from control_plane.cli.client import Connection, metadata, server_options
from control_plane.cli.doubts import tell_doubts
from control_plane.cli.durations import DURATION, briefly
from control_plane.cli.moments import MOMENT
from control_plane.cli.names import ENDPOINT, ENVIRONMENT, GATEWAY_ID, TAG
from control_plane.cli.output import harmless, output_option, print_one, short, show
from control_plane.cli.reruns import rerun
from control_plane.cli.tables import table
from control_plane.cli.timeline import tell_execution
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1 import executions_pb2_grpc

C = TypeVar("C")
OUTCOMES = [name for name in pb.Execution.Outcome.keys() if name != "OUTCOME_UNSPECIFIED"]  # noqa: SIM118 -- no dictionary
NOTHING = "Nothing on record matches. An execution is there within a second of its end."
MAX_PAGE = 500
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0
# Gateways report a little late: after a break that much is looked through again, and what was told before is left out.
LOOK_BACK = timedelta(minutes=1)
REMEMBERED = 20_000


def filter_options(command: C) -> C:
    """Adds what executions are chosen by, but for the app."""
    options = (
        click.option("-e", "--environment", "--env", type=ENVIRONMENT, default="", help="Only in this one."),
        click.option("--release", type=TAG, default="", metavar="TAG", help="Only of this release."),
        click.option("--endpoint", type=ENDPOINT, default="", help="Only of this one."),
        click.option("--outcome", type=click.Choice(OUTCOMES, case_sensitive=False), help="Only with this one."),
        click.option("--gateway-id", type=GATEWAY_ID, default="", help="Only of this gateway."),
        click.option("--min-duration", type=DURATION, help="Only those that took at least so long: 500ms, 2s."),
        click.option("--error-reason", default="", metavar="REASON", help="Only with this one, such as STEP_FAILED."),
        click.option(
            "--since", type=MOMENT, metavar="TIME", help="Only those that began then or later: 15m (ago), 2026-01-31T12:00 (UTC)."
        ),
        click.option("--until", type=MOMENT, metavar="TIME", help="Only those that began before."),
    )
    decorated: Any = command
    for option in reversed(options):
        decorated = option(decorated)
    found: C = decorated
    return found


def _chosen(request: Any, filters: dict[str, Any]) -> Any:
    """Puts the filters into a request, those that it knows."""
    known = {field.name for field in request.DESCRIPTOR.fields}
    for name in ("environment", "release", "endpoint", "gateway_id", "error_reason"):
        setattr(request, name, filters[name])
    if filters["outcome"]:
        request.outcome = pb.Execution.Outcome.Value(filters["outcome"].upper())
    if filters["min_duration"] is not None:
        request.min_duration.FromTimedelta(timedelta(seconds=filters["min_duration"]))
    for field, given in (("start_time", filters["since"]), ("end_time", filters["until"])):
        if given is not None and field in known:
            getattr(request, field).FromDatetime(given)
    return request


def _list(connection: Connection, request: pb.ListExecutionsRequest, limit: int) -> pb.ListExecutionsResponse:
    """The newest, over as many pages as it takes; with the token of what comes after them."""
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    found = pb.ListExecutionsResponse()
    while True:
        request.page_size = min(limit - len(found.executions), MAX_PAGE)
        page = connection.call(stub.ListExecutions, request)
        found.executions.extend(page.executions)
        found.next_page_token = request.page_token = page.next_page_token
        if not page.next_page_token or len(found.executions) >= limit:
            return found


@click.group("execution")
def command() -> None:
    """What ran: one execution for each trigger."""


@command.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many of the newest.")
@server_options()
@output_option
def list_(limit: int, server: str | None, app: str | None, output: str, **filters: Any) -> None:
    """List executions, newest first.

    Example: pointsman execution list -e production --outcome failed --since 1h
    """
    connection = Connection("server", server)
    response = _list(connection, _chosen(pb.ListExecutionsRequest(app=app or ""), filters), limit)
    rows = [
        (
            _moment(one),
            pb.Execution.Outcome.Name(one.outcome),
            one.app,
            one.environment,
            one.endpoint,
            one.release or "-",
            briefly(one.duration),
            one.gateway_id,
            one.execution_id,
            short(_error(one)),
        )
        for one in response.executions
    ]
    headings = ("BEGAN (UTC)", "OUTCOME", "APP", "ENVIRONMENT", "ENDPOINT", "RELEASE", "TOOK", "GATEWAY", "EXECUTION", "ERROR")

    def text() -> None:
        table(headings, rows, NOTHING)
        if not rows:
            tell_doubts(connection, app or "", filters["environment"], filters["release"])
        if response.next_page_token:
            click.echo(f"there are more; these are the newest {len(rows)}, see --limit")

    show(response, output, text)


@command.command("show", short_help="Show one execution, its steps as a timeline.")
@click.argument("execution_id")
@server_options(app=False)
@output_option
def show_(execution_id: str, server: str | None, output: str) -> None:
    """Show one execution, its steps drawn as a timeline, and what was captured of inputs and outputs.

    Example: pointsman execution show 01980f6e-7c1a-7000-8000-000000000000
    """
    connection = Connection("server", server)
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    response = connection.call(stub.GetExecution, pb.GetExecutionRequest(execution_id=execution_id))
    show(response, output, lambda: tell_execution(response.execution))


command.add_command(rerun)


@click.command()
@filter_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="How many of the newest first.")
@server_options()
@output_option
def logs(follow: bool, limit: int, server: str | None, app: str | None, output: str, **filters: Any) -> None:
    """Tell what ran, the newest last, a line each; with -o json each line is an execution.

    Example: pointsman logs -f -e staging --outcome failed
    """
    if follow and filters["until"] is not None:
        raise click.UsageError("--until has an end, and --follow has none: leave one of them out")
    connection = Connection("server", server)
    wanted = _chosen(pb.ListExecutionsRequest(app=app or ""), filters)
    if follow:
        # Ctrl-C is how it ends, not a failure.
        signal.signal(signal.SIGINT, lambda *_: click.get_current_context().exit(0))
        tell_doubts(connection, app or "", filters["environment"], filters["release"])
        _follow(connection, wanted, _chosen(pb.TailExecutionsRequest(app=app or ""), filters), limit, output)
        return
    executions = _list(connection, wanted, limit).executions if limit else []
    for one in reversed(executions):
        _tell(one, output)
    if not executions:
        click.echo(f"pointsman: {NOTHING}", err=True)
        tell_doubts(connection, app or "", filters["environment"], filters["release"])


def _follow(connection: Connection, wanted: pb.ListExecutionsRequest, tail: pb.TailExecutionsRequest, limit: int, output: str) -> None:
    """The newest, then what comes; over broken connections too, without a gap and without telling anything twice."""
    told: OrderedDict[str, None] = OrderedDict()
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    delay, broken_at = FIRST_RETRY_SECONDS, None
    heard = False
    while True:
        try:
            call = stub.TailExecutions(tail, metadata=metadata())
            # From here on nothing is missed; what was stored before is listed.
            call.initial_metadata()
            if broken_at is not None:
                wanted.start_time.FromDatetime(broken_at - LOOK_BACK)
                click.echo("pointsman: connected again", err=True)
            for one in _messages(connection, call, wanted, MAX_PAGE * 20 if broken_at else limit):
                delay, heard, broken_at = FIRST_RETRY_SECONDS, True, None
                if one is not None and one.execution_id not in told:
                    _tell(one, output)
                    told[one.execution_id] = None
                    if len(told) > REMEMBERED:
                        told.popitem(last=False)
        except grpc.RpcError as error:
            failed: Any = error
            # A server that never answered is more likely not there at all than about to come back.
            if failed.code() is not grpc.StatusCode.UNAVAILABLE or not heard:
                connection.fail(error)
        if broken_at is None:
            broken_at = datetime.now(UTC)
            click.echo(f"pointsman: the connection to {connection.address} broke; trying again", err=True)
        time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        delay = min(delay * 2, MAX_RETRY_SECONDS)


def _messages(connection: Connection, call: Any, wanted: pb.ListExecutionsRequest, limit: int) -> Iterator[pb.Execution | None]:
    """What is on record, oldest first, then what is told; None for a sign of life."""
    if not call.is_active():
        # Raises why.
        next(call)
    if limit:
        request = pb.ListExecutionsRequest()
        request.CopyFrom(wanted)
        yield from reversed(_list(connection, request, limit).executions)
    for message in call:
        if message.missed:
            click.echo(f"pointsman: {message.missed} more passed by too quickly to be told", err=True)
        yield message.execution if message.HasField("execution") else None


def _tell(one: pb.Execution, output: str) -> None:
    if output != "text":
        print_one(one, output)
        return
    where = f"{one.app}/{one.endpoint} {one.environment} {one.release or '-'}"
    error = f"  {short(_error(one))}" if one.error_reason else ""
    outcome = pb.Execution.Outcome.Name(one.outcome)
    click.echo(f"{_moment(one)}  {outcome:<9}  {harmless(where)}  {briefly(one.duration)}  {one.gateway_id}  {one.execution_id}{error}")


def _error(one: pb.Execution) -> str:
    return f"{one.error_reason}: {one.error_message}" if one.error_reason else ""


def _moment(one: pb.Execution) -> str:
    """To the millisecond."""
    return one.start_time.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
