"""The statements about what was live before, of every SQL backend."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from control_plane.model import Binding
from control_plane.storage.sql import _DEPLOYMENT, SqlTransaction, _binding, _filters, to_micros

# The newest entry of a binding's history up to a moment, unless it was unbound after it and up to then.
_NEWEST_UP_TO = (
    "SELECT e.position FROM deployments e WHERE e.app = b.app AND e.environment = b.environment AND e.create_time <= ? "
    "ORDER BY e.position DESC LIMIT 1"
)
_UNBOUND = (
    "SELECT 1 FROM unbindings u WHERE u.app = b.app AND u.environment = b.environment AND u.revision > d.revision AND u.unbind_time <= ?"
)


class SqlHistory(SqlTransaction):
    """Implements that part of base.Transaction."""

    async def bindings_as_of(
        self, moment: datetime, *, app: str, environment: str, after: tuple[int, str, str] | None, limit: int
    ) -> list[Binding]:
        micros = to_micros(moment)
        where, filtered = _filters("b", app=app, environment=environment)
        parameters: list[Any] = [micros, micros, *filtered]
        if after is not None:
            revision, last_app, last_environment = after
            where.append("(d.revision < ? OR (d.revision = ? AND (b.app, b.environment) > (?, ?)))")
            parameters += [revision, revision, last_app, last_environment]
        rows = await self._rows(
            f"SELECT b.app, b.environment, d.revision, {_DEPLOYMENT} FROM bindings b "
            f"JOIN deployments d ON d.position = ({_NEWEST_UP_TO}) WHERE {' AND '.join([f'NOT EXISTS ({_UNBOUND})', *where])} "
            "ORDER BY d.revision DESC, b.app, b.environment LIMIT ?",
            *parameters,
            limit,
        )
        return [_binding(row) for row in rows]

    async def unbind(self, app: str, environment: str, *, revision: int, unbind_time: datetime) -> None:
        await self._rows(
            "UPDATE bindings SET revision = ?, deployment_id = NULL WHERE app = ? AND environment = ?", revision, app, environment
        )
        sql = "INSERT INTO unbindings (app, environment, revision, unbind_time) VALUES (?, ?, ?, ?)"
        await self._rows(sql, app, environment, revision, to_micros(unbind_time))
