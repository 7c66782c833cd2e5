"""pointsman release ...: immutable snapshots of an app."""

from __future__ import annotations

from typing import Any

import click

from control_plane.cli.changes import tell_changes
from control_plane.cli.client import Connection, new_request_id, only_app, server_options
from control_plane.cli.names import ENVIRONMENT, TAG
from control_plane.cli.output import counted, output_option, print_config, short, show, when
from control_plane.cli.rollout import tell_rollout
from control_plane.cli.tables import table
from pointsman.v1 import releases_pb2 as pb
from pointsman.v1 import releases_pb2_grpc

DEPLOY_SECONDS = PRUNE_SECONDS = 60.0
NO_RELEASE = "App {} has no release yet. Make one: pointsman release create TAG"


@click.group("release")
def command() -> None:
    """Immutable snapshots of an app, each under a tag."""


def _open(server: str | None, app: str | None) -> tuple[Connection, Any, str]:
    connection = Connection("server", server)
    return connection, releases_pb2_grpc.ReleaseServiceStub(connection.channel), app or only_app(connection)


@command.command()
@click.argument("tag")
@click.option("--description", default="", help="What is in it, for people.")
@click.option("--deploy-to", type=ENVIRONMENT, default="", metavar="ENVIRONMENT", help="Deploy it there in the same call.")
@click.option("--dry-run", is_flag=True, help="Check only; store nothing.")
@server_options()
@output_option
def create(tag: str, description: str, deploy_to: str, dry_run: bool, server: str | None, app: str | None, output: str) -> None:
    """Freeze the draft as release TAG.

    Example: pointsman --app shop release create v1.0.0 --description "First one" --deploy-to staging
    """
    connection, stub, name = _open(server, app)
    request = pb.CreateReleaseRequest(
        app=name, tag=tag, description=description, deploy_to=deploy_to, request_id=new_request_id(), validate_only=dry_run
    )
    response = connection.call(stub.CreateRelease, request, DEPLOY_SECONDS)

    def text() -> None:
        release = response.release
        click.echo(f"release {release.tag} of {name} {'would be' if dry_run else 'is'} {release.digest}, {release.size_bytes} bytes")
        if response.HasField("rollout"):
            tell_rollout(response.rollout, tag, deploy_to)

    show(response, output, text)


@command.command("list")
@click.option("--search", default="", metavar="TEXT", help="Only those with it in their tag, description, digest or author.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many of the newest.")
@server_options()
@output_option
def list_releases(search: str, limit: int, server: str | None, app: str | None, output: str) -> None:
    """List the releases, newest first.

    Example: pointsman --app shop release list --search friendlier
    """
    connection, stub, name = _open(server, app)
    request = pb.ListReleasesRequest(app=name, page_size=limit)
    if search:
        response = _found(connection.every(stub.ListReleases, request, "releases"), search, limit)
    else:
        response = connection.call(stub.ListReleases, request)
    rows = [
        (
            release.tag,
            pb.Release.State.Name(release.state),
            ", ".join(release.environments) or "-",
            when(release.create_time),
            release.created_by,
            release.digest[7:19],
            short(release.description),
        )
        for release in response.releases
    ]
    headings = ("TAG", "STATE", "ENVIRONMENTS", "CREATED (UTC)", "BY", "DIGEST", "DESCRIPTION")
    empty = f"No release of {name} has {search!r} in its tag, description, digest or author." if search else NO_RELEASE.format(name)
    show(response, output, lambda: table(headings, rows, empty))


def _found(response: pb.ListReleasesResponse, search: str, limit: int) -> pb.ListReleasesResponse:
    """As the console searches: without regard to case."""
    wanted = search.casefold()
    texts = ((one, (one.tag, one.description, one.digest, one.created_by)) for one in response.releases)
    found = [one for one, parts in texts if any(wanted in part.casefold() for part in parts)]
    return pb.ListReleasesResponse(releases=found[:limit])


@command.command("show")
@click.argument("tag", type=TAG)
@server_options()
@output_option
def show_release(tag: str, server: str | None, app: str | None, output: str) -> None:
    """Show release TAG with its whole config.

    Example: pointsman --app shop release show v1.0.0
    """
    connection, stub, name = _open(server, app)
    response = connection.call(stub.GetRelease, pb.GetReleaseRequest(app=name, tag=tag, view=pb.Release.FULL))

    def text() -> None:
        release = response.release
        click.echo(f"# release {release.tag} of {name}: {pb.Release.State.Name(release.state)} {', '.join(release.environments)}".rstrip())
        click.echo(f"# {release.digest}, {release.size_bytes} bytes, by {release.created_by} at {when(release.create_time)} UTC")
        if release.description:
            click.echo(f"# {short(release.description)}")
        print_config(release.config)

    show(response, output, text)


@command.command("diff", short_help="Tell what changed from one release to another.")
@click.argument("from_release", type=TAG)
@click.argument("to_release", type=TAG, default="")
@server_options()
@output_option
def diff_releases(from_release: str, to_release: str, server: str | None, app: str | None, output: str) -> None:
    """Tell what changed from one release to another, or to the draft when only one is named.

    Example: pointsman --app shop release diff v1.0.0 v1.1.0
    """
    connection, stub, name = _open(server, app)
    response = connection.call(stub.DiffReleases, pb.DiffReleasesRequest(app=name, from_release=from_release, to_release=to_release))

    def text() -> None:
        if not response.changes:
            click.echo(f"no changes from {from_release} to {to_release or 'the draft'}")
        tell_changes(response.changes)

    show(response, output, text)


@command.command("prune", short_help="Delete releases that are old and out of use.")
@click.option("--keep-last", type=click.IntRange(1), required=True, metavar="N", help="Keep the N newest releases, in use or not.")
@click.option(
    "--keep-deployments", type=click.IntRange(1), metavar="M", help="Keep what was live in the last M deployments of any environment. [10]"
)
@click.option("--yes", is_flag=True, help="Delete them; without it they are only shown.")
@server_options()
@output_option
def prune_releases(keep_last: int, keep_deployments: int | None, yes: bool, server: str | None, app: str | None, output: str) -> None:
    """Delete releases that are old and out of use; what is live is never touched.

    Example: pointsman --app shop release prune --keep-last 50
    """
    connection, stub, name = _open(server, app)
    found = pb.PruneReleasesResponse(more=True)
    while found.more:
        request = pb.PruneReleasesRequest(
            app=name, keep_newest=keep_last, keep_deployed=keep_deployments, request_id=new_request_id(), validate_only=not yes
        )
        page = connection.call(stub.PruneReleases, request, PRUNE_SECONDS)
        found.releases.extend(page.releases)
        found.freed_bytes += page.freed_bytes
        found.more = page.more
        if not yes:
            break

    def text() -> None:
        rows = [(release.tag, when(release.create_time), release.created_by, release.digest[7:19]) for release in found.releases]
        table(("TAG", "CREATED (UTC)", "BY", "DIGEST"), rows, f"App {name} has no release that may go.")
        if rows:
            count = f"{'more than ' if found.more else ''}{counted(len(rows), 'release')}"
            done = "deleted" if yes else "would be deleted; call it with --yes to do so"
            click.echo(f"\n{count}, {found.freed_bytes} bytes: {done}")

    show(found, output, text)
