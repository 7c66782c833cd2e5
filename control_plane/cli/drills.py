"""pointsman drill ...: rehearsals of what will happen one day."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import click

from control_plane.cli.client import Connection, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.output import output_option, show, when
from pointsman.v1 import trigger_pb2 as pb
from pointsman.v1 import trigger_pb2_grpc


@click.group("drill")
def command() -> None:
    """Rehearse failures, on running servers."""


@command.command(short_help="Make gateways do without their control plane.")
@click.argument("gateways", nargs=-1, metavar="[HOST:PORT]...")
@click.option("--for", "seconds", type=DURATION, required=True, help="How long: 30s, 5m; at most 10m; 0 ends one that goes on.")
@server_options(app=False, gateway=True)
@output_option
def outage(gateways: tuple[str, ...], seconds: float, gateway: str | None, output: str) -> None:
    """Make gateways behave as if the control plane were gone, for a time.

    They serve on, as each environment's staleness says, and hear of no change; then they come back by themselves.
    Without addresses it is the one of --gateway.

    Example: pointsman drill outage east:7500 west:7500 --for 30s
    """
    request = pb.SimulateOutageRequest()
    request.duration.FromTimedelta(timedelta(seconds=seconds))
    for address in gateways or (gateway,):
        connection = Connection("gateway", address)
        stub = trigger_pb2_grpc.GatewayStatusServiceStub(connection.channel)
        response = connection.call(stub.SimulateOutage, request)
        show(response, output, partial(click.echo, _told(response)))


def _told(found: pb.SimulateOutageResponse) -> str:
    if not found.HasField("end_time"):
        return f"gateway {found.gateway_id} looks for its control plane again"
    return f"gateway {found.gateway_id} does without its control plane until {when(found.end_time)} UTC"
