"""pointsman status, gateways, watch: what is live where, and who serves it."""

from __future__ import annotations

import json
import random
import time

import click
import grpc

from control_plane.cli.client import UNREACHABLE, Connection, server_options
from control_plane.cli.output import ago, output_option, plain, short, show, table, when
from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, gateways_pb2, gateways_pb2_grpc

PAGE = 500
RETRY_SECONDS = (0.2, 5.0)
GIVE_UP_AFTER_SECONDS = 30.0


@click.command()
@server_options()
@output_option
def status(server: str | None, app: str | None, output: str) -> None:
    """One screen: what is live where, since when, by whom, and whether every gateway is on it.

    Example: pointsman status
    """
    connection = Connection("server", server)
    deployments = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    bindings = connection.call(deployments.ListBindings, deployments_pb2.ListBindingsRequest(app=app or "", page_size=PAGE))
    gateways = connection.call(
        gateways_pb2_grpc.GatewayServiceStub(connection.channel).ListGateways, gateways_pb2.ListGatewaysRequest(page_size=PAGE)
    ).gateways

    def text() -> None:
        rows = [
            (
                binding.app,
                binding.environment,
                binding.release,
                str(binding.revision),
                _served(binding, gateways),
                when(binding.deploy_time),
                binding.deployed_by,
                short(binding.reason),
            )
            for binding in sorted(bindings.bindings, key=lambda b: (b.app, b.environment))
        ]
        headings = ("APP", "ENVIRONMENT", "RELEASE", "REVISION", "GATEWAYS", "SINCE (UTC)", "BY", "REASON")
        table(headings, rows, "Nothing is deployed yet. Deploy a release: pointsman deploy TAG --to ENVIRONMENT")
        for gateway in gateways:
            if not gateway.connected:
                click.echo(f"gateway {gateway.gateway_id} is not connected; it was last heard {ago(gateway.last_heard_time)}")
            for loaded in gateway.bindings:
                if loaded.rejection:
                    click.echo(f"gateway {gateway.gateway_id} refused: {loaded.rejection}")

    show(bindings, output, text)


def _served(binding: deployments_pb2.Binding, gateways: object) -> str:
    """How many of the connected gateways that should serve a binding do."""
    total = served = 0
    for gateway in gateways:  # type: ignore[attr-defined]  # a repeated field
        loaded = next((one for one in gateway.bindings if (one.app, one.environment) == (binding.app, binding.environment)), None)
        if gateway.connected and loaded is not None:
            total += 1
            served += gateway.revision >= binding.revision and not loaded.rejection
    return f"{served}/{total}"


@click.command()
@server_options(app=False)
@output_option
def gateways(server: str | None, output: str) -> None:
    """List the gateways: connected or not, up to which revision, last heard when.

    Example: pointsman gateways
    """
    connection = Connection("server", server)
    stub = gateways_pb2_grpc.GatewayServiceStub(connection.channel)
    response = connection.call(stub.ListGateways, gateways_pb2.ListGatewaysRequest(page_size=PAGE))
    rows = [
        (
            gateway.gateway_id,
            "yes" if gateway.connected else "no",
            str(gateway.revision),
            ago(gateway.last_heard_time),
            str(len(gateway.bindings)),
            str(sum(bool(loaded.rejection) for loaded in gateway.bindings)),
            gateway.version,
            gateway.peer,
        )
        for gateway in response.gateways
    ]
    headings = ("GATEWAY", "CONNECTED", "REVISION", "HEARD", "BINDINGS", "REFUSED", "VERSION", "FROM")
    show(response, output, lambda: table(headings, rows, "No gateway has connected yet. Start one: pointsman gateway"))


@click.command()
@click.option("-e", "--environment", default="", help="Only this one.")
@click.option("--after-revision", type=click.IntRange(0), help="Resume: only what is newer.")
@server_options()
@output_option
def watch(environment: str, after_revision: int | None, server: str | None, app: str | None, output: str) -> None:
    """Follow what is live, from now on, until Ctrl-C; goes on by itself when the connection breaks.

    Example: pointsman watch -e production
    """
    connection = Connection("server", server)
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    revision, delay, heard = after_revision, RETRY_SECONDS[0], time.monotonic()
    while True:
        request = deployments_pb2.WatchBindingsRequest(app=app or "", environment=environment, after_revision=revision)
        try:
            for message in connection.stream(stub.WatchBindings, request):
                revision, delay, heard = message.revision, RETRY_SECONDS[0], time.monotonic()
                _tell(message, output)
        except grpc.RpcError as error:
            code = error.code()
            if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() - heard > GIVE_UP_AFTER_SECONDS:
                connection.fail(error)
            if revision is None:
                click.echo(f"pointsman: {connection.address} cannot be reached", err=True)
                raise SystemExit(UNREACHABLE) from error
        time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        delay = min(delay * 2, RETRY_SECONDS[1])


def _tell(message: deployments_pb2.WatchBindingsResponse, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(plain(message), ensure_ascii=False))
        return
    if message.WhichOneof("kind") == "bookmark":
        if message.bookmark.synced:
            click.echo(f"-- in sync at revision {message.revision}; waiting for changes")
        return
    binding = message.binding
    what = f"serves {binding.release}" if binding.release else "is gone"
    by = f" by {binding.deployed_by}" if binding.deployed_by else ""
    reason = f": {short(binding.reason)}" if binding.reason else ""
    click.echo(f"{message.revision}  {binding.app} in {binding.environment} {what}{by}{reason}")
