"""Who may do what at this gateway, by the tokens that the control plane told it, and by JWTs: nothing is asked of anybody for a trigger.

Looked at before a body is read. As long as there is no token, everybody may do everything, but only on a machine's own addresses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import msgspec

from data_plane.holder import Holder
from data_plane.lookup import Allowance
from data_plane.table import RateLimit, Role, Verifier
from pointsman.errors import PermissionDenied, RateLimited, Unauthenticated
from pointsman.jwt import Jwts, Subject
from pointsman.tokens import PREFIX, matches, secret_of, token_id_of

# Of headers that are remembered; only those that counted are.
MAX_SEEN = 10_000
MAY_TRIGGER = frozenset({Role.TRIGGER, Role.ADMIN})
MAY_LOOK = frozenset({Role.VIEWER, Role.DEVELOPER, Role.DEPLOYER, Role.ADMIN})
MAY_ASK_FOR_ENDPOINTS = MAY_TRIGGER | MAY_LOOK
MAY_CALL = {
    "Trigger": MAY_TRIGGER,
    "TriggerStream": MAY_TRIGGER,
    "GetStatus": MAY_LOOK,
    "SimulateOutage": frozenset({Role.ADMIN}),
    "ServerReflectionInfo": MAY_ASK_FOR_ENDPOINTS,
}
"""By gRPC method; what is not here nobody may call."""


class _Bucket(msgspec.Struct):
    left: float
    filled_at: float


CALLER: ContextVar[Verifier | None] = ContextVar("caller", default=None)
"""Of the gRPC call that runs."""


class Access:
    """Judges callers. `open_without_tokens`: only this machine can reach the gateway, or it was started with --insecure.

    With `jwts` it is never open.
    """

    def __init__(
        self,
        holder: Holder,
        *,
        open_without_tokens: bool = True,
        jwts: Jwts[Verifier] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder = holder
        self._open = open_without_tokens
        self._jwts = jwts
        self._clock = clock
        self._monotonic = monotonic
        self._buckets: dict[str, _Bucket] = {}
        self._tokens: Mapping[str, Verifier] = {}
        self._seen: dict[str, Verifier] = {}
        """Headers that were judged by the present tokens: a hash for each trigger would be a tenth of what judging it may cost."""

    def authorise(self, method: str, metadata: Mapping[str, str]) -> None:
        """At the beginning of every gRPC call; which triggers a token is for is seen when one is read.

        Raises:
            Unauthenticated: see caller().
            PermissionDenied: see caller(), or its role may not call this method.
        """
        caller = self.caller(metadata.get("authorization", ""))
        if caller is not None:
            allowed = MAY_CALL.get(method.rpartition("/")[2], frozenset())
            if caller.role not in allowed:
                raise _denied(caller, allowed)
        CALLER.set(caller)

    def caller(self, authorization: str) -> Verifier | None:
        """Whose token or JWT the header shows; None while the doors are open.

        Raises:
            Unauthenticated: it shows none that counts.
            PermissionDenied: it shows a JWT whose claims give no role.
        """
        tokens = self._holder.table.tokens
        if tokens is not self._tokens:
            # Some were made, or revoked.
            self._tokens, self._seen = tokens, {}
        seen = self._seen.get(authorization)
        if seen is not None and (seen.expire_time is None or seen.expire_time > self._clock()):
            return seen
        if not tokens and self._jwts is None:
            if self._open:
                return None
            raise Unauthenticated(
                "Nobody may call this gateway yet: it can be reached from other machines, and its control plane has no tokens. Make one "
                "with `pointsman token bootstrap`, or start the gateway with --insecure."
            )
        return self._judge(authorization, tokens)

    def _judge(self, authorization: str, tokens: Mapping[str, Verifier]) -> Verifier:
        """See caller()."""
        secret = secret_of(authorization)
        if not secret:
            what = "a token" if self._jwts is None else "a token or a JWT"
            raise Unauthenticated(f"Show {what} in the header `Authorization: Bearer pm_...`; `pointsman token create` makes one.")
        if self._jwts is not None and not secret.startswith(PREFIX):
            return self._jwts.caller(secret)
        verifier = tokens.get(token_id_of(secret) or "")
        expired = verifier is not None and verifier.expire_time is not None and verifier.expire_time <= self._clock()
        if verifier is None or expired or not matches(secret, verifier.secret_hash):
            raise Unauthenticated("The token that was shown is unknown, expired or revoked; `pointsman token create` makes another.")
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen[authorization] = verifier
        return verifier

    def admit(self, caller: Verifier | None, app: str, environment: str, endpoint: str) -> Allowance | None:
        """Lets a trigger in; what is left then, None without a rate limit.

        Raises:
            PermissionDenied: the token does not allow this trigger.
            RateLimited: there is none left now; says when there will be.
        """
        if caller is None:
            return None
        _check_role(caller, MAY_TRIGGER)
        _check_one_of("app", app, caller.apps)
        _check_one_of("environment", environment, caller.environments)
        _check_one_of("endpoint", endpoint.removeprefix("/"), caller.endpoints)
        return None if caller.rate_limit is None else self._spend(caller, caller.rate_limit)

    def admit_look(self, caller: Verifier | None) -> None:
        """Status and metrics. Raises PermissionDenied."""
        if caller is not None:
            _check_role(caller, MAY_LOOK)

    def admit_to_endpoints(self, caller: Verifier | None) -> None:
        """What can be triggered, of which the token's limits leave a part. Raises PermissionDenied."""
        if caller is not None:
            _check_role(caller, MAY_ASK_FOR_ENDPOINTS)

    def _spend(self, caller: Verifier, limit: RateLimit) -> Allowance:
        now = self._monotonic()
        bucket = self._buckets.get(caller.token_id)
        if bucket is None:
            self._forget_gone()
            bucket = self._buckets[caller.token_id] = _Bucket(limit.burst, now)
        bucket.left = min(limit.burst, bucket.left + (now - bucket.filled_at) * limit.requests_per_second)
        bucket.filled_at = now
        if bucket.left < 1:
            wait = (1 - bucket.left) / limit.requests_per_second
            raise RateLimited(
                f"This token may send {limit.requests_per_second:g} triggers a second to each gateway, {limit.burst} at once; try again "
                f"in {wait:.3g} s.",
                limit=f"{limit.requests_per_second:g}",
                burst=limit.burst,
                of="triggers a second",
                token_id=caller.token_id,
                remaining=0,
                reset=math.ceil(limit.burst / limit.requests_per_second),
                retry_after_seconds=wait,
            )
        bucket.left -= 1
        return Allowance(limit.burst, int(bucket.left), math.ceil((limit.burst - bucket.left) / limit.requests_per_second))

    def _forget_gone(self) -> None:
        tokens = self._holder.table.tokens
        for token_id in self._buckets.keys() - tokens.keys():
            del self._buckets[token_id]


