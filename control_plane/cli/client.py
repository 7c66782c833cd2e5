"""How commands talk to the servers: one place for addresses, deadlines, who is asking, and what a refusal looks like on stderr.

Exit status: 0 done, 1 refused (the reason is printed), 2 usage, 3 unreachable.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import grpc
from google.protobuf.message import Message

from control_plane.cli.names import APP
from control_plane.cli.output import refuse
from pointsman.settings import Address
from pointsman.v1 import apps_pb2, apps_pb2_grpc

if TYPE_CHECKING:
    from pointsman.tls import ClientTls

CALL_SECONDS = 30.0
UNREACHABLE = 3
SERVERS = {
    "server": ("control plane", "localhost:7400", "pointsman control-plane"),
    "gateway": ("gateway", "localhost:7500", "pointsman gateway"),
}
"""What it is, where it is by default, and the command that starts it."""
PAGE = 500
MAX_NAMED_APPS = 20
# Every mutation of the control plane carries a request_id, so none is done twice. A trigger has none, and is not repeated.
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
# A peer that vanished without a word is noticed after these; servers take pings from every 8 s on.
KEEPALIVE_TIME_MS = 15_000
KEEPALIVE_TIMEOUT_MS = 10_000

CLIENT_OPTIONS: dict[str, dict[str, Any]] = {
    "server": {"metavar": "HOST:PORT", "help": "Control plane; also POINTSMAN_SERVER. [localhost:7400]"},
    "gateway": {"metavar": "HOST:PORT", "help": "Gateway; also POINTSMAN_GATEWAY. [localhost:7500]"},
    "app": {"type": APP, "metavar": "NAME", "help": "App; also POINTSMAN_APP. [the only one there is]"},
}
TLS_OPTIONS = {
    "ca": "Authority of the server's certificate, in PEM; with it the connection is TLS. Also POINTSMAN_CA.",
    "certificate": "Certificate to show, in PEM. Also POINTSMAN_CERTIFICATE.",
    "key": "Its key, in PEM. Also POINTSMAN_KEY.",
}
F = TypeVar("F", bound=Callable[..., Any])


class Connection:
    """A channel to one server; `what` is `server` (the control plane) or `gateway`."""

    def __init__(self, what: str, address: str | None) -> None:
        self._what = what
        self._title, self._default, self._starts_with = SERVERS[what]
        self.address = address or self._default
        try:
            self._parsed = Address.parse(self.address)
        except ValueError as error:
            raise click.UsageError(f"--{what}: {error}") from None
        self._tls = _tls()
        host = self._parsed.host
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        if what == "server":
            options.append(("grpc.service_config", json.dumps(RETRIES)))
        if host in ("localhost", "::1") or host.startswith("127."):
            options.append(("grpc.enable_http_proxy", 0))
        if self._tls is None:
            self.channel = grpc.insecure_channel(self.address, options=options)
        else:
            pems = self._tls.pems
            credentials = grpc.ssl_channel_credentials(pems.ca, pems.key or None, pems.certificate or None)
            self.channel = grpc.secure_channel(self.address, credentials, options=options)

    def call(
        self,
        method: Any,
        request: Message,
        seconds: float = CALL_SECONDS,
        *,
        said: Callable[[str], str] = str,
        if_invalid: Callable[[], None] = lambda: None,
    ) -> Any:
        """The response; a refusal, put as `said`, or an unreachable server ends the command. `if_invalid` may say more of a bad request."""
        try:
            return method(request, timeout=seconds, metadata=metadata())
        except grpc.RpcError as error:
            # What is far too large gRPC itself refuses.
            if _code(error) in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
                if_invalid()
            self.fail(error, said)

    def find(self, method: Any, request: Message) -> Any | None:
        """The response, or None when there is no such thing."""
        try:
            return method(request, timeout=CALL_SECONDS, metadata=metadata())
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is grpc.StatusCode.NOT_FOUND:
                return None
            self.fail(error)

    def every(self, method: Any, request: Any, field: str) -> Any:
        """The first response of a list method with the items of all pages in it."""
        request.page_size = PAGE
        response = page = self.call(method, request)
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = self.call(method, request)
            getattr(response, field).extend(getattr(page, field))
        response.ClearField("next_page_token")
        return response

    def stream(self, method: Any, request: Message, seconds: float | None = None) -> Iterator[Any]:
        """The responses of a stream, as they come; without `seconds` for as long as it goes. Raises grpc.RpcError."""
        yield from method(request, timeout=seconds, metadata=metadata())

    def fail(self, error: grpc.RpcError, said: Callable[[str], str] = str) -> NoReturn:
        """Says why on stderr and ends the command."""
        code = _code(error)
        reason, message, violations = told(error)
        if reason != code.name:
            refuse(reason, said(message), [(said(field), description) for field, description in violations])
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                why = f"{self.address} gave no answer in time; what was asked for may be done or not: look before you repeat it"
            else:
                from control_plane.cli.unreachable import why_unreachable

                why = why_unreachable(self._parsed, self._tls, self._starts_with, self._default)
            click.echo(f"pointsman: {why}", err=True)
            sys.exit(UNREACHABLE)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            message += f" {self.address} is no {self._title}, or one of an earlier version; --{self._what} names another."
        refuse(code.name, message, [])


def _tls() -> ClientTls | None:
    """What the options and variables say. Certificates that cannot be used are wrong use."""
    root = click.get_current_context().find_root()
    files = {name: root.params.get(name) or os.environ.get(f"POINTSMAN_{name.upper()}") for name in TLS_OPTIONS}
    if not any(files.values()):
        return None
    # Takes a third as long to import as all the rest of a command.
    from pointsman.tls import TlsError, client_tls

    certificate, key, ca = (Path(path) if (path := files[name]) else None for name in ("certificate", "key", "ca"))
    try:
        return client_tls("--", certificate, key, ca)
    except TlsError as error:
        raise click.UsageError(str(error)) from None


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    call: Any = error  # an RpcError that a call raises is that call
    found: grpc.StatusCode = call.code()
    return found


def told(error: grpc.RpcError) -> tuple[str, str, list[tuple[str, str]]]:
    """Reason, message and (field, description) of each violation. Where no server of ours refused, the reason is the gRPC code's name."""
    # Most commands are not refused.
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    call: Any = error
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        for known in (info, bad):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    violations = [(v.field, v.description) for v in bad.field_violations]
    return info.reason or _code(error).name, call.details() or "", violations


