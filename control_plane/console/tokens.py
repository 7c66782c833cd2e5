"""Tokens: who may do what. A secret is on one page, once; ending a token says which gateways know."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from starlette.responses import Response

from control_plane.console.filters import seconds_of
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path, with_query
from control_plane.model import RateLimit, Role, Rollout, Token
from control_plane.service.paging import PageRequest
from control_plane.service.tokens import NewToken
from pointsman.errors import InvalidField, PointsmanError, Violation
from pointsman.v1 import tokens_pb2 as pb

PAGE_SIZE = 50
FIELDS = ("name", "role", "apps", "environments", "endpoints", "rate", "burst", "expires_in", "request_id")
ROLES = {
    Role.VIEWER: "reads",
    Role.DEVELOPER: "reads; drafts, releases, apps",
    Role.DEPLOYER: "reads; Deploy, Promote, Rollback",
    Role.TRIGGER: "triggers, nothing else",
    Role.GATEWAY: "what gateways need",
    Role.ADMIN: "everything",
}
_RATE = re.compile(r"[0-9]{1,7}(\.[0-9]{1,3})?")


class Row(msgspec.Struct, frozen=True):
    """One token as a page shows it; `state` is ACTIVE, EXPIRED or REVOKED."""

    token: Token
    state: str
    limits: list[str]


class TokenPages:
    """Tokens of the installation, for admins."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """Newest first, with a form for another."""
        await visit.check(pb.ListTokensRequest())
        page = await self._parts.tokens.list(PageRequest(size=PAGE_SIZE, token=visit.asked("page")))
        now = self._parts.clock()
        is_open = self._parts.authority.is_open
        return visit.page(
            "tokens.html",
            tab="tokens",
            problem=problem,
            rows=[_row(token, now) for token in page.items],
            older=with_query("/tokens", page=page.next_page_token) if page.next_page_token else "",
            first_page=not visit.asked("page"),
            is_open=is_open,
            roles={Role.ADMIN: ROLES[Role.ADMIN]} if is_open else ROLES,
            made=int(now.timestamp()),
            typed={name: visit.typed(name) for name in FIELDS},
        )

    async def create(self, visit: Visit) -> Response:
        """Its secret stands on the answer alone: a reload sends the form again, and the repeat has none."""
        was_open = self._parts.authority.is_open
        try:
            wanted, request = _wanted(visit)
            token, secret = await self._parts.tokens.create(wanted, await visit.call(request))
        except PointsmanError as error:
            return await self.list(visit, error)
        return visit.page("token_created.html", tab="tokens", row=_row(token, self._parts.clock()), secret=secret, was_open=was_open)

    async def show(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """What ends with it, before; which gateways know, after."""
        await visit.check(pb.ListTokensRequest())
        token = await self._parts.tokens.get(visit.part("token"))
        rollout: Rollout | None = None
        if token.revoke_time is not None:
            rollout = await self._parts.gateways.rollout((), 0.0, started=time.monotonic(), revision=token.revision)
        now = self._parts.clock()
        admins = [one for one in self._parts.hub.tokens.values() if one.role is Role.ADMIN and _state(one, now) == "ACTIVE"]
        return visit.page(
            "token.html",
            tab="tokens",
            problem=problem,
            row=_row(token, now),
            rollout=rollout,
            is_own=visit.is_of_token(token.token_id),
            is_last_admin=[one.token_id for one in admins] == [token.token_id],
        )

    async def revoke(self, visit: Visit) -> Response:
        """Ends it, for good."""
        token_id = visit.part("token")
        try:
            await self._parts.tokens.revoke(token_id, await visit.call(pb.RevokeTokenRequest(token_id=token_id)))
        except PointsmanError as error:
            return await self.show(visit, error)
        # Who has ended the own token is not let in any more.
        return visit.to("/sign-in" if visit.is_of_token(token_id) else path("tokens", token_id))


def _wanted(visit: Visit) -> tuple[NewToken, pb.CreateTokenRequest]:
    """The token that was asked for, and the request that would ask the same over gRPC. Raises InvalidField."""
    role, rate, burst = visit.typed("role"), visit.typed("rate"), visit.number("burst")
    if role not in Role.__members__:
        raise InvalidField([Violation("role", f"{role[:40]!r} is none of {', '.join(Role.__members__)}")])
    if rate and not _RATE.fullmatch(rate):
        raise InvalidField([Violation("rate", f"{rate[:40]!r} is not a number of triggers a second, such as 10 or 0.5")])
    if burst and not rate:
        raise InvalidField([Violation("burst", "says how many of the triggers a second may come at once: give those too")])
    expire_time = None
    if expires_in := visit.typed("expires_in"):
        # From when the form was made, so that sent twice it asks for the same.
        expire_time = _later(visit.number("made") or 0, seconds_of("expires_in", expires_in))
    apps, environments, endpoints = (_words(visit.typed(name)) for name in ("apps", "environments", "endpoints"))
    limit = RateLimit(requests_per_second=float(rate), burst=burst or 0) if rate else None
    request = pb.CreateTokenRequest(
        name=visit.typed("name"),
        role=pb.Token.Role.Value(role),
        apps=apps,
        environments=environments,
        endpoints=endpoints,
        rate_limit=pb.RateLimit(requests_per_second=limit.requests_per_second, burst=limit.burst) if limit else None,
    )
    if expire_time is not None:
        request.expire_time.FromDatetime(expire_time)
    wanted = NewToken(
        name=request.name,
        role=Role(role),
        apps=apps,
        environments=environments,
        endpoints=endpoints,
        rate_limit=limit,
        expire_time=expire_time,
    )
    return wanted, request


def _later(made: int, seconds: float) -> datetime:
    """Raises InvalidField when it is beyond every calendar."""
    try:
        return datetime.fromtimestamp(made, UTC) + timedelta(seconds=seconds)
    except (OverflowError, OSError, ValueError) as error:
        raise InvalidField(
            [Violation("expires_in", f"is no moment that a calendar has, counted from {made}; load the page again")]
        ) from error


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in re.split(r"[\s,]+", text) if word))


def _row(token: Token, now: datetime) -> Row:
    limits = [
        *_limit("app", token.apps),
        *_limit("environment", token.environments),
        *_limit("endpoint", token.endpoints),
    ]
    if token.rate_limit is not None:
        burst = f", {token.rate_limit.burst} at once" if token.rate_limit.burst else ""
        limits.append(f"{token.rate_limit.requests_per_second:g} triggers a second to each gateway{burst}")
    return Row(token, _state(token, now), limits)


def _limit(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"] if names else []


def _state(token: Token, now: datetime) -> str:
    if token.revoke_time is not None:
        return "REVOKED"
    return "EXPIRED" if token.expire_time is not None and token.expire_time <= now else "ACTIVE"
