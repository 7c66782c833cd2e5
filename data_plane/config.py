"""The settings of a gateway."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import click

from data_plane.executions import Capture
from data_plane.hosts import HostPolicy
from pointsman.jwt import JwtRules, jwt_rules
from pointsman.logs import FORMATS
from pointsman.rules import PATTERNS
from pointsman.settings import FILE, Address, setting
from pointsman.tls import ClientTls, client_tls

MAX_WORKERS = 64
_ID = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
_GATEWAY_ID = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Matching(click.ParamType[str]):
    """Text that matches a pattern of the contract: what the control plane would refuse is refused at the start."""

    name = "text"

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with what it must be."""
        if not re.search(self._pattern, str(value)):
            self.fail(f"{str(value)!r} must be {PATTERNS[self._pattern]}", param, ctx)
        return str(value)


class Addresses(click.ParamType[str]):
    """host:port, or several of them separated by commas."""

    name = "host:port,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with the one that is wrong."""
        try:
            parse_addresses(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class AllowedHost(click.ParamType[str]):
    """An entry of a HostPolicy."""

    name = "host"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with what an entry may be."""
        try:
            HostPolicy([str(value)])
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


@dataclass(frozen=True)
class Settings:
    """Read once, at the start."""

    control_plane: str = setting(
        "127.0.0.1:7400", "Address of the control plane; several, separated by commas, are tried in turn.", kind=Addresses()
    )
    listen: Address = setting(Address("127.0.0.1", 7500), "Address of gRPC; port 0 picks a free one.")
    http: Address = setting(Address("127.0.0.1", 7580), "Address of HTTP; port 0 picks a free one.")
    tls_certificate: Path | None = setting(
        None, "PEM file with the certificate of both ports, and its chain: they then speak TLS alone.", kind=FILE
    )
    tls_key: Path | None = setting(None, "PEM file with the key of --tls-certificate.", kind=FILE)
    tls_client_ca: Path | None = setting(
        None, "PEM file with the authorities of which callers must show a certificate (mTLS); absent: they need none.", kind=FILE
    )
    control_plane_ca: Path | None = setting(
        None, "PEM file with the authority of the control plane's certificate: it is then spoken to over TLS.", kind=FILE
    )
    control_plane_certificate: Path | None = setting(
        None, "PEM file with the certificate to show to the control plane; its name must be --gateway-id.", kind=FILE
    )
    control_plane_key: Path | None = setting(None, "PEM file with the key of --control-plane-certificate.", kind=FILE)
    jwt_issuer: str = setting("", "Whose JWTs count, beside tokens: their `iss`; absent: nobody's.")
    jwt_audience: str = setting("", "For whom they must be made: in their `aud`.")
    jwt_jwks: str = setting("", "The issuer's public keys, a JWKS: an https URL, or a file.")
    jwt_role_claim: str = setting("pointsman_role", "Claim that names the role of who shows a JWT.")
    jwt_apps_claim: str = setting("pointsman_apps", "Claim with the apps that a JWT is for; one without it is for all.")
    jwt_environments_claim: str = setting(
        "pointsman_environments", "Claim with the environments that a JWT is for; one without it is for all."
    )
    state_dir: Path | None = setting(
        None, "Folder for the last good state, to start without a control plane; absent: nothing is kept.", kind=click.Path(path_type=Path)
    )
    gateway_id: str = setting(
        socket.gethostname(), "Name of this gateway in rollouts and answers; absent: the host's name.", kind=Matching(_GATEWAY_ID)
    )
    app: tuple[str, ...] = setting((), "Serve only this app; may be repeated; absent: all.", kind=Matching(_ID))
    environment: tuple[str, ...] = setting((), "Serve only this environment; may be repeated; absent: all.", kind=Matching(_ID))
    default_environment: str = setting("production", "Environment of a trigger that names none.", kind=Matching(_ID))
    workers: int = setting(1, "Processes that share the ports, each with a stream of its own.", kind=click.IntRange(1, MAX_WORKERS))
    secrets_dir: Path | None = setting(
        None,
        "Folder with a file for each secret that is not in a variable POINTSMAN_SECRET_<NAME>.",
        kind=click.Path(exists=True, file_okay=False, path_type=Path),
    )
    allow_host: tuple[str, ...] = setting(
        (),
        "A host that tools and models may be on: name, *.suffix, address, network, * (public addresses); may be repeated; absent: *.",
        kind=AllowedHost(),
    )
    capture: str = setting(
        "errors", "Of which executions inputs and outputs are put on record.", kind=click.Choice([choice.value for choice in Capture])
    )
    spool_mib: int = setting(
        256, "How much of the record may wait for the control plane, in MiB; without --state-dir at most 16.", kind=click.IntRange(1, 65536)
    )
    otel: bool = setting(
        default=False,
        description="Export OpenTelemetry spans; without it only when OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra is there.",
    )
    token: str = setting("", "Token of the role GATEWAY to show to the control plane; better as a variable than as a flag.", secret=True)
    log_format: str = setting("text", "How the log on stderr is written, `text` or `json`, an object a line.", kind=click.Choice(FORMATS))
    insecure: bool = setting(
        default=False, description="Let everybody in from other machines too, as long as there are no tokens; for trying things out."
    )
    drain_delay_seconds: float = setting(
        0.0, "How long to go on serving after SIGTERM, unready, so that load balancers notice.", kind=click.FloatRange(0, 3600)
    )
    drain_seconds: float = setting(30.0, "How long running triggers may go on after that.", kind=click.FloatRange(0, 3600))

    def control_planes(self) -> list[Address]:
        """In the order in which they are tried."""
        return parse_addresses(self.control_plane)

    def control_plane_tls(self) -> ClientTls | None:
        """How they are spoken to; None: in plain text. Raises TlsError."""
        return client_tls("--control-plane-", self.control_plane_certificate, self.control_plane_key, self.control_plane_ca)

    def jwt_rules(self) -> JwtRules | None:
        """Whose JWTs count; None: nobody's. Raises JwtError."""
        return jwt_rules(
            issuer=self.jwt_issuer,
            audience=self.jwt_audience,
            jwks=self.jwt_jwks,
            claims=(self.jwt_role_claim, self.jwt_apps_claim, self.jwt_environments_claim),
            insecure=self.insecure,
        )


def parse_addresses(text: str) -> list[Address]:
    """Raises ValueError when one of them is not host:port."""
    return [Address.parse(part) for part in text.split(",")]
