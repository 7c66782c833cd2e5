"""How commands talk to the servers: one place for addresses, deadlines, who is asking, and what a refusal looks like on stderr.

Exit status: 0 done, 1 refused (the reason is printed), 2 usage, 3 unreachable.
"""

from __future__ import annotations

import functools
import getpass
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import click
import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pointsman.v1 import apps_pb2, apps_pb2_grpc

CALL_SECONDS = 30.0
REFUSED, UNREACHABLE = 1, 3
SERVERS = {
    "server": ("POINTSMAN_SERVER", "localhost:7400", "pointsman control-plane"),
    "gateway": ("POINTSMAN_GATEWAY", "localhost:7500", "pointsman gateway"),
}

F = TypeVar("F", bound=Callable[..., Any])


class Connection:
    """A channel to one server; `what` is `server` (the control plane) or `gateway`."""

    def __init__(self, what: str, address: str | None) -> None:
        variable, default, self._starts_with = SERVERS[what]
        self.address = address or os.environ.get(variable) or default
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1)])

    def call(self, method: Any, request: Message, seconds: float = CALL_SECONDS) -> Any:
        """The response; a refusal or an unreachable server ends the command."""
        try:
            return method(request, timeout=seconds, metadata=metadata())
        except grpc.RpcError as error:
            self.fail(error)

    def stream(self, method: Any, request: Message) -> Iterator[Any]:
        """The responses of a stream, as they come. Raises grpc.RpcError."""
        yield from method(request, metadata=metadata())

    def fail(self, error: grpc.RpcError) -> NoReturn:
        """Says why on stderr and ends the command."""
        call: Any = error  # an RpcError that a call raises is that call
        status = rpc_status.from_call(call)
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            for known in (info, bad):
                if detail.Is(known.DESCRIPTOR):
                    detail.Unpack(known)
        code, message = call.code(), call.details() or ""
        if info.reason:
            refuse(info.reason, message, [(v.field, v.description) for v in bad.field_violations])
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            why = "gave no answer in time" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "cannot be reached"
            click.echo(f"pointsman: {self.address} {why}. Is it running? It starts with `{self._starts_with}`.", err=True)
            sys.exit(UNREACHABLE)
        refuse(code.name, message, [])


def refuse(reason: str, message: str, violations: list[tuple[str, str]]) -> NoReturn:
    """`REASON: message` on stderr, then a line for each violation when there are several; exit status 1."""
    if len(violations) > 1:
        click.echo(f"{reason}: {len(violations)} violations", err=True)
        for field, description in violations:
            click.echo(f"  {field}: {description}" if field else f"  {description}", err=True)
    else:
        click.echo(f"{reason}: {message}", err=True)
    sys.exit(REFUSED)


@functools.cache
def metadata() -> tuple[tuple[str, str], ...]:
    """The token, when there is one, and who is asking: servers without tokens write that down."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    found = [("x-actor", f"{user}@{socket.gethostname()}".encode("ascii", "replace").decode())]
    token = os.environ.get("POINTSMAN_TOKEN")
    if token:
        found.append(("authorization", f"Bearer {token}"))
    return tuple(found)


def new_request_id() -> str:
    """For a mutation: a repeat of the same call is then answered as the first was."""
    return str(uuid.uuid4())


def only_app(connection: Connection) -> str:
    """The app when there is exactly one; else a usage error that names them."""
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    apps = [app.app for app in connection.call(stub.ListApps, apps_pb2.ListAppsRequest(page_size=20)).apps]
    if len(apps) == 1:
        return str(apps[0])
    there = f"there are {', '.join(apps)}" if apps else "there is none yet: `pointsman --app NAME app push FILE` makes one"
    raise click.UsageError(f"Which app? Name it with --app or POINTSMAN_APP; {there}.")


def server_options(*, app: bool = True, gateway: bool = False) -> Callable[[F], F]:
    """Adds --server, and --app and --gateway where they are wanted."""

    def decorate(command: F) -> F:
        options = [click.option("--server", metavar="HOST:PORT", help="Control plane; also POINTSMAN_SERVER. [localhost:7400]")]
        if gateway:
            options = [click.option("--gateway", metavar="HOST:PORT", help="Gateway; also POINTSMAN_GATEWAY. [localhost:7500]")]
        if app:
            options.append(click.option("--app", envvar="POINTSMAN_APP", help="App; also POINTSMAN_APP. [the only one there is]"))
        decorated: Any = command
        for option in options:
            decorated = option(decorated)
        found: F = decorated
        return found

    return decorate
