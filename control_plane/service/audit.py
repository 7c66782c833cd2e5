"""The audit log: who changed what, and who was refused.

A change is recorded in its own transaction (see calls.once). A refusal changes nothing and has no transaction: it is recorded soon after,
those of the same wish together, so that nobody can fill the log by asking for what is refused again and again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
import structlog

from control_plane.model import Attempt, AuditEntry, AuditFilter
from control_plane.service.calls import Call, Clock, entry_of, record
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import Store, Transaction
from pointsman.errors import PointsmanError, StoreUnavailable

FLUSH_SECONDS = 1.0
# A wish that was recorded as refused is recorded again after so long, with a count.
REPEAT_SECONDS = 60.0
MAX_WISHES = 1_000
MAX_MESSAGE_CHARS = 500

log = structlog.get_logger()
Key = tuple[str, ...]


class _Refusals(msgspec.Struct):
    """Of one wish, since it was recorded last."""

    entry: AuditEntry
    told_at: float | None = None


class Audit:
    """Records refusals, and tells what is recorded."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._wishes: dict[Key, _Refusals] = {}
        self._unnamed = 0

    def refused(self, attempt: Attempt, error: Exception) -> None:
        """Notes a refusal; costs no more than that."""
        known = isinstance(error, PointsmanError)
        outcome = error.reason_name if isinstance(error, PointsmanError) else "INTERNAL"
        host = attempt.peer.rpartition(":")[0]
        key = (attempt.actor, attempt.token_id, host, attempt.method, attempt.app, attempt.environment, outcome)
        found = self._wishes.get(key)
        if found is not None:
            found.entry = msgspec.structs.replace(found.entry, count=found.entry.count + 1)
            return
        if len(self._wishes) >= MAX_WISHES:
            self._unnamed += 1
            return
        message = str(error)[:MAX_MESSAGE_CHARS] if known else "see the server's log"
        self._wishes[key] = _Refusals(entry_of(attempt, now=self._clock(), outcome=outcome, message=message))

    async def done(self, call: Call) -> None:
        """Records what changes nothing in the store, and therefore has no transaction. Raises StoreUnavailable."""
        await self._store.write(lambda tx: record(tx, call, self._clock()))

    async def run(self) -> None:
        """Records what was noted, until cancelled; at the end all of it."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self._flush(time.monotonic())
        finally:
            await self._flush(float("inf"))

    async def list(self, wanted: AuditFilter, request: PageRequest, *, oldest_first: bool) -> Page[AuditEntry]:
        """Entries that pass, newest first unless the oldest are wanted first."""
        what = "audit, oldest first" if oldest_first else "audit"
        after = next(iter(request.after(what, kinds=(int,))), None)
        found = await self._store.read(lambda tx: tx.audit_entries(wanted, after=after, oldest_first=oldest_first, limit=request.limit + 1))
        return request.page(found, lambda entry: (entry.position,), what)

    async def _flush(self, now: float) -> None:
        due = {key: found for key, found in self._wishes.items() if found.told_at is None or found.told_at + REPEAT_SECONDS <= now}
        entries = [found.entry for found in due.values() if found.entry.count]
        unnamed, self._unnamed = self._unnamed, 0
        if unnamed:
            several = Attempt(actor="several", method="several")
            message = f"more than {MAX_WISHES} different wishes were refused within {REPEAT_SECONDS:g} s; these are the rest"
            entries.append(msgspec.structs.replace(entry_of(several, now=self._clock(), outcome="REFUSED", message=message), count=unnamed))
        if entries:
            try:
                await self._store.write(lambda tx: _append_all(tx, entries))
            except StoreUnavailable as error:
                # They are noted still, and tried again with the next ones.
                self._unnamed += unnamed
                log.warning("refusals could not be recorded", problem=error.message, entries=len(entries))
                return
        for key, found in due.items():
            if found.entry.count:
                found.entry = msgspec.structs.replace(found.entry, count=0, entry_time=self._clock())
                found.told_at = now
            else:
                # Nothing more came: forgotten.
                del self._wishes[key]


async def _append_all(tx: Transaction, entries: Sequence[AuditEntry]) -> None:
    for entry in entries:
        await tx.append_audit(entry)
