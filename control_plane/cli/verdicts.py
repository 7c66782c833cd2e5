"""pointsman summary, rollback-report: is a release worse than the one before it, and what did the bad one do?"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from control_plane.cli.client import Connection, server_options
from control_plane.cli.doubts import tell_doubts
from control_plane.cli.durations import briefly
from control_plane.cli.moments import MOMENT
from control_plane.cli.names import ENDPOINT, ENVIRONMENT
from control_plane.cli.output import output_option, short, show, when
from control_plane.cli.tables import table
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1 import executions_pb2_grpc

MAX_TOLD_FAILURES = 20


@click.command()
@click.option("-e", "--environment", "--env", type=ENVIRONMENT, default="", help="Only in this one.")
@click.option("--endpoint", type=ENDPOINT, default="", help="Only of this one.")
@click.option("--since", type=MOMENT, metavar="TIME", help="From when: 15m (ago), 2026-01-31T12:00 (UTC). [an hour before --until]")
@click.option("--until", type=MOMENT, metavar="TIME", help="Up to when. [now]")
@server_options()
@output_option
def summary(
    environment: str, endpoint: str, since: datetime | None, until: datetime | None, server: str | None, app: str | None, output: str
) -> None:
    """Sum up what each release did, the live one beside the one before it: is the new one worse?

    Example: pointsman --app shop summary -e production --since 15m
    """
    connection = Connection("server", server)
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    request = pb.SummarizeExecutionsRequest(app=app or "", environment=environment, endpoint=endpoint)
    if since is not None:
        request.start_time.FromDatetime(since)
    if until is not None:
        request.end_time.FromDatetime(until)
    response = connection.call(stub.SummarizeExecutions, request)
    show(response, output, lambda: _tell_summaries(response))
    if not response.summaries:
        tell_doubts(connection, app or "", environment)


def _tell_summaries(response: pb.SummarizeExecutionsResponse) -> None:
    rows = [
        (
            one.app,
            one.environment,
            one.release or "(none)",
            "live" if one.live else "",
            str(one.executions),
            str(one.failed),
            f"{one.error_rate:.2%}" if _ended(one) else "-",
            str(one.refused),
            str(one.cancelled),
            *(briefly(found) if _ended(one) else "-" for found in (one.p50_duration, one.p95_duration, one.p99_duration)),
            str(one.input_tokens + one.output_tokens),
            when(one.last_time),
        )
        for one in response.summaries
    ]
    headings = (
        "APP",
        "ENVIRONMENT",
        "RELEASE",
        "",
        "RAN",
        "FAILED",
        "RATE",
        "REFUSED",
        "CANCELLED",
        "P50",
        "P95",
        "P99",
        "TOKENS",
        "LAST (UTC)",
    )
    table(headings, rows, "Nothing ran in that time.")
    for line in _comparisons(response.summaries):
        click.echo(line)
    click.echo(f"from {when(response.start_time)} to {when(response.end_time)} UTC")
    if response.dropped:
        click.echo(f"{response.dropped} more are missing: gateways could neither deliver nor keep them")


def _ended(one: pb.ExecutionSummary) -> int:
    """How many succeeded or failed: those that rates and durations are of."""
    return one.executions - one.refused - one.cancelled


def _comparisons(summaries: Iterable[pb.ExecutionSummary]) -> list[str]:
    """A line for each live release that can be set beside the one before it."""
    known = {(one.app, one.environment, one.release): one for one in summaries}
    found = []
    for one in known.values():
        before = known.get((one.app, one.environment, one.previous_release))
        if not one.live or before is None or not (_ended(one) and _ended(before)):
            continue
        found.append(
            f"{one.app} in {one.environment}: {one.release} fails {one.error_rate:.2%}, {before.release} failed {before.error_rate:.2%}; "
            f"p95 {briefly(one.p95_duration)}, was {briefly(before.p95_duration)}"
        )
    return found


@click.command("rollback-report")
@click.argument("deployment_id")
@server_options(app=False)
@output_option
def rollback_report(deployment_id: str, server: str | None, output: str) -> None:
    """Tell what a release did from its deployment until it was replaced; DEPLOYMENT_ID is either's, see `history ENV -o json`.

    Example: pointsman rollback-report 01980f6e-7c1a-7000-8000-000000000000
    """
    connection = Connection("server", server)
    stub = executions_pb2_grpc.ExecutionServiceStub(connection.channel)
    response = connection.call(stub.GetRollbackReport, pb.GetRollbackReportRequest(deployment_id=deployment_id))
    show(response, output, lambda: _tell_report(response))


def _tell_report(found: Any) -> None:
    until = f"{when(found.replace_time)} UTC (revision {found.replace_revision})" if found.replace_revision else "now: it is live"
    gone = found.replace_revision and not found.replaced_by
    click.echo(
        f"{found.release} of {found.app} in {found.environment}, from {when(found.live_time)} UTC (revision {found.revision}) to {until}"
    )
    click.echo(f"{found.executions} ran on it, {found.failed} failed")
    if found.replace_revision:
        click.echo(f"{found.begun_after_replacement} began after {'its environment was deleted' if gone else 'it was replaced'}")
    click.echo()
    rows = [(use.gateway_id, str(use.executions), str(use.failed), _precisely(use.last_time)) for use in found.gateways]
    table(("GATEWAY", "RAN", "FAILED", "LAST BEGAN (UTC)"), rows, "No gateway ran it.")
    if not found.failed_executions:
        return
    click.echo()
    failures = [
        (one.execution_id, _precisely(one.start_time), one.endpoint, one.gateway_id, short(f"{one.error_reason}: {one.error_message}"))
        for one in found.failed_executions[:MAX_TOLD_FAILURES]
    ]
    table(("FAILED", "BEGAN (UTC)", "ENDPOINT", "GATEWAY", "ERROR"), failures, "")
    if found.failed > len(failures):
        click.echo(f"and {found.failed - len(failures)} more; -o json tells of up to 500")


def _precisely(moment: Any) -> str:
    return str(moment.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S.%f"))[:-3]
