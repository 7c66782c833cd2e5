"""The statements of a Transaction, written once for every SQL backend.

A backend supplies `_rows`; parameters are `?`. Times are kept as microseconds since 1970 in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from control_plane.model import (
    Action,
    App,
    Binding,
    Deployment,
    Draft,
    Environment,
    Release,
    RememberedRequest,
    StaleAction,
    StalenessPolicy,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEAR_IDS = 1000

_APP = "app, description, create_time, created_by, draft_version, draft_update_time"
_ENVIRONMENT = "environment, description, create_time, created_by"
_ENVIRONMENTS = (
    "SELECT e.environment, description, create_time, created_by, max_staleness, stale_action "
    "FROM environments e LEFT JOIN staleness_policies p ON p.environment = e.environment"
)
_RELEASE = "app, tag, description, digest, size_bytes, create_time, created_by"
_DEPLOYMENT_COLUMNS = (
    "deployment_id",
    "app",
    "environment",
    "action",
    "release",
    "digest",
    "previous_release",
    "revision",
    "actor",
    "reason",
    "create_time",
    "forced",
    "beneath",
)
_DEPLOYMENT = ", ".join(f"d.{name}" for name in _DEPLOYMENT_COLUMNS)
_BINDING = (
    f"SELECT b.app, b.environment, b.revision, {_DEPLOYMENT} FROM bindings b LEFT JOIN deployments d ON d.deployment_id = b.deployment_id"
)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return EPOCH + timedelta(microseconds=micros)


class SqlTransaction:
    """Implements base.Transaction over `_rows`."""

    grown: tuple[int, int] | None = None

    async def _rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        """Runs one statement and returns its rows, none for a statement that gives none."""
        raise NotImplementedError

    async def rows(self, sql: str, *parameters: Any) -> list[Sequence[Any]]:
        """The same for those who know tables, and not what they are about."""
        return await self._rows(sql, *parameters)

    async def _row(self, sql: str, *parameters: Any) -> Sequence[Any] | None:
        rows = await self._rows(sql, *parameters)
        return rows[0] if rows else None

    # Reads

    async def revision(self) -> int:
        rows = await self._rows("SELECT revision FROM counter")
        return int(rows[0][0])

    async def app(self, app: str) -> App | None:
        row = await self._row(f"SELECT {_APP} FROM apps WHERE app = ?", app)
        return _app(row) if row else None

    async def apps(self, *, after: str, limit: int) -> list[App]:
        before = "(SELECT position FROM apps WHERE app = ?)"
        rows = await self._rows(
            f"SELECT {_APP} FROM apps WHERE ? = '' OR position < {before} ORDER BY position DESC LIMIT ?", after, after, limit
        )
        return [_app(row) for row in rows]

    async def app_ids(self) -> list[str]:
        return [row[0] for row in await self._rows("SELECT app FROM apps ORDER BY position DESC LIMIT ?", NEAR_IDS)]

    async def draft(self, app: str) -> Draft:
        row = await self._row("SELECT draft, draft_version, draft_update_time FROM apps WHERE app = ?", app)
        assert row is not None, f"no app {app!r}: services look it up first"
        return Draft(config=bytes(row[0]), version=row[1], update_time=None if row[2] is None else from_micros(row[2]))

    async def environment(self, environment: str) -> Environment | None:
        row = await self._row(f"{_ENVIRONMENTS} WHERE e.environment = ?", environment)
        return _environment(row) if row else None

    async def environments(self, *, after: str, limit: int) -> list[Environment]:
        before = "(SELECT position FROM environments WHERE environment = ?)"
        rows = await self._rows(f"{_ENVIRONMENTS} WHERE ? = '' OR position < {before} ORDER BY position DESC LIMIT ?", after, after, limit)
        return [_environment(row) for row in rows]

    async def environment_ids(self) -> list[str]:
        return [row[0] for row in await self._rows("SELECT environment FROM environments ORDER BY position LIMIT ?", NEAR_IDS)]

    async def staleness_policies_since(self, revision: int) -> list[StalenessPolicy]:
        rows = await self._rows(
            "SELECT environment, revision, max_staleness, stale_action FROM staleness_policies WHERE revision > ? "
            "ORDER BY revision, environment",
            revision,
        )
        return [StalenessPolicy(environment=row[0], revision=row[1], **_staleness(row[2], row[3])) for row in rows]

    async def release(self, app: str, tag: str) -> Release | None:
        row = await self._row(f"SELECT {_RELEASE} FROM releases WHERE app = ? AND tag = ?", app, tag)
        return _release(row) if row else None

    async def releases(self, app: str, *, after: str, limit: int, matching: str = "") -> list[Release]:
        wheres, parameters = ["app = ?"], [app]
        if after:
            wheres.append("position < (SELECT position FROM releases WHERE app = ? AND tag = ?)")
            parameters += [app, after]
        if matching:
            pattern = "%" + re.sub("([%_!])", r"!\1", matching) + "%"
            searched = ("tag", "description", "digest", "created_by")
            wheres.append("(" + " OR ".join(f"lower({column}) LIKE lower(?) ESCAPE '!'" for column in searched) + ")")
            parameters += [pattern] * len(searched)
        sql = f"SELECT {_RELEASE} FROM releases WHERE {' AND '.join(wheres)} ORDER BY position DESC LIMIT ?"
        return [_release(row) for row in await self._rows(sql, *parameters, limit)]

    async def release_tags(self, app: str) -> list[str]:
        rows = await self._rows("SELECT tag FROM releases WHERE app = ? ORDER BY position DESC LIMIT ?", app, NEAR_IDS)
        return [row[0] for row in rows]

    async def newest_tags(self, *, each: int) -> dict[str, list[str]]:
        # From the first that is too old on: an index knows that one, where numbering them would read every release there is.
        rows = await self._rows(
            "SELECT a.app, r.tag FROM apps a JOIN releases r ON r.app = a.app AND r.position > COALESCE("
            "(SELECT o.position FROM releases o WHERE o.app = a.app ORDER BY o.position DESC LIMIT 1 OFFSET ?), 0) "
            "ORDER BY a.app, r.position DESC",
            each,
        )
        found: dict[str, list[str]] = {}
        for app, tag in rows:
            found.setdefault(app, []).append(tag)
        return found

    async def snapshot(self, digest: str) -> bytes | None:
        row = await self._row("SELECT data FROM snapshots WHERE digest = ?", digest)
        return bytes(row[0]) if row else None

    async def live_environments(self, app: str, tags: Sequence[str]) -> dict[str, list[str]]:
        rows = await self._rows(
            "SELECT d.release, b.environment FROM bindings b JOIN deployments d ON d.deployment_id = b.deployment_id "
            "WHERE b.app = ? ORDER BY b.environment",
            app,
        )
        live: dict[str, list[str]] = {}
        for tag, environment in rows:
            if tag in tags:
                live.setdefault(tag, []).append(environment)
        return live

    async def ever_live(self, app: str, tags: Sequence[str]) -> set[str]:
        if not tags:
            return set()
        marks = ", ".join("?" * len(tags))
        rows = await self._rows(f"SELECT DISTINCT release FROM deployments WHERE app = ? AND release IN ({marks})", app, *tags)
        return {row[0] for row in rows}

    async def binding(self, app: str, environment: str) -> Binding | None:
        row = await self._row(f"{_BINDING} WHERE b.app = ? AND b.environment = ?", app, environment)
        return _binding(row) if row else None

    async def bindings(self, *, app: str, environment: str, after: tuple[int, str, str] | None, limit: int) -> list[Binding]:
        where, parameters = _filters("b", app=app, environment=environment)
        where.append("b.deployment_id IS NOT NULL")
        if after is not None:
            revision, last_app, last_environment = after
            where.append("(b.revision < ? OR (b.revision = ? AND (b.app, b.environment) > (?, ?)))")
            parameters += [revision, revision, last_app, last_environment]
        order = "ORDER BY b.revision DESC, b.app, b.environment LIMIT ?"
        return [_binding(row) for row in await self._rows(f"{_BINDING} WHERE {' AND '.join(where)} {order}", *parameters, limit)]

    async def bindings_since(self, revision: int) -> list[Binding]:
        rows = await self._rows(f"{_BINDING} WHERE b.revision > ? ORDER BY b.revision, b.app, b.environment", revision)
        return [_binding(row) for row in rows]

    async def bound_apps(self, environment: str) -> list[str]:
        rows = await self._rows("SELECT app FROM bindings WHERE environment = ? AND deployment_id IS NOT NULL ORDER BY app", environment)
        return [row[0] for row in rows]

    async def deployment(self, deployment_id: str) -> Deployment | None:
        row = await self._row(f"SELECT {_DEPLOYMENT} FROM deployments d WHERE d.deployment_id = ?", deployment_id)
        return _deployment(row) if row else None

    async def deployments(self, *, app: str, environment: str, after: str, limit: int) -> list[Deployment]:
        where, parameters = _filters("d", app=app, environment=environment)
        if after:
            where.append("d.position < (SELECT position FROM deployments WHERE deployment_id = ?)")
            parameters.append(after)
        chosen = f"WHERE {' AND '.join(where)}" if where else ""
        sql = f"SELECT {_DEPLOYMENT} FROM deployments d {chosen} ORDER BY d.position DESC LIMIT ?"
        return [_deployment(row) for row in await self._rows(sql, *parameters, limit)]

    async def last_deployment_of(self, app: str, environment: str, release: str) -> Deployment | None:
        row = await self._row(
            f"SELECT {_DEPLOYMENT} FROM deployments d WHERE d.app = ? AND d.environment = ? AND d.release = ? "
            "ORDER BY d.position DESC LIMIT 1",
            app,
            environment,
            release,
        )
        return _deployment(row) if row else None

    async def remembered_request(self, caller: str, request_id: str) -> RememberedRequest | None:
        sql = "SELECT caller, request_id, fingerprint, answer, create_time FROM requests WHERE caller = ? AND request_id = ?"
        row = await self._row(sql, caller, request_id)
        if row is None:
            return None
        return RememberedRequest(
            caller=row[0], request_id=row[1], fingerprint=row[2], answer=bytes(row[3]), create_time=from_micros(row[4])
        )

    # Writes

    async def next_revision(self) -> int:
        rows = await self._rows("UPDATE counter SET revision = revision + 1 RETURNING revision")
        revision = int(rows[0][0])
        self.grown = (self.grown[0] if self.grown else revision - 1, revision)
        return revision

    async def insert_app(self, app: App) -> None:
        await self._rows(
            "INSERT INTO apps (app, description, create_time, created_by, draft, draft_version) VALUES (?, ?, ?, ?, ?, 0)",
            app.app,
            app.description,
            to_micros(app.create_time),
            app.created_by,
            b"",
        )

    async def replace_draft(self, app: str, draft: Draft) -> None:
        updated = None if draft.update_time is None else to_micros(draft.update_time)
        sql = "UPDATE apps SET draft = ?, draft_version = ?, draft_update_time = ? WHERE app = ?"
        await self._rows(sql, draft.config, draft.version, updated, app)

    async def insert_environment(self, environment: Environment) -> None:
        await self._rows(
            f"INSERT INTO environments ({_ENVIRONMENT}) VALUES (?, ?, ?, ?)",
            environment.environment,
            environment.description,
            to_micros(environment.create_time),
            environment.created_by,
        )

    async def update_environment(self, environment: Environment) -> None:
        await self._rows("UPDATE environments SET description = ? WHERE environment = ?", environment.description, environment.environment)

    async def delete_environment(self, environment: str) -> None:
        await self._rows("DELETE FROM environments WHERE environment = ?", environment)

    async def set_staleness_policy(self, policy: StalenessPolicy) -> None:
        await self._rows(
            "INSERT INTO staleness_policies (environment, revision, max_staleness, stale_action) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (environment) DO UPDATE SET revision = excluded.revision, max_staleness = excluded.max_staleness, "
            "stale_action = excluded.stale_action",
            policy.environment,
            policy.revision,
            None if policy.max_staleness is None else policy.max_staleness // timedelta(microseconds=1),
            policy.stale_action.value,
        )

    async def insert_snapshot(self, digest: str, data: bytes) -> None:
        await self._rows("INSERT INTO snapshots (digest, data) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING", digest, data)

    async def insert_release(self, release: Release) -> None:
        await self._rows(
            f"INSERT INTO releases ({_RELEASE}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            release.app,
            release.tag,
            release.description,
            release.digest,
            release.size_bytes,
            to_micros(release.create_time),
            release.created_by,
        )

    async def insert_deployment(self, deployment: Deployment) -> None:
        values = [getattr(deployment, name) for name in _DEPLOYMENT_COLUMNS]
        values[3], values[10], values[11] = deployment.action.value, to_micros(deployment.create_time), int(deployment.forced)
        marks = ", ".join("?" * len(values))
        await self._rows(f"INSERT INTO deployments ({', '.join(_DEPLOYMENT_COLUMNS)}) VALUES ({marks})", *values)

    async def set_binding(self, app: str, environment: str, *, revision: int, deployment_id: str) -> None:
        await self._rows(
            "INSERT INTO bindings (app, environment, revision, deployment_id) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (app, environment) DO UPDATE SET revision = excluded.revision, deployment_id = excluded.deployment_id",
            app,
            environment,
            revision,
            deployment_id,
        )

    async def remember_request(self, request: RememberedRequest) -> None:
        await self._rows(
            "INSERT INTO requests (caller, request_id, fingerprint, answer, create_time) VALUES (?, ?, ?, ?, ?)",
            request.caller,
            request.request_id,
            request.fingerprint,
            request.answer,
            to_micros(request.create_time),
        )

    async def forget_requests(self, *, before: datetime) -> int:
        return len(await self._rows("DELETE FROM requests WHERE create_time < ? RETURNING 1", to_micros(before)))


def _filters(table: str, **wanted: str) -> tuple[list[str], list[Any]]:
    """Conditions for those filters that are not empty."""
    given = {name: value for name, value in wanted.items() if value}
    return [f"{table}.{name} = ?" for name in given], list(given.values())


def _app(row: Sequence[Any]) -> App:
    return App(
        app=row[0],
        description=row[1],
        create_time=from_micros(row[2]),
        created_by=row[3],
        draft_version=row[4],
        draft_update_time=None if row[5] is None else from_micros(row[5]),
    )


def _environment(row: Sequence[Any]) -> Environment:
    staleness = {} if row[5] is None else _staleness(row[4], row[5])
    return Environment(environment=row[0], description=row[1], create_time=from_micros(row[2]), created_by=row[3], **staleness)


def _staleness(micros: int | None, action: str) -> dict[str, Any]:
    return {"max_staleness": None if micros is None else timedelta(microseconds=micros), "stale_action": StaleAction(action)}


def _release(row: Sequence[Any]) -> Release:
    return Release(
        app=row[0],
        tag=row[1],
        description=row[2],
        digest=row[3],
        size_bytes=row[4],
        create_time=from_micros(row[5]),
        created_by=row[6],
    )


def _deployment(row: Sequence[Any]) -> Deployment:
    values = dict(zip(_DEPLOYMENT_COLUMNS, row, strict=True))
    values["action"], values["create_time"], values["forced"] = (
        Action(values["action"]),
        from_micros(values["create_time"]),
        bool(values["forced"]),
    )
    return Deployment(**values)


def _binding(row: Sequence[Any]) -> Binding:
    deployment = None if row[3] is None else _deployment(row[3:])
    return Binding(app=row[0], environment=row[1], revision=row[2], deployment=deployment)
