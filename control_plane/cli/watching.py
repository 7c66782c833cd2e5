"""pointsman watch: follows what is live, over broken connections too."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import click
import grpc

from control_plane.cli.client import Connection, server_options
from control_plane.cli.names import ENVIRONMENT
from control_plane.cli.output import harmless, output_option, print_one, short
from pointsman.v1 import deployments_pb2 as pb
from pointsman.v1 import deployments_pb2_grpc

FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0


@click.command()
@click.option("-e", "--environment", type=ENVIRONMENT, default="", help="Only this one.")
@click.option("--after-revision", type=click.IntRange(0), help="Resume: only what is newer, removals included.")
@server_options()
@output_option
def watch(environment: str, after_revision: int | None, server: str | None, app: str | None, output: str) -> None:
    """Follow what is live, from now on, until Ctrl-C; when the connection breaks it goes on where it was.

    With -o json each message is one line, bookmarks included.

    Example: pointsman watch -e production
    """
    # Ctrl-C is how a watch ends, not a failure.
    signal.signal(signal.SIGINT, lambda *_: click.get_current_context().exit(0))
    connection = Connection("server", server)
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    revision, delay, broken = after_revision, FIRST_RETRY_SECONDS, False
    heard = False
    while True:
        request = pb.WatchBindingsRequest(app=app or "", environment=environment, after_revision=revision)
        try:
            for message in connection.stream(stub.WatchBindings, request):
                if broken:
                    click.echo("pointsman: connected again", err=True)
                revision, delay, heard, broken = message.revision, FIRST_RETRY_SECONDS, True, False
                _tell(message, output)
        except grpc.RpcError as error:
            call: Any = error
            # A server that never answered is more likely not there at all than about to come back.
            if call.code() is not grpc.StatusCode.UNAVAILABLE or not heard:
                connection.fail(error)
        if not broken:
            click.echo(f"pointsman: the connection to {connection.address} broke; trying again from revision {revision}", err=True)
        broken = True
        time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        delay = min(delay * 2, MAX_RETRY_SECONDS)


def _tell(message: pb.WatchBindingsResponse, output: str) -> None:
    if output != "text":
        print_one(message, output)
        return
    if message.WhichOneof("kind") == "bookmark":
        if message.bookmark.synced:
            click.echo(f"-- in sync at revision {message.revision}; waiting for changes")
        return
    binding = message.binding
    what = f"serves {binding.release}" if binding.release else "is gone"
    by = f" by {harmless(binding.deployed_by)}" if binding.deployed_by else ""
    reason = f": {short(binding.reason)}" if binding.reason else ""
    click.echo(f"{message.revision}  {binding.app} in {binding.environment} {what}{by}{reason}")
