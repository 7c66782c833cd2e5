"""JWTs as a second kind of credential, on both planes: whose count, and who a caller is that shows one.

Knows no cryptography: that is in jwt_keys.py and jwt_judge.py, which need the extra `jwt` and are loaded only where JWTs are configured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from pointsman.settings import Address, is_loopback

PREFIX = "jwt:"
DEFAULT_PORTS = {"https": 443, "http": 80}

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class JwtError(Exception):
    """JWTs cannot be judged by these settings; the message is one line for the person who started the server."""


class JwtRules(msgspec.Struct, frozen=True, kw_only=True):
    """Whose JWTs count, `issuer`; whom they must be for; where their keys are, a URL or a path; and the names of the claims."""

    issuer: str
    audience: str
    jwks: str
    role_claim: str
    apps_claim: str
    environments_claim: str

    @property
    def is_url(self) -> bool:
        """Whether the keys come over the network."""
        return "://" in self.jwks


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Who shows a JWT, and what it allows. Empty `apps`, `environments`: all. `expire_time` is a time.time()."""

    subject: str
    role: str
    apps: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    expire_time: float

    @property
    def identity(self) -> str:
        """As history, audit log and executions name the caller."""
        return PREFIX + self.subject


class Jwts(Protocol[P_co]):
    """Judges JWTs, from memory alone."""

    def caller(self, text: str) -> P_co:
        """Who shows this text.

        Raises:
            Unauthenticated: it is no JWT that counts.
            PermissionDenied: it counts, and its claims give no role, or limits that cannot be read.
        """
        ...


def jwt_rules(*, issuer: str, audience: str, jwks: str, claims: tuple[str, str, str], insecure: bool) -> JwtRules | None:
    """Of the settings --jwt-...; None when there are none. `claims` are the names of those for the role, apps, environments.

    Raises:
        JwtError: one is missing, or the keys would come over a network on which somebody could exchange them.
    """
    given = {"--jwt-issuer": issuer, "--jwt-audience": audience, "--jwt-jwks": jwks}
    if not any(given.values()):
        return None
    missing = [flag for flag, value in given.items() if not value]
    if missing:
        raise JwtError(f"JWTs need {' and '.join(missing)} too")
    if not all(claims) or len(set(claims)) < len(claims):
        raise JwtError(f"the claims of JWTs must have three different names, not {', '.join(map(repr, claims))}")
    role, apps, environments = claims
    rules = JwtRules(issuer=issuer, audience=audience, jwks=jwks, role_claim=role, apps_claim=apps, environments_claim=environments)
    if rules.is_url:
        _check_url(jwks, insecure=insecure)
    return rules


def _check_url(url: str, *, insecure: bool) -> None:
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError as error:
        raise JwtError(f"--jwt-jwks {url!r} is no URL: {error}") from None
    if found.scheme not in DEFAULT_PORTS or not found.hostname:
        raise JwtError(f"--jwt-jwks {url!r} is neither a file nor a URL such as https://issuer.example.com/.well-known/jwks.json")
    if found.username is not None or found.password is not None:
        raise JwtError(f"--jwt-jwks has a name or password before {found.hostname}: a JWKS is public; leave them out")
    if found.scheme == "http" and not insecure and not is_loopback(Address(found.hostname, port or DEFAULT_PORTS["http"])):
        raise JwtError(
            f"--jwt-jwks {url!r}: whoever sits between could give keys of their own; take https, a file, or start with --insecure"
        )


@contextlib.asynccontextmanager
async def open_jwts(rules: JwtRules | None, principal: Callable[[Subject], P]) -> AsyncIterator[Jwts[P] | None]:
    """What judges callers' JWTs while this is open, as `principal` makes them of subjects; None without rules.

    Raises:
        JwtError: the extra is not installed, or a file of keys cannot be used. For an issuer that does not answer nothing waits.
    """
    if rules is None:
        yield None
        return
    try:
        from pointsman.jwt_judge import JwtJudge
        from pointsman.jwt_keys import JwtKeys
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("joserfc", "cryptography"):
            raise
        raise JwtError("--jwt-issuer: the extra jwt is not installed: pip install 'pointsman[jwt]'") from None
    keys = JwtKeys(rules)
    await keys.start()
    refreshing = asyncio.create_task(keys.run(), name="keys of JWTs")
    try:
        yield JwtJudge(rules, keys, principal)
    finally:
        refreshing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await refreshing
