"""Tokens: who may do what. Their secrets are told once and never kept."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime

import msgspec

from control_plane.gateways import Gateways
from control_plane.hub import Hub
from control_plane.model import Attempt, RateLimit, Role, Rollout, Token
from control_plane.service.calls import Call, Clock, once, record
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import InvalidField, TokenNotFound, Violation
from pointsman.tokens import hash_of, new_secret, token_id_of

ROLLOUT_SECONDS = 5.0


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; empty `apps`, `environments`, `endpoints`: all."""

    name: str
    role: Role
    apps: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None
    expire_time: datetime | None = None


class Tokens:
    """The use cases of TokenService."""

    def __init__(self, store: Store, hub: Hub, gateways: Gateways, clock: Clock) -> None:
        self._store = store
        self._hub = hub
        self._gateways = gateways
        self._clock = clock

    async def create(self, wanted: NewToken, call: Call) -> tuple[Token, str]:
        """A new token and its secret; the secret is empty for a repeated request and for a dry run.

        Raises:
            InvalidField: it would have expired already, or is the first one and no admin's.
        """
        now = self._clock()
        if wanted.expire_time is not None and wanted.expire_time <= now:
            raise InvalidField([Violation("expire_time", f"{wanted.expire_time.isoformat()} is past; leave it out, or name a later time")])
        secret = new_secret()

        async def work(tx: Transaction) -> Token:
            async def create() -> Token:
                if wanted.role is not Role.ADMIN and not await tx.tokens(after="", limit=1):
                    # From the first token on every call needs one, and nobody could make another.
                    raise InvalidField(
                        [Violation("role", f"the first token is an ADMIN's, not a {wanted.role.value}'s: `pointsman token bootstrap`")]
                    )
                return await add_token(tx, wanted, secret, actor=call.actor, now=now)

            return await once(tx, call, now, Token, create)

        token = await self._store.write(work, dry_run=call.validate_only)
        # It counts here from the answer on.
        await self._hub.catch_up()
        is_new = token.token_id == token_id_of(secret) and not call.validate_only
        return token, secret if is_new else ""

    async def list(self, request: PageRequest) -> Page[Token]:
        """Newest first, revoked ones included."""
        after = str(*request.after("tokens"))
        found = await self._store.read(lambda tx: tx.tokens(after=after, limit=request.limit + 1))
        return request.page(found, lambda token: (token.token_id,), "tokens")

    async def get(self, token_id: str) -> Token:
        """One token. Raises TokenNotFound."""
        return await self._store.read(lambda tx: find_token(tx, token_id))

    async def revoke(self, token_id: str, call: Call) -> tuple[Token, Rollout | None]:
        """Ends a token; which gateways know, None for a dry run. One that has ended already stays as it is.

        Raises:
            TokenNotFound: there is none with this id.
        """
        now = self._clock()

        async def work(tx: Transaction) -> Token:
            async def revoke() -> Token:
                found = await find_token(tx, token_id)
                if found.revoke_time is not None:
                    return found
                revoked = replace(found, secret_hash=b"", revision=await tx.next_revision(), revoke_time=now)
                await tx.revoke_token(token_id, revision=revoked.revision, revoke_time=now)
                return revoked

            return await once(tx, call, now, Token, revoke)

        revoked = await self._store.write(work, dry_run=call.validate_only)
        if call.validate_only:
            return revoked, None
        started = time.monotonic()
        # Here it has ended, too, when the answer comes.
        await self._hub.catch_up()
        return revoked, await self._gateways.rollout((), ROLLOUT_SECONDS, started=started, revision=revoked.revision)


async def add_token(tx: Transaction, wanted: NewToken, secret: str, *, actor: str, now: datetime) -> Token:
    """Stores a token for a secret, at a revision of its own, so that gateways are told."""
    token = Token(
        token_id=token_id_of(secret) or "",
        secret_hash=hash_of(secret),
        name=wanted.name,
        role=wanted.role,
        apps=wanted.apps,
        environments=wanted.environments,
        endpoints=tuple(path.removeprefix("/") for path in wanted.endpoints),
        rate_limit=wanted.rate_limit,
        expire_time=wanted.expire_time,
        create_time=now,
        created_by=actor,
        revision=await tx.next_revision(),
    )
    await tx.insert_token(token)
    return token


async def find_token(tx: ReadTransaction, token_id: str) -> Token:
    """The token, or TokenNotFound."""
    found = await tx.token(token_id)
    if found is None:
        raise TokenNotFound(f"There is no token {token_id!r}; `pointsman token list` shows what there is.", token_id=token_id)
    return found


async def bootstrap(store: Store, now: datetime, *, force: bool = False) -> str | None:
    """The secret of a first admin token; None when there is a token already, unless `force` asks for one more."""
    secret = new_secret()

    async def work(tx: Transaction) -> bool:
        if not force and await tx.tokens(after="", limit=1):
            return False
        token = await add_token(tx, NewToken(name="bootstrap", role=Role.ADMIN), secret, actor="bootstrap", now=now)
        attempt = Attempt(
            actor="bootstrap", method="CreateToken", detail=json.dumps({"token_id": token.token_id, "role": token.role.value})
        )
        await record(tx, Call(actor="bootstrap", attempt=attempt), now)
        return True

    return secret if await store.write(work) else None