def verifier_of(subject: Subject) -> Verifier:
    """What a JWT amounts to: a token that no control plane told of."""
    return Verifier(
        token_id=subject.identity,
        secret_hash=b"",
        role=Role[subject.role],
        apps=frozenset(subject.apps),
        environments=frozenset(subject.environments),
        expire_time=subject.expire_time,
    )


def only_app(caller: Verifier | None) -> str:
    """Of a trigger that names none: the token's, if it is for one only."""
    return next(iter(caller.apps)) if caller is not None and len(caller.apps) == 1 else ""


def _check_role(caller: Verifier, allowed: frozenset[Role]) -> None:
    if caller.role not in allowed:
        raise _denied(caller, allowed)


def _denied(caller: Verifier, allowed: frozenset[Role]) -> PermissionDenied:
    takes = " or ".join(role.name for role in Role if role in allowed)
    return PermissionDenied(
        f"This token has the role {caller.role.name}; it takes {takes}.", role=takes, has=caller.role.name, token_id=caller.token_id
    )


def _check_one_of(what: str, given: str, allowed: frozenset[str]) -> None:
    if allowed and given not in allowed:
        named = f"{what} {given[:128]!r}" if given else f"a trigger that names no {what}"
        metadata: dict[str, Any] = {what: given[:128]}
        raise PermissionDenied(f"This token is not for {named}; it is for {', '.join(sorted(allowed))}.", **metadata)