@functools.cache
def metadata() -> tuple[tuple[str, str], ...]:
    """The token, when there is one, and who is asking: servers without tokens write that down."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    found = [("x-actor", f"{user}@{socket.gethostname()}".encode("ascii", "replace").decode())]
    token = os.environ.get("POINTSMAN_TOKEN", "").strip()
    if token:
        if not (token.isascii() and token.isprintable()):
            raise click.UsageError("POINTSMAN_TOKEN has characters that no token has")
        found.append(("authorization", f"Bearer {token}"))
    return tuple(found)


def new_request_id() -> str:
    """For a mutation: a repeat of the same call is then answered as the first was."""
    return str(uuid.uuid4())


def only_app(connection: Connection) -> str:
    """The app when there is exactly one; else a usage error that names them."""
    stub = apps_pb2_grpc.AppServiceStub(connection.channel)
    apps = [app.app for app in connection.call(stub.ListApps, apps_pb2.ListAppsRequest(page_size=MAX_NAMED_APPS + 1)).apps]
    if len(apps) == 1:
        return str(apps[0])
    named = ", ".join(apps[:MAX_NAMED_APPS]) + (", ..." if len(apps) > MAX_NAMED_APPS else "")
    there = f"there are {named}" if apps else "there is none yet: `pointsman --app NAME app push FILE` makes one"
    raise click.UsageError(f"Which app? Name it with --app or POINTSMAN_APP; {there}.")


def client_setting(name: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback of an option: its own value, else the one given before the command, else the variable's."""

    def resolve(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
        before = ctx.find_root().params.get(name)
        return value or before or os.environ.get(f"POINTSMAN_{name.upper()}") or None

    return resolve


def _to_root(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """As if it stood before the command, where every connection finds it."""
    if value is not None and parameter.name is not None:
        ctx.find_root().params[parameter.name] = value


def server_options(*, app: bool = True, gateway: bool = False, server: bool | None = None) -> Callable[[F], F]:
    """Adds --server, or --gateway, or both when both are asked for; --app where it is wanted; and what TLS needs."""

    def decorate(command: F) -> F:
        wanted = {"app": app, "gateway": gateway, "server": not gateway if server is None else server}
        names = [name for name in ("gateway", "server", "app") if wanted[name]]
        decorated: Any = command
        for name in names:
            decorated = click.option(f"--{name}", callback=client_setting(name), **CLIENT_OPTIONS[name])(decorated)
        for name, description in reversed(TLS_OPTIONS.items()):
            decorated = click.option(f"--{name}", metavar="FILE", help=description, expose_value=False, callback=_to_root)(decorated)
        found: F = decorated
        return found

    return decorate
