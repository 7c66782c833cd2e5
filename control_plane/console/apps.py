"""The list of apps."""

from __future__ import annotations

from starlette.responses import Response

from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path
from control_plane.model import Binding
from control_plane.service.paging import PageRequest
from pointsman.errors import PointsmanError
from pointsman.v1.apps_pb2 import CreateAppRequest


class AppPages:
    """Apps: what there is, what of it is live where, and a new one."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """Newest first."""
        page = await self._parts.apps.list(PageRequest(token=visit.asked("page")))
        await self._parts.hub.refresh()
        live: dict[str, list[Binding]] = {}
        for binding in self._parts.hub.newer_than(0, apps=[app.app for app in page.items]):
            if binding.deployment is not None:
                live.setdefault(binding.app, []).append(binding)
        order = {environment.environment: position for position, environment in enumerate(await self._parts.all_environments())}
        for bindings in live.values():
            bindings.sort(key=lambda binding: order.get(binding.environment, len(order)))
        typed = {name: visit.typed(name) for name in ("app", "description")}
        return visit.page("apps.html", problem=problem, tab="apps", apps=page.items, live=live, next_page=page.next_page_token, typed=typed)

    async def create(self, visit: Visit) -> Response:
        """A new app; then its draft, which is to be filled."""
        request = CreateAppRequest(app=visit.typed("app"), description=visit.typed("description"))
        try:
            created = await self._parts.apps.create(request.app, request.description, await visit.call(request))
        except PointsmanError as error:
            return await self.list(visit, error)
        return visit.to(path("apps", created.app, "editor"))
