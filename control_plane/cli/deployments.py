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
from control_plane.cli.names import ENVIRONMENT, RELEASE, TAG
from control_plane.cli.output import REFUSED, output_option, short, show, when
from control_plane.cli.progress import told_live
from control_plane.cli.rollout import tell_rollout
from control_plane.cli.tables import table
from control_plane.cli.together import releases_by_app
from pointsman.v1 import deployments_pb2 as pb
from pointsman.v1 import deployments_pb2_grpc, releases_pb2, releases_pb2_grpc

# On top of what the server itself may wait for gateways.
CALL_SECONDS = 30.0
DEFAULT_WAIT_SECONDS = 5.0
Request = pb.DeployRequest | pb.DeployManyRequest | pb.PromoteRequest | pb.RollbackRequest


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


def _carry_out(options: dict[str, Any], make: Callable[[str, dict[str, Any]], Request]) -> None:
    """Makes the call with the request that `make` gives for the app, and tells what came of it."""
    connection = Connection("server", options["server"])
    app = options["app"] or only_app(connection)
    _call(connection, make(app, _common(options)), options)


def _call(connection: Connection, request: Request, options: dict[str, Any]) -> None:
    method = getattr(deployments_pb2_grpc.DeploymentServiceStub(connection.channel), type(request).__name__.removesuffix("Request"))
    wait = DEFAULT_WAIT_SECONDS if options["wait"] is None else options["wait"]
    try:
        with told_live(connection, *_wanted(request), options["output"]):
            response = connection.call(method, request, wait + CALL_SECONDS, said=lambda text: _by_app(request, text))
    except KeyboardInterrupt:
        _tell_interrupted(connection, request)
        sys.exit(REFUSED)
    show(response, options["output"], lambda: _tell(connection, response, dry_run=options["dry_run"]))


def _wanted(request: Request) -> tuple[dict[str, str], str]:
    """The release that is wanted of each app, empty where the server decides, and the environment that changes."""
    if isinstance(request, pb.DeployManyRequest):
        return {target.app: target.release for target in request.targets}, request.targets[0].environment
    if isinstance(request, pb.DeployRequest):
        return {request.app: request.release}, request.environment
    return {request.app: ""}, request.to_environment if isinstance(request, pb.PromoteRequest) else request.environment


def _by_app(request: Request, text: str) -> str:
    """A refusal of one of several releases names it as it was written."""
    targets = request.targets if isinstance(request, pb.DeployManyRequest) else []
    for index, target in enumerate(targets):
        text = text.replace(f"targets[{index}].", f"{target.app}={target.release}: ")
    return text


def _tell(connection: Connection, response: Any, *, dry_run: bool) -> None:
    """The verdict; where several apps may be meant, each release with its app."""
    many = isinstance(response, pb.DeployManyResponse)
    bindings = response.bindings if many else [response.binding]
    if many:
        changed = {entry.app for entry in response.deployments}
    else:
        changed = {response.binding.app} if response.HasField("deployment") else set()
    names = [f"{binding.app}={binding.release}" if many else binding.release for binding in bindings]
    for name, binding in zip(names, bindings, strict=True):
        if dry_run and binding.app in changed:
            before = f", instead of {binding.previous_release}" if binding.previous_release else ""
            click.echo(f"would make {name} live in {binding.environment}{before}")
            _tell_difference(connection, binding)
        elif dry_run:
            click.echo(f"nothing would change: {name} is live in {binding.environment} already")
        elif binding.app not in changed:
            click.echo(f"{name} is live in {binding.environment} already, since {when(binding.deploy_time)} UTC")
    if not dry_run:
        tell_rollout(response.rollout, ", ".join(names), bindings[0].environment)


def _tell_interrupted(connection: Connection, request: Request) -> None:
    """A call that was broken off may have been carried out: what is live says so, as far as anything does."""
    stub = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
    wanted, environment = _wanted(request)
    live = []
    for app in wanted:
        found = connection.find(stub.GetBinding, pb.GetBindingRequest(app=app, environment=environment))
        of_app = f"{app}=" if isinstance(request, pb.DeployManyRequest) else ""
        if found:
            live.append(f"{of_app}{found.binding.release} is live in {environment}, at revision {found.binding.revision}")
        else:
            live.append(f"nothing of {app} is live there" if of_app else "nothing is live there")
    click.echo(f"pointsman: stopped waiting for the gateways; {', '.join(live)}. See pointsman status.", err=True)
    click.echo(f"The same command with --request-id {request.request_id} waits again, and changes nothing twice.", err=True)


def _tell_difference(connection: Connection, binding: pb.Binding) -> None:
    """From what is live to what would be."""
    if not binding.previous_release:
        return
    stub = releases_pb2_grpc.ReleaseServiceStub(connection.channel)
    request = releases_pb2.DiffReleasesRequest(app=binding.app, from_release=binding.previous_release, to_release=binding.release)
    tell_changes(connection.call(stub.DiffReleases, request).changes)


@click.command()
@click.argument("releases", type=RELEASE, nargs=-1, required=True, metavar="TAG | APP=TAG...")
@click.option("--to", "environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where.")
@change_options
def deploy(releases: tuple[str, ...], environment: str, **options: Any) -> None:
    """Make release TAG live in an environment, or releases of several apps at the same moment: all of them, or none.

    Example: pointsman --app shop deploy v1.0.0 --to staging --reason "first try"
      pointsman deploy shop=v42 search=v7 --to production --reason "the new search"
    """
    by_app = releases_by_app(releases, options["expected_revision"])
    if not by_app:
        _carry_out(options, lambda app, common: pb.DeployRequest(app=app, environment=environment, release=releases[0], **common))
        return
    common = _common(options)
    expected = common.pop("expected_revision")
    request = pb.DeployManyRequest(**common)
    for app, tag in by_app.items():
        request.targets.add(app=app, environment=environment, release=tag, expected_revision=expected)
    _call(Connection("server", options["server"]), request, options)


@click.command()
@click.option("--from", "from_environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where the release is live.")
@click.option("--to", "to_environment", type=ENVIRONMENT, required=True, metavar="ENVIRONMENT", help="Where it shall be.")
@change_options
def promote(from_environment: str, to_environment: str, **options: Any) -> None:
    """Make what is live in one environment live in another.

    Example: pointsman --app shop promote --from staging --to production --reason "verified"
    """

    def make(app: str, common: dict[str, Any]) -> Request:
        return pb.PromoteRequest(app=app, from_environment=from_environment, to_environment=to_environment, **common)

    _carry_out(options, make)


@click.command()
@click.argument("environment", type=ENVIRONMENT)
@click.option("--to", "to_release", type=TAG, default="", metavar="TAG", help="Any release that was once live there. [the one before]")
@change_options
def rollback(environment: str, to_release: str, **options: Any) -> None:
    """Make an earlier release live again.

    Example: pointsman --app shop rollback production --reason "answers are wrong"
    """

    def make(app: str, common: dict[str, Any]) -> Request:
        return pb.RollbackRequest(app=app, environment=environment, to_release=to_release, **common)

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
