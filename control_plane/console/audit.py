"""Who changed what, and who was refused: the audit log, for admins."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from control_plane.console.filters import moment_of
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, with_query
from control_plane.model import AuditEntry, AuditFilter
from control_plane.service.paging import Page, PageRequest
from pointsman.errors import PermissionDenied, PointsmanError
from pointsman.v1 import audit_pb2 as pb

PAGE_SIZE = 50
FIELDS = ("app", "environment", "actor", "method", "outcome")
MOMENTS = ("since", "until")


class AuditPage:
    """Entries of the whole installation."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, visit: Visit) -> Response:
        """Newest first; a filter that cannot be used says so beside it."""
        typed = {name: visit.asked(name) for name in (*FIELDS, *MOMENTS)}
        kept = {name: value for name, value in typed.items() if value}
        page: Page[AuditEntry] = Page(items=[], next_page_token="")
        problem: PointsmanError | None = None
        try:
            fields: dict[str, Any] = {name: typed[name] for name in FIELDS}
            await visit.check(pb.ListAuditEntriesRequest(page_token=visit.asked("page"), **fields))
            moments: dict[str, Any] = {name: moment_of(name, typed[name], self._parts.clock()) for name in MOMENTS}
            # `2h` ago must not mean another moment on the next page.
            kept |= {name: moment.isoformat() for name, moment in moments.items() if moment is not None}
            asked = PageRequest(size=PAGE_SIZE, token=visit.asked("page"))
            page = await self._parts.audit.list(AuditFilter(**fields, **moments), asked, oldest_first=False)
        except PermissionDenied:
            raise
        except PointsmanError as error:
            problem = error
        return visit.page(
            "audit.html",
            tab="audit",
            problem=problem,
            typed=typed,
            entries=page.items,
            is_filtered=any(typed.values()),
            older=with_query("/audit", **kept, page=page.next_page_token) if page.next_page_token else "",
            newest=with_query("/audit", **kept) if visit.asked("page") else "",
        )
