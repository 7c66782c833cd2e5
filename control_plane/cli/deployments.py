"""pointsman deploy, promote, rollback, history: what is live where, and how that changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from control_plane.cli.changes import tell_changes
from control_plane.cli.client import Connection, new_request_id, only_app, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.names import ENVIRONMENT, TAG
from control_plane.cli.output import REFUSED, output_option, short, show, when
from control_plane.cli.progress import told_live
from control_plane.cli.rollout import tell_rollout
from control_plane.cli.tables import table
from pointsman.v1 import deployments_pb2 as pb
from pointsman.v1 import deployments_pb2_grpc, releases_pb2, releases_pb2_grpc

# On top of what the server itself may wait for gateways.
CALL_SECONDS = 30.0
DEFAULT_WAIT_SECONDS = 5.0


def change_options(command: Any) -> Any:
    """Adds what deploy, promote and rollback have in common."""
    options = (
        click.option("--reason", default="", help="Why; kept in the history."),
        click.option("--expected-revision", type=click.IntRange(0), help="Refuse unless the binding is at this revision; 0: unbound."),
        click.option("--wait", type=DURATION, help="How long to wait for gateways: 10s, 500ms, 2m; 0: do not; at most 5m. [5s]"),
        click.option("--force", is_flag=True, help="Skip the gateways' veto; recorded in the history."),
        click.option("--dry-run", is_flag=True, help="Check only, the gateways' veto included; change nothing."),
        click.option("--request-id", help="UUID; a repeat within 24 h changes nothing more. [a new one]"),
        server_options(),
        output_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _common(options: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "expected_revision": options["expected_revision"],
        "reason": options["reason"],
        "request_id": options["request_id"] or new_request_id(),
        "validate_only": options["dry_run"],
        "force": options["force"],
    }
    if options["wait"] is not None:
        wait = Duration()
        wait.FromMilliseconds(round(options["wait"] * 1000))
        fields["wait"] = wait
    return fields


def _carry_out(options: dict[str, Any], make: Callable[[str, dict[str, Any]], tuple[str, Any]]) -> None:
    """Makes the call that `make` names for the app, and tells what came of it."""
    connection = Connection("server", options["server"])
    app = options["app"] or only_app(connection)
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    method, request = make(app, _common(options))
    wait = DEFAULT_WAIT_SECONDS if options["wait"] is None else options["wait"]
    environment = request.to_environment if method == "Promote" else request.environment
    try:
        with told_live(connection, app, environment, options["output"]):
            response = connection.call(getattr(stub, method), request, wait + CALL_SECONDS)
    except KeyboardInterrupt:
        _tell_interrupted(connection, app, environment, request)
        sys.exit(REFUSED)

    def text() -> None:
        binding = response.binding
        if options["dry_run"] and not response.HasField("deployment"):
            click.echo(f"nothing would change: {binding.release} is live in {binding.environment} already")
            return
        if options["dry_run"]:
            before = f", instead of {binding.previous_release}" if binding.previous_release else ""
            click.echo(f"would make {binding.release} live in {binding.environment}{before}")
            _tell_difference(connection, binding)
            return
        if not response.HasField("deployment"):
            click.echo(f"{binding.release} is live in {binding.environment} already, since {when(binding.deploy_time)} UTC")
        tell_rollout(response.rollout, binding.release, binding.environment)

    show(response, options["output"], text)


def _tell_interrupted(connection: Connection, app: str, environment: str, request: Any) -> None:
    """A call that was broken off may have been carried out: what is live says so, as far as anything does."""
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    found = connection.find(stub.GetBinding, pb.GetBindingRequest(app=app, environment=environment))
    live = f"{found.binding.release} is live in {environment}, at revision {found.binding.revision}" if found else "nothing is live there"
    click.echo(f"pointsman: stopped waiting for the gateways; {live}. See pointsman status.", err=True)
    click.echo(f"The same command with --request-id {request.request_id} waits again, and changes nothing twice.", err=True)


def _tell_difference(connection: Connection, binding: pb.Binding) -> None:
    """From what is live to what would be."""
    if not binding.previous_release:
        return
    stub = releases_pb2_grpc.ReleaseServiceStub(connection.channel)
    request = releases_pb2.DiffReleasesRequest(app=binding.app, from_release=binding.previous_release, to_release=binding.release)
    tell_changes(connection.call(stub.DiffReleases, request).changes)


@click.command()
@click.argument("tag", type=TAG)
@click.option("--to", "environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where.")
@change_options
def deploy(tag: str, environment: str, **options: Any) -> None:
    """Make release TAG live in an environment.

    Example: pointsman --app shop deploy v1.0.0 --to staging --reason "first try"
    """
    _carry_out(options, lambda app, common: ("Deploy", pb.DeployRequest(app=app, environment=environment, release=tag, **common)))


@click.command()
@click.option("--from", "from_environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where the release is live.")
@click.option("--to", "to_environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where it shall be.")
@change_options
def promote(from_environment: str, to_environment: str, **options: Any) -> None:
    """Make what is live in one environment live in another.

    Example: pointsman --app shop promote --from staging --to production --reason "verified"
    """

    def make(app: str, common: dict[str, Any]) -> tuple[str, Any]:
        return "Promote", pb.PromoteRequest(app=app, from_environment=from_environment, to_environment=to_environment, **common)

    _carry_out(options, make)


@click.command()
@click.argument("environment", type=ENVIRONMENT)
@click.option("--to", "to_release", type=TAG, default="", metavar="TAG", help="Any release that was once live there. [the one before]")
@change_options
def rollback(environment: str, to_release: str, **options: Any) -> None:
    """Make an earlier release live again.

    Example: pointsman --app shop rollback production --reason "answers are wrong"
    """

    def make(app: str, common: dict[str, Any]) -> tuple[str, Any]:
        return "Rollback", pb.RollbackRequest(app=app, environment=environment, to_release=to_release, **common)

    _carry_out(options, make)


@click.command()
@click.argument("environment", type=ENVIRONMENT, default="")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many of the newest.")
@server_options()
@output_option
def history(environment: str, limit: int, server: str | None, app: str | None, output: str) -> None:
    """Show what was live when, newest first, by whom and why.

    Example: pointsman --app shop history production
    """
    connection = Connection("server", server)
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    request = pb.ListDeploymentsRequest(app=app or only_app(connection), environment=environment, page_size=limit)
    response = connection.call(stub.ListDeployments, request)
    rows = [
        (
            when(entry.create_time),
            entry.environment,
            pb.Deployment.Action.Name(entry.action) + (" (forced)" if entry.forced else ""),
            entry.release,
            entry.previous_release or "-",
            str(entry.revision),
            entry.actor,
            short(entry.reason),
        )
        for entry in response.deployments
    ]
    headings = ("WHEN (UTC)", "ENVIRONMENT", "ACTION", "RELEASE", "BEFORE", "REVISION", "BY", "REASON")
    show(response, output, lambda: table(headings, rows, "Nothing was ever deployed there."))
