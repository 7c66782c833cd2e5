"""Releases that are old and out of use: which they are, and their end."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.calls import Call
from control_plane.service.retention import DEFAULT_KEEP_DEPLOYED, Pruned
from pointsman.errors import PointsmanError, RevisionConflict
from pointsman.v1 import releases_pb2 as pb

DEFAULT_KEEP_NEWEST = 50
MAX_SHOWN = 100
# What the message can say.
MAX_KEPT = 2**31 - 1


class PrunePage:
    """What `pointsman release prune` does: first it is shown, then done."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """What would go, as much as goes in one call."""
        app = visit.part("app")
        given = visit.typed if problem else visit.asked
        keep = {
            "newest": given("keep_newest") or str(DEFAULT_KEEP_NEWEST),
            "deployed": given("keep_deployed") or str(DEFAULT_KEEP_DEPLOYED),
        }
        found = None
        try:
            request = _request(visit, app, keep["newest"], keep["deployed"])
            await visit.check(request)
            found = await self._would_go(request, visit.actor)
        except PointsmanError as error:
            problem = problem or error
        return visit.page(
            "prune.html",
            tab="releases",
            app=app,
            problem=problem,
            keep=keep,
            found=found,
            shown=found.releases[:MAX_SHOWN] if found else [],
            seen=_seen(found) if found else "",
            gone=visit.asked("gone"),
        )

    async def prune(self, visit: Visit) -> Response:
        """Only while what the page named is what goes."""
        app = visit.part("app")
        try:
            request = _request(visit, app, visit.typed("keep_newest"), visit.typed("keep_deployed"))
            call = await visit.call(request)
            if visit.typed("seen") != _seen(await self._would_go(request, visit.actor)):
                raise RevisionConflict("Other releases would go than the page named, so nothing was deleted. Look again, below.", app=app)
            gone = await self._parts.retention.prune(app, request.keep_newest, request.keep_deployed, call)
        except PointsmanError as error:
            return await self.show(visit, error)
        kept = {"keep_newest": request.keep_newest, "keep_deployed": request.keep_deployed}
        return visit.to(with_query(path("apps", app, "prune"), **kept, gone=len(gone.releases)))

    async def _would_go(self, request: pb.PruneReleasesRequest, actor: str) -> Pruned:
        return await self._parts.retention.prune(
            request.app, request.keep_newest, request.keep_deployed, Call(actor=actor, validate_only=True)
        )


def _request(visit: Visit, app: str, newest: str, deployed: str) -> pb.PruneReleasesRequest:
    """As over gRPC. Raises InvalidField."""
    kept, of_history = visit.number("keep_newest", newest), visit.number("keep_deployed", deployed)
    return pb.PruneReleasesRequest(app=app, keep_newest=min(kept or 0, MAX_KEPT), keep_deployed=min(of_history or 0, MAX_KEPT))


def _seen(found: Pruned) -> str:
    """Another one when others would go."""
    return hashlib.sha256("\n".join(info.release.tag for info in found.releases).encode()).hexdigest()
