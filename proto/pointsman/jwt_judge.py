"""Judges JWTs: signature, issuer, audience and times first, then what the claims allow. What was judged once is remembered for a while."""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, NoReturn

import msgspec
import structlog
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry, deserialize_compact
from joserfc.util import urlsafe_b64decode

from pointsman.errors import PermissionDenied, Unauthenticated
from pointsman.jwt import PREFIX, JwtRules, P, Subject
from pointsman.jwt_keys import ALGORITHMS, JwtKeys
from pointsman.v1.tokens_pb2 import Token

MAX_BYTES = 8 * 1024
LEEWAY_SECONDS = 30.0
"""That the issuer's clock may be ahead, for `nbf` and `iat`. None for `exp`: no JWT counts after its end."""

# Of the year 9999: no datetime is later.
MAX_TIME = 253_402_300_799.0
MAX_REMEMBERED = 10_000
# The audit log is searched by identity, with at most 200 characters.
MAX_SUBJECT_CHARS = 200 - len(PREFIX)
LOG_SECONDS = 60.0
ROLES = frozenset(name for name, number in Token.Role.items() if number)
_TYPES = (None, "jwt", "at+jwt", "application/jwt", "application/at+jwt")
_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NOT_COUNTED = "The JWT that was shown does not count here; get one of the issuer that this server trusts, made for this server."
_EXPIRED = "The JWT that was shown has expired; get a new one from its issuer."

log = structlog.get_logger()


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    typ: str | None = None
    # Also null, which the library would iterate over.
    crit: msgspec.Raw = msgspec.Raw()


class _Claims(msgspec.Struct):
    iss: str
    aud: str | list[str]
    exp: int | float
    sub: str = ""
    nbf: int | float = 0
    iat: int | float = 0


class _Pinned(JWSRegistry):
    """Of algorithms we have our own list; by joserfc's one of them comes with a warning each time."""

    max_header_length = MAX_BYTES

    def get_alg(self, name: str) -> Any:
        assert name in ALGORITHMS, "looked at before"
        return self.algorithms[name]


class JwtJudge(Generic[P]):
    """Jwts, by the keys of the moment. A JWT that counted is remembered by its SHA-256 until it ends, or the keys change."""

    def __init__(
        self, rules: JwtRules, keys: JwtKeys, principal: Callable[[Subject], P], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._principal = principal
        self._clock = clock
        self._registry = _Pinned(strict_check_header=False)
        self._remembered: OrderedDict[bytes, tuple[P, float]] = OrderedDict()
        self._generation = keys.generation
        self._told: dict[str, float] = {}

    def caller(self, text: str) -> P:
        """See Jwts."""
        if len(text) > MAX_BYTES:
            raise Unauthenticated(f"The token that was shown has {len(text)} characters; at most {MAX_BYTES} are looked at.")
        if not text.isascii() or text.count(".") != 2:
            raise Unauthenticated("What was shown is neither a token, pm_..., nor a signed JWT.")
        if self._generation != self._keys.generation:
            self._remembered.clear()
            self._generation = self._keys.generation
        digest = hashlib.sha256(text.encode()).digest()
        known = self._remembered.get(digest)
        if known is None:
            subject = self._judge(text)
            known = self._remembered[digest] = self._principal(subject), subject.expire_time
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        elif known[1] <= self._clock():
            del self._remembered[digest]
            self._refuse("it has expired", _EXPIRED)
        else:
            self._remembered.move_to_end(digest)
        return known[0]

    def _judge(self, text: str) -> Subject:
        """Who it is. Raises Unauthenticated, PermissionDenied."""
        payload = self._verified(text)
        try:
            claims = msgspec.json.decode(payload, type=dict[str, Any])
            known = msgspec.convert(claims, _Claims)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._refuse("iss, aud or exp is missing, or a claim is not what it should be")
        if known.iss != self._rules.issuer:
            self._refuse("it is of another issuer")
        if self._rules.audience not in ([known.aud] if isinstance(known.aud, str) else known.aud):
            self._refuse("it is for another audience")
        now = self._clock()
        if known.exp <= now:
            self._refuse("it has expired", _EXPIRED)
        if max(known.nbf, known.iat) > now + LEEWAY_SECONDS:
            self._refuse("it is not valid yet", "The JWT that was shown is not valid yet (nbf, iat); are both clocks right?")
        if not known.sub or len(known.sub) > MAX_SUBJECT_CHARS or not known.sub.isprintable():
            self._refuse("its sub is missing, too long, or not printable")
        return self._allowed(known, claims)

    def _verified(self, text: str) -> bytes:
        """The payload of one whose signature is right. Raises Unauthenticated."""
        head = text.partition(".")[0]
        try:
            header = msgspec.json.decode(urlsafe_b64decode(head.encode()), type=_Header)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            self._refuse("its header cannot be read")
        if header.alg not in ALGORITHMS or header.crit or (header.typ and header.typ.lower()) not in _TYPES:
            self._refuse("its algorithm or type is not taken")
        if not self._keys.known:
            self._refuse("the keys were never read", "This server could not read the keys of JWTs yet; try again later, or show a token.")
        key = self._keys.find(header.kid, header.alg)
        if key is None:
            self._refuse("its key is not known")
        try:
            found = deserialize_compact(text, key, registry=self._registry)
        except (JoseError, ValueError):
            self._refuse("its signature is wrong")
        return found.payload or b""

    def _allowed(self, known: _Claims, claims: dict[str, Any]) -> Subject:
        """Of one that counts. Raises PermissionDenied."""
        rules, who = self._rules, PREFIX + known.sub
        role = claims.get(rules.role_claim)
        if isinstance(role, list) and len(role) == 1:
            role = role[0]
        name = role.upper() if isinstance(role, str) else ""
        if name not in ROLES:
            there = f"{role[:64]!r} is no role" if isinstance(role, str) else "there is none"
            takes = ", ".join(one.lower() for one in sorted(ROLES))
            raise PermissionDenied(
                f"The JWT must name a role in its claim {rules.role_claim!r}, and {there}; it takes one of {takes}.", subject=who
            )
        return Subject(
            subject=known.sub,
            role=name,
            apps=_limits(claims, rules.apps_claim, who),
            environments=_limits(claims, rules.environments_claim, who),
            expire_time=min(known.exp, MAX_TIME),
        )

    def _refuse(self, why: str, message: str = _NOT_COUNTED) -> NoReturn:
        """The caller is not told more than is good for one who guesses; whoever runs the server is, now and then."""
        now = time.monotonic()
        if now >= self._told.get(why, now):
            self._told[why] = now + LOG_SECONDS
            log.info("a JWT was refused; further ones for this reason are not told for a minute", why=why)
        raise Unauthenticated(message)


def _limits(claims: dict[str, Any], name: str, who: str) -> tuple[str, ...]:
    """What the claim names; a JWT without it has no such limit. One that cannot be read limits to nothing."""
    if name not in claims:
        return ()
    given = [claims[name]] if isinstance(claims[name], str) else claims[name]
    if not isinstance(given, list) or not given or not all(isinstance(one, str) and _ID.fullmatch(one) for one in given):
        raise PermissionDenied(
            f'The JWT\'s claim {name!r} must be an id or a list of ids, such as ["shop"]; without the claim there is no such limit.',
            subject=who,
        )
    return tuple(given)
