"""What was live at a moment in the past: the history up to then."""

from __future__ import annotations

from datetime import datetime

from control_plane.model import Binding
from control_plane.service.apps import find_app
from control_plane.service.environments import find_environment
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store
from pointsman.errors import NoReleaseDeployed


class Past:
    """The use cases of DeploymentService with an as_of_time. A time to come is now; what happened at the moment itself counts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def binding(self, app: str, environment: str, moment: datetime) -> Binding:
        """What was live. Raises AppNotFound, NoReleaseDeployed, and EnvironmentNotFound when there never was one by that name."""
        found = await self._store.read(lambda tx: _bindings(tx, moment, app, environment, None, 1))
        if not found:
            raise NoReleaseDeployed(app, environment, moment=moment.isoformat())
        return found[0]

    async def bindings(self, app: str, environment: str, moment: datetime, request: PageRequest) -> Page[Binding]:
        """What was live, newest revision first. Raises AppNotFound, EnvironmentNotFound as binding."""
        filters = ("bindings", app, environment, moment.isoformat())
        after = request.after(*filters, kinds=(int, str, str)) or None
        found = await self._store.read(lambda tx: _bindings(tx, moment, app, environment, after, request.limit + 1))
        return request.page(found, lambda b: (b.revision, b.app, b.environment), *filters)


async def _bindings(
    tx: ReadTransaction, moment: datetime, app: str, environment: str, after: tuple[int, str, str] | None, limit: int
) -> list[Binding]:
    if app:
        await find_app(tx, app)
    # The environment may have been deleted since; then its history still knows it.
    if environment and not await tx.deployments(app="", environment=environment, after="", limit=1):
        await find_environment(tx, environment)
    return await tx.bindings_as_of(moment, app=app, environment=environment, after=after, limit=limit)
