"""The statements about what was live before, and about what goes, of every SQL backend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from control_plane.model import Binding, Deployment, Pruning, Release, Unbinding
from control_plane.storage.sql import (
    _DEPLOYMENT,
    _RELEASE,
    SqlTransaction,
    _binding,
    _deployment,
    _filters,
    _release,
    from_micros,
    to_micros,
)

_PRUNING = "app, tag, digest, size_bytes, prune_time, pruned_by"
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

    async def deployment_after(self, deployment: Deployment) -> Deployment | None:
        row = await self._row(
            f"SELECT {_DEPLOYMENT} FROM deployments d WHERE d.app = ? AND d.environment = ? "
            "AND d.position > (SELECT position FROM deployments WHERE deployment_id = ?) ORDER BY d.position LIMIT 1",
            deployment.app,
            deployment.environment,
            deployment.deployment_id,
        )
        return _deployment(row) if row else None

    async def unbinding_after(self, deployment: Deployment) -> Unbinding | None:
        rows = await self._rows(
            "SELECT revision, unbind_time FROM unbindings WHERE app = ? AND environment = ? AND revision > ? ORDER BY revision LIMIT 1",
            deployment.app,
            deployment.environment,
            deployment.revision,
        )
        return Unbinding(revision=rows[0][0], unbind_time=from_micros(rows[0][1])) if rows else None

    async def prunable_releases(self, app: str, *, keep_newest: int, keep_deployed: int, limit: int) -> list[Release]:
        rows = await self._rows(
            f"SELECT {_RELEASE} FROM releases r WHERE r.app = ? "
            "AND r.position NOT IN (SELECT position FROM releases WHERE app = ? ORDER BY position DESC LIMIT ?) "
            "AND r.tag NOT IN (SELECT release FROM (SELECT release, row_number() OVER (PARTITION BY environment ORDER BY position DESC) "
            "AS age FROM deployments WHERE app = ?) AS history WHERE age <= ?) "
            "AND r.tag NOT IN (SELECT d.release FROM bindings b JOIN deployments d ON d.deployment_id = b.deployment_id WHERE b.app = ?) "
            "ORDER BY r.position LIMIT ?",
            app,
            app,
            keep_newest,
            app,
            keep_deployed,
            app,
            limit,
        )
        return [_release(row) for row in rows]

    async def pruning(self, app: str, tag: str) -> Pruning | None:
        row = await self._row(f"SELECT {_PRUNING} FROM prunings WHERE app = ? AND tag = ?", app, tag)
        if row is None:
            return None
        return Pruning(app=row[0], tag=row[1], digest=row[2], size_bytes=row[3], prune_time=from_micros(row[4]), pruned_by=row[5])

    async def prune_releases(self, prunings: Sequence[Pruning]) -> int:
        # A statement for all: one for each takes PostgreSQL a third of a second for 500.
        def marks(columns: int) -> str:
            return ", ".join([f"({', '.join('?' * columns)})"] * len(prunings))

        rows = [(p.app, p.tag, p.digest, p.size_bytes, to_micros(p.prune_time), p.pruned_by) for p in prunings]
        await self._rows(f"INSERT INTO prunings ({_PRUNING}) VALUES {marks(6)}", *itertools.chain.from_iterable(rows))
        tags = itertools.chain.from_iterable((p.app, p.tag) for p in prunings)
        await self._rows(f"DELETE FROM releases WHERE (app, tag) IN (VALUES {marks(2)})", *tags)
        gone = await self._rows(
            f"DELETE FROM snapshots WHERE digest IN (VALUES {marks(1)}) "
            "AND NOT EXISTS (SELECT 1 FROM releases r WHERE r.digest = snapshots.digest) RETURNING length(data)",
            *(p.digest for p in prunings),
        )
        return sum(int(row[0]) for row in gone)

    async def unbind(self, app: str, environment: str, *, revision: int, unbind_time: datetime) -> None:
        await self._rows(
            "UPDATE bindings SET revision = ?, deployment_id = NULL WHERE app = ? AND environment = ?", revision, app, environment
        )
        sql = "INSERT INTO unbindings (app, environment, revision, unbind_time) VALUES (?, ?, ?, ?)"
        await self._rows(sql, app, environment, revision, to_micros(unbind_time))
