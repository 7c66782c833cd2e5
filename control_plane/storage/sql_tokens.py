"""The statements about tokens, of every SQL backend. Lists are kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from control_plane.model import RateLimit, Role, Token
from control_plane.storage.sql import SqlTransaction, from_micros, to_micros

_COLUMNS = (
    "token_id, secret_hash, name, role, apps, environments, endpoints, requests_per_second, burst, expire_time, create_time, "
    "created_by, revision, revoke_time, last_used_time"
)


class SqlTokens(SqlTransaction):
    """Implements that part of base.Transaction."""

    async def token(self, token_id: str) -> Token | None:
        row = await self._row(f"SELECT {_COLUMNS} FROM tokens WHERE token_id = ?", token_id)
        return _token(row) if row else None

    async def tokens(self, *, after: str, limit: int) -> list[Token]:
        before = "(SELECT position FROM tokens WHERE token_id = ?)"
        sql = f"SELECT {_COLUMNS} FROM tokens WHERE ? = '' OR position < {before} ORDER BY position DESC LIMIT ?"
        return [_token(row) for row in await self._rows(sql, after, after, limit)]

    async def tokens_since(self, revision: int) -> list[Token]:
        return [_token(row) for row in await self._rows(f"SELECT {_COLUMNS} FROM tokens WHERE revision > ? ORDER BY position", revision)]

    async def insert_token(self, token: Token) -> None:
        limit = token.rate_limit
        await self._rows(
            f"INSERT INTO tokens ({_COLUMNS}) VALUES ({', '.join('?' * 15)})",
            token.token_id,
            token.secret_hash,
            token.name,
            token.role.value,
            json.dumps(token.apps),
            json.dumps(token.environments),
            json.dumps(token.endpoints),
            limit.requests_per_second if limit else None,
            limit.burst if limit else None,
            _micros(token.expire_time),
            to_micros(token.create_time),
            token.created_by,
            token.revision,
            _micros(token.revoke_time),
            _micros(token.last_used_time),
        )

    async def revoke_token(self, token_id: str, *, revision: int, revoke_time: datetime) -> None:
        sql = "UPDATE tokens SET secret_hash = ?, revision = ?, revoke_time = ? WHERE token_id = ?"
        await self._rows(sql, b"", revision, to_micros(revoke_time), token_id)

    async def note_tokens_used(self, used: Mapping[str, datetime]) -> None:
        for token_id, moment in used.items():
            micros = to_micros(moment)
            sql = "UPDATE tokens SET last_used_time = ? WHERE token_id = ? AND (last_used_time IS NULL OR last_used_time < ?)"
            await self._rows(sql, micros, token_id, micros)


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def _token(row: Sequence[Any]) -> Token:
    return Token(
        token_id=row[0],
        secret_hash=bytes(row[1]),
        name=row[2],
        role=Role(row[3]),
        apps=tuple(json.loads(row[4])),
        environments=tuple(json.loads(row[5])),
        endpoints=tuple(json.loads(row[6])),
        rate_limit=None if row[7] is None else RateLimit(requests_per_second=row[7], burst=row[8]),
        expire_time=_moment(row[9]),
        create_time=from_micros(row[10]),
        created_by=row[11],
        revision=row[12],
        revoke_time=_moment(row[13]),
        last_used_time=_moment(row[14]),
    )
