"""The settings of a control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from pointsman.jwt import JwtRules, jwt_rules
from pointsman.logs import FORMATS
from pointsman.settings import FILE, Address, setting


@dataclass(frozen=True)
class Settings:
    """Read once, at the start."""

    listen: Address = setting(Address("127.0.0.1", 7400), "Address of gRPC; port 0 picks a free one.")
    http: Address = setting(Address("127.0.0.1", 7480), "Address of HTTP: the console, /livez, /readyz, /metrics.")
    console_hosts: str = setting("", "Names, divided by commas, under which the console is reached, beside localhost and addresses.")
    gateway_url: str = setting("", "HTTP address of a gateway, or of the load balancer before some: where the console sends triggers.")
    gateway_ca: Path | None = setting(
        None, "PEM file with the authorities of the certificate that answers at an https --gateway-url; absent: the public ones.", kind=FILE
    )
    tls_certificate: Path | None = setting(
        None, "PEM file with the certificate of both ports, and its chain: they then speak TLS alone.", kind=FILE
    )
    tls_key: Path | None = setting(None, "PEM file with the key of --tls-certificate.", kind=FILE)
    tls_client_ca: Path | None = setting(
        None, "PEM file with the authorities of which callers must show a certificate (mTLS); absent: they need none.", kind=FILE
    )
    jwt_issuer: str = setting("", "Whose JWTs count, beside tokens: their `iss`; absent: nobody's.")
    jwt_audience: str = setting("", "For whom they must be made: in their `aud`.")
    jwt_jwks: str = setting("", "The issuer's public keys, a JWKS: an https URL, or a file.")
    jwt_role_claim: str = setting("pointsman_role", "Claim that names the role of who shows a JWT.")
    jwt_apps_claim: str = setting("pointsman_apps", "Claim with the apps that a JWT is for; one without it is for all.")
    jwt_environments_claim: str = setting(
        "pointsman_environments", "Claim with the environments that a JWT is for; one without it is for all."
    )
    store: str = setting("sqlite:///pointsman.db", "Where everything is kept: sqlite:///PATH or postgresql://...")
    prepare_timeout_seconds: float = setting(
        5.0, "How long a gateway may take to get a release ready before it is counted as pending.", kind=click.FloatRange(0.1, 300)
    )
    keep_executions_days: int = setting(30, "For how many days executions are kept.", kind=click.IntRange(1, 36_500))
    keep_executions_rows: int = setting(1_000_000, "How many executions of an environment are kept, about.", kind=click.IntRange(1))
    log_format: str = setting("text", "How the log on stderr is written, `text` or `json`, an object a line.", kind=click.Choice(FORMATS))
    insecure: bool = setting(
        default=False, description="Let everybody in from other machines too, as long as there are no tokens; for trying things out."
    )
    bootstrap_token_file: Path | None = setting(
        None, "Where the first admin token is written to, when there is no token yet.", kind=click.Path(dir_okay=False, path_type=Path)
    )
    drain_seconds: float = setting(5.0, "How long running calls may go on after SIGTERM.", kind=click.FloatRange(0, 3600))

    def jwt_rules(self) -> JwtRules | None:
        """Whose JWTs count; None: nobody's. Raises JwtError."""
        return jwt_rules(
            issuer=self.jwt_issuer,
            audience=self.jwt_audience,
            jwks=self.jwt_jwks,
            claims=(self.jwt_role_claim, self.jwt_apps_claim, self.jwt_environments_claim),
            insecure=self.insecure,
        )
