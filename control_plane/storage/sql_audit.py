"""The statements about the audit log, of every SQL backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from control_plane.model import AuditEntry, AuditFilter
from control_plane.storage.sql import SqlTransaction, from_micros, to_micros
from pointsman.audit import FIRST, entry_hash

_COLUMNS = (
    "position, entry_time, actor, token_id, peer, method, app, environment, detail, reason, before_revision, revision, outcome, message, "
    "count, hash"
)


class SqlAudit(SqlTransaction):
    """Implements that part of base.Transaction."""

    async def append_audit(self, entry: AuditEntry) -> None:
        last = await self._row("SELECT position, hash FROM audit_entries ORDER BY position DESC LIMIT 1")
        entry = msgspec.structs.replace(entry, position=last[0] + 1 if last else 1)
        micros = to_micros(entry.entry_time)
        await self._rows(
            f"INSERT INTO audit_entries ({_COLUMNS}) VALUES ({', '.join('?' * 16)})",
            entry.position,
            micros,
            entry.actor,
            entry.token_id,
            entry.peer,
            entry.method,
            entry.app,
            entry.environment,
            entry.detail,
            entry.reason,
            entry.before_revision,
            entry.revision,
            entry.outcome,
            entry.message,
            entry.count,
            entry_hash(bytes(last[1]) if last else FIRST, micros, entry),
        )

    async def audit_entries(self, wanted: AuditFilter, *, after: int | None, oldest_first: bool, limit: int) -> list[AuditEntry]:
        wheres, parameters = ["1 = 1"], list[Any]()
        for column, value in (("app", wanted.app), ("environment", wanted.environment), ("method", wanted.method)):
            if value:
                wheres.append(f"{column} = ?")
                parameters.append(value)
        if wanted.actor:
            wheres.append("(actor = ? OR token_id = ?)")
            parameters += [wanted.actor, wanted.actor]
        if wanted.outcome == "REFUSED":
            wheres.append("outcome <> 'OK'")
        elif wanted.outcome:
            wheres.append("outcome = ?")
            parameters.append(wanted.outcome)
        for comparison, moment in ((">=", wanted.since), ("<", wanted.until)):
            if moment is not None:
                wheres.append(f"entry_time {comparison} ?")
                parameters.append(to_micros(moment))
        if after is not None:
            wheres.append(f"position {'>' if oldest_first else '<'} ?")
            parameters.append(after)
        order = "ASC" if oldest_first else "DESC"
        sql = f"SELECT {_COLUMNS} FROM audit_entries WHERE {' AND '.join(wheres)} ORDER BY position {order} LIMIT ?"
        return [_entry(row) for row in await self._rows(sql, *parameters, limit)]


def _entry(row: Sequence[Any]) -> AuditEntry:
    return AuditEntry(
        position=row[0],
        entry_time=from_micros(row[1]),
        actor=row[2],
        token_id=row[3],
        peer=row[4],
        method=row[5],
        app=row[6],
        environment=row[7],
        detail=row[8],
        reason=row[9],
        before_revision=row[10],
        revision=row[11],
        outcome=row[12],
        message=row[13],
        count=row[14],
        hash=bytes(row[15]),
    )
