"""pointsman status, gateways and rebalance: what is live where, and who serves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import click

from control_plane.cli.client import Connection, server_options
from control_plane.cli.doubts import tell_doubts
from control_plane.cli.durations import DURATION
from control_plane.cli.moments import MOMENT
from control_plane.cli.names import ENVIRONMENT
from control_plane.cli.output import ago, counted, harmless, lasting, output_option, print_plain, short, show, when, whole
from control_plane.cli.tables import table
from pointsman.v1 import (
    deployments_pb2,
    deployments_pb2_grpc,
    executions_pb2,
    executions_pb2_grpc,
    gateways_pb2,
    gateways_pb2_grpc,
)

HEALTH_WINDOW = timedelta(minutes=15)


@click.command()
@click.option("--as-of", type=MOMENT, metavar="TIME", help="What was live then: 2026-01-31T12:00 (UTC, or with +02:00 or Z), or 2h ago.")
@click.option("-e", "--environment", "--env", type=ENVIRONMENT, default="", help="Only in this one.")
@server_options()
@output_option
def status(as_of: datetime | None, environment: str, server: str | None, app: str | None, output: str) -> None:
    """One screen: what is live where, whether every gateway is on it, how much of it failed in the last 15 minutes, since when, by whom.

    Example: pointsman status
    """
    connection = Connection("server", server)
    deployments = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    request = deployments_pb2.ListBindingsRequest(app=app or "", environment=environment)
    if as_of is not None:
        request.as_of_time.FromDatetime(as_of)
    bindings = connection.every(deployments.ListBindings, request, "bindings")
    if as_of is not None:
        show(bindings, output, lambda: _tell_past(bindings.bindings, as_of))
        return
    stub = gateways_pb2_grpc.GatewayServiceStub(connection.channel)
    listed = connection.every(stub.ListGateways, gateways_pb2.ListGatewaysRequest(), "gateways")
    window = executions_pb2.SummarizeExecutionsRequest(app=app or "", environment=environment)
    window.start_time.FromDatetime(datetime.now(UTC) - HEALTH_WINDOW)
    ran = connection.call(executions_pb2_grpc.ExecutionServiceStub(connection.channel).SummarizeExecutions, window)
    if output != "text":
        plain = {"bindings": whole(bindings)["bindings"], "gateways": whole(listed)["gateways"], "summaries": whole(ran)["summaries"]}
        print_plain(plain, output)
        return
    summaries = {(one.app, one.environment, one.release): one for one in ran.summaries}
    rows = [
        (
            binding.app,
            binding.environment,
            binding.release,
            str(binding.revision),
            _served(binding, listed.gateways),
            _failed(summaries.get((binding.app, binding.environment, binding.release))),
            when(binding.deploy_time),
            short(f"{binding.deployed_by}: {binding.reason}" if binding.reason else binding.deployed_by),
        )
        for binding in sorted(bindings.bindings, key=lambda b: (b.app, b.environment))
    ]
    headings = ("APP", "ENVIRONMENT", "RELEASE", "REVISION", "GATEWAYS", "FAILED", "SINCE (UTC)", "BY")
    table(headings, rows, "Nothing is deployed yet. Deploy a release: pointsman deploy TAG --to ENVIRONMENT")
    click.echo()
    _tell_gateways(bindings.bindings, listed.gateways)
    if not rows:
        tell_doubts(connection, "", environment)
    else:
        live = [(binding.app, binding.environment, binding.release) for binding in bindings.bindings]
        _tell_health([summaries[key] for key in live if key in summaries])


def _failed(ran: executions_pb2.ExecutionSummary | None) -> str:
    return f"{ran.failed}/{ran.executions}" if ran is not None else "-"


def _tell_past(bindings: Iterable[deployments_pb2.Binding], moment: datetime) -> None:
    rows = [
        (
            binding.app,
            binding.environment,
            binding.release,
            str(binding.revision),
            when(binding.deploy_time),
            binding.deployed_by,
            short(binding.reason),
        )
        for binding in sorted(bindings, key=lambda b: (b.app, b.environment))
    ]
    headings = ("APP", "ENVIRONMENT", "RELEASE", "REVISION", "SINCE (UTC)", "BY", "REASON")
    table(headings, rows, f"Nothing was deployed at {moment.isoformat()}")


def _tell_gateways(bindings: Iterable[deployments_pb2.Binding], listed: Sequence[gateways_pb2.Gateway]) -> None:
    """Who is there and whether all of them serve what is live, then those that need a look."""
    connected = [gateway for gateway in listed if gateway.connected]
    behind = {gateway.gateway_id for binding in bindings for gateway in connected if _serves(gateway, binding) is False}
    count = f"{counted(len(connected), 'gateway')} connected"
    if behind:
        told = f"{count}, {len(behind)} of them not on all that is live"
    else:
        told = f"{count}, on all that is live" if connected and bindings else count
    click.secho(f"{told}; see pointsman gateways", fg="green" if connected and not behind else "red")
    for gateway in listed:
        if gateway.gateway_id in behind and not any(loaded.rejection for loaded in gateway.bindings):
            click.echo(f"gateway {gateway.gateway_id} is at revision {gateway.revision}; it was last heard {ago(gateway.last_heard_time)}")
        if not gateway.connected:
            click.echo(f"gateway {gateway.gateway_id} is not connected; it was last heard {ago(gateway.last_heard_time)}")
        for loaded in gateway.bindings:
            if loaded.rejection:
                what = f"{loaded.release} of {loaded.app} in {loaded.environment}"
                click.echo(f"gateway {gateway.gateway_id} refused {what}: {harmless(loaded.rejection)}")


def _tell_health(ran: Sequence[executions_pb2.ExecutionSummary]) -> None:
    """How much of what ran on what is live went wrong."""
    executions, failed = sum(one.executions for one in ran), sum(one.failed for one in ran)
    window = f"in the last {HEALTH_WINDOW.total_seconds() / 60:.0f} minutes"
    if not executions:
        click.echo(f"nothing ran on it {window}")
        return
    told = f"{failed} of {executions} executions on it failed {window}"
    click.secho(f"{told}; see pointsman logs --outcome failed" if failed else told, fg="red" if failed else "green")


def _served(binding: deployments_pb2.Binding, listed: Iterable[gateways_pb2.Gateway]) -> str:
    """How many of the connected gateways that should serve a binding do."""
    found = [_serves(gateway, binding) for gateway in listed if gateway.connected]
    return f"{found.count(True)}/{len(found) - found.count(None)}"


def _serves(gateway: gateways_pb2.Gateway, binding: deployments_pb2.Binding) -> bool | None:
    """None for one that does not subscribe to it."""
    loaded = next((one for one in gateway.bindings if (one.app, one.environment) == (binding.app, binding.environment)), None)
    return None if loaded is None else gateway.revision >= binding.revision and not loaded.rejection


@click.command()
@server_options(app=False)
@output_option
def gateways(server: str | None, output: str) -> None:
    """List the gateways: connected or not, up to which revision, last heard when.

    Example: pointsman gateways
    """
    connection = Connection("server", server)
    stub = gateways_pb2_grpc.GatewayServiceStub(connection.channel)
    response = connection.every(stub.ListGateways, gateways_pb2.ListGatewaysRequest(), "gateways")
    rows = [
        (
            gateway.gateway_id,
            "yes" if gateway.connected else "no",
            str(gateway.revision),
            ago(gateway.last_heard_time),
            lasting(gateway.start_time) if gateway.connected and gateway.HasField("start_time") else "",
            str(len(gateway.bindings)),
            str(sum(bool(loaded.rejection) for loaded in gateway.bindings)),
            gateway.version,
            gateway.peer,
        )
        for gateway in response.gateways
    ]
    headings = ("GATEWAY", "CONNECTED", "REVISION", "HEARD", "UP", "BINDINGS", "REFUSED", "VERSION", "FROM")
    show(response, output, lambda: table(headings, rows, "No gateway has connected yet. Start one: pointsman gateway"))


@click.command()
@click.argument("percent", type=click.IntRange(1, 100))
@click.option("--within", type=DURATION, help="Each goes at a random moment within this: 10s, 500ms, 2m; at most 5m. [10s]")
@server_options(app=False)
@output_option
def rebalance(percent: int, within: float | None, server: str | None, output: str) -> None:
    """Have PERCENT of the gateways of this replica connect to other replicas; they serve on meanwhile.

    Example: pointsman --server replica-1:7400 rebalance 50 --within 30s
    """
    connection = Connection("server", server)
    request = gateways_pb2.RebalanceGatewaysRequest(percent=percent)
    if within is not None:
        request.within.FromMilliseconds(round(within * 1000))
    response = connection.call(gateways_pb2_grpc.GatewayServiceStub(connection.channel).RebalanceGateways, request)

    def text() -> None:
        click.echo(f"{len(response.gateways_moving)} of {response.gateways_connected} gateways go elsewhere; see pointsman gateways")
        for gateway_id in response.gateways_moving:
            click.echo(f"  {gateway_id}")

    show(response, output, text)
