"""Whose token a caller shows, for both doors of the control plane. The tokens are in memory, as the bindings are."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import structlog

from control_plane.hub import Hub
from control_plane.model import Role, Token
from control_plane.service.calls import Clock
from control_plane.storage.base import Store
from pointsman.errors import StoreUnavailable, Unauthenticated
from pointsman.jwt import PREFIX as JWT_PREFIX
from pointsman.jwt import Jwts, Subject
from pointsman.tokens import PREFIX, matches, secret_of, token_id_of

NOTE_SECONDS = 60.0

log = structlog.get_logger()


class Authority:
    """Judges callers by the hub's tokens, and by `jwts` where there is an issuer; notes when each token was used."""

    def __init__(self, hub: Hub, store: Store, clock: Clock, jwts: Jwts[Token] | None = None) -> None:
        self._hub = hub
        self._store = store
        self._clock = clock
        self._jwts = jwts
        self._used: dict[str, datetime] = {}

    @property
    def is_open(self) -> bool:
        """There are no tokens, never were, and no JWTs count: everybody who reaches this process may do everything."""
        return not self._hub.tokens and self._jwts is None

    def caller(self, authorization: str) -> Token | None:
        """Whose token or JWT an `authorization` header shows; None while the doors are open.

        Raises:
            Unauthenticated: it shows none that counts.
            PermissionDenied: it shows a JWT whose claims give no role.
        """
        if self.is_open:
            return None
        secret = secret_of(authorization)
        if not secret:
            what = "a token" if self._jwts is None else "a token or a JWT"
            raise Unauthenticated(f"Show {what}: `authorization: Bearer pm_...`, or POINTSMAN_TOKEN for the commands.")
        return self.owner(secret)

    def owner(self, secret: str) -> Token:
        """The token of a secret, or what a JWT amounts to. Raises Unauthenticated, PermissionDenied."""
        if self._jwts is not None and not secret.startswith(PREFIX):
            return self._jwts.caller(secret)
        token = self._hub.tokens.get(token_id_of(secret) or "")
        now = self._clock()
        expired = token is not None and token.expire_time is not None and token.expire_time <= now
        if token is None or expired or not matches(secret, token.secret_hash):
            raise Unauthenticated("The token that was shown is unknown, expired or revoked; an admin can make another.")
        self._used[token.token_id] = now
        return token

    async def run(self) -> None:
        """Keeps when tokens were used, until cancelled; at the end once more."""
        try:
            while True:
                await asyncio.sleep(NOTE_SECONDS)
                await self._note()
        finally:
            await self._note()

    async def _note(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._store.write(lambda tx: tx.note_tokens_used(used))
        except StoreUnavailable as error:
            # It is told again when the token is shown again.
            log.warning("when tokens were used could not be kept", problem=error.message)


def actor_of(token: Token) -> str:
    """As the history names who showed it."""
    return token.token_id if token.token_id.startswith(JWT_PREFIX) else f"{token.name} (token {token.token_id})"


def token_of(subject: Subject) -> Token:
    """What a JWT amounts to: a token that is stored nowhere."""
    return Token(
        token_id=subject.identity,
        secret_hash=b"",
        name=subject.subject,
        role=Role[subject.role],
        apps=subject.apps,
        environments=subject.environments,
        expire_time=datetime.fromtimestamp(subject.expire_time, UTC),
        create_time=datetime.now(UTC),
        created_by="",
        revision=0,
    )
