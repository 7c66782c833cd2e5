"""pointsman token ...: who may do what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from control_plane.cli.client import Connection, new_request_id, server_options
from control_plane.cli.durations import DURATION
from control_plane.cli.names import ENDPOINT, ENVIRONMENT
from control_plane.cli.output import harmless, output_option, show, when
from control_plane.cli.tables import table
from pointsman.v1 import tokens_pb2 as pb
from pointsman.v1 import tokens_pb2_grpc

ROLES = ("viewer", "developer", "deployer", "trigger", "gateway", "admin")
_PASS_ALL = {"ignore_unknown_options": True, "help_option_names": []}


@click.group("token")
def command() -> None:
    """Who may do what. From the first token on every call needs one, in POINTSMAN_TOKEN."""


@command.command(context_settings=_PASS_ALL, short_help="Make the first admin token.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bootstrap(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Make the first admin token, on the store's machine, and print its secret once.

    Example: pointsman token bootstrap --store sqlite:///pointsman.db
    """
    from control_plane.cli import become

    output = ctx.find_root().params.get("output")
    become("control_plane.maintenance", ("token", "bootstrap", *(["-o", output] if output else []), *arguments))


def _open(server: str | None) -> tuple[Connection, Any]:
    connection = Connection("server", server)
    return connection, tokens_pb2_grpc.TokenServiceStub(connection.channel)


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it allows.")
@click.option("--for-app", "apps", multiple=True, metavar="APP", help="Only for this app; may be repeated. [all]")
@click.option(
    "--environment",
    "environments",
    type=ENVIRONMENT,
    multiple=True,
    metavar="NAME",
    help="Only in this environment; may be repeated. [all]",
)
@click.option("--endpoint", "endpoints", type=ENDPOINT, multiple=True, metavar="PATH", help="Only this endpoint; may be repeated. [all]")
@click.option("--rate", type=click.FloatRange(0, 1_000_000, min_open=True), help="Triggers a second, to each gateway. [unlimited]")
@click.option("--burst", type=click.IntRange(1, 1_000_000), help="How many of them at once. [as many as in a second]")
@click.option("--expires-in", type=DURATION, help="After that it allows nothing, such as 720h. [never]")
@server_options(app=False)
@output_option
def create(
    name: str,
    role: str,
    apps: tuple[str, ...],
    environments: tuple[str, ...],
    endpoints: tuple[str, ...],
    rate: float | None,
    burst: int | None,
    expires_in: float | None,
    server: str | None,
    output: str,
) -> None:
    """Make a token and print its secret, once.

    Example: pointsman token create ci --role deployer --environment staging
    """
    if burst is not None and rate is None:
        raise click.UsageError("--burst needs --rate")
    connection, stub = _open(server)
    request = pb.CreateTokenRequest(
        name=name,
        role=pb.Token.Role.Value(role.upper()),
        apps=apps,
        environments=environments,
        endpoints=endpoints,
        request_id=new_request_id(),
    )
    if rate is not None:
        request.rate_limit.requests_per_second, request.rate_limit.burst = rate, burst or 0
    if expires_in is not None:
        request.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=expires_in))
    response = connection.call(stub.CreateToken, request)

    def text() -> None:
        click.echo(response.secret)
        # Beside what a script reads.
        click.echo(f"This is the secret of {name!r} ({role}), shown this once; keep it where secrets are kept.", err=True)

    show(response, output, text)


@command.command("list")
@server_options(app=False)
@output_option
def list_(server: str | None, output: str) -> None:
    """List tokens, newest first.

    Example: pointsman token list
    """
    connection, stub = _open(server)
    response = connection.every(stub.ListTokens, pb.ListTokensRequest(), "tokens")

    def text() -> None:
        rows = [
            [token.token_id, token.name, pb.Token.Role.Name(token.role).lower(), _limits(token), _used(token), _state(token)]
            for token in response.tokens
        ]
        table(["TOKEN", "NAME", "ROLE", "ONLY", "LAST USED", "STATE"], rows, "No tokens: everybody on this machine may do everything.")

    show(response, output, text)


@command.command()
@click.argument("token_id")
@server_options(app=False)
@output_option
def revoke(token_id: str, server: str | None, output: str) -> None:
    """End a token, for good and at once.

    Example: pointsman token revoke gbaxw3l2mq5n7d4k
    """
    connection, stub = _open(server)
    response = connection.call(stub.RevokeToken, pb.RevokeTokenRequest(token_id=token_id, request_id=new_request_id()))

    def text() -> None:
        rollout = response.rollout
        click.echo(
            f"{token_id} ({harmless(response.token.name)}) is revoked; {rollout.gateways_applied}/{rollout.gateways_total} gateways know"
        )
        if rollout.gateways_pending:
            click.echo(f"  not yet: {', '.join(rollout.gateways_pending)} (they are told when they are back)")

    show(response, output, text)


def _limits(token: pb.Token) -> str:
    limits = [*token.apps, *token.environments, *token.endpoints]
    if token.HasField("rate_limit"):
        limits.append(f"{token.rate_limit.requests_per_second:g}/s")
    return ", ".join(limits) or "-"


def _used(token: pb.Token) -> str:
    return when(token.last_used_time) if token.HasField("last_used_time") else "-"


def _state(token: pb.Token) -> str:
    if token.HasField("revoke_time"):
        return f"revoked {when(token.revoke_time)}"
    if not token.HasField("expire_time"):
        return "good"
    expired = token.expire_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    return f"{'expired' if expired else 'expires'} {when(token.expire_time)}"
