"""What the pages are made over: the services, and who watches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from control_plane.authority import Authority
from control_plane.console.gateway_door import GatewayDoor
from control_plane.console.terminal import Terminal
from control_plane.gateways import Gateways
from control_plane.hub import Hub
from control_plane.model import Binding, Environment
from control_plane.service.apps import Apps
from control_plane.service.audit import Audit
from control_plane.service.calls import Clock
from control_plane.service.deployments import Deployments
from control_plane.service.environments import Environments
from control_plane.service.executions import Executions
from control_plane.service.paging import MAX_PAGE_SIZE, PageRequest
from control_plane.service.past import Past
from control_plane.service.releases import Releases
from control_plane.service.retention import Retention
from control_plane.service.tokens import Tokens
from control_plane.tail import Tail
from pointsman.errors import NoReleaseDeployed


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Put together in `__main__`."""

    apps: Apps
    environments: Environments
    releases: Releases
    deployments: Deployments
    past: Past
    executions: Executions
    tail: Tail
    tokens: Tokens
    retention: Retention
    gateways: Gateways
    gateway_door: GatewayDoor
    hub: Hub
    authority: Authority
    audit: Audit
    clock: Clock
    terminal: Terminal

    async def all_environments(self) -> Sequence[Environment]:
        """In the order in which they were made: the way that a release goes."""
        newest_first = (await self.environments.list(PageRequest(size=MAX_PAGE_SIZE))).items
        return newest_first[::-1]

    async def bindings_of(self, app: str, moment: datetime | None = None) -> dict[str, Binding]:
        """What is live, or was at a moment, by environment. Raises AppNotFound."""
        every = PageRequest(size=MAX_PAGE_SIZE)
        page = await (self.deployments.bindings(app, "", every) if moment is None else self.past.bindings(app, "", moment, every))
        return {binding.environment: binding for binding in page.items}

    async def binding(self, app: str, environment: str) -> Binding | None:
        """What is live there; None when nothing is. Raises AppNotFound, EnvironmentNotFound."""
        try:
            return await self.deployments.binding(app, environment)
        except NoReleaseDeployed:
            return None

    async def live_in(self, environment: str) -> dict[str, Binding]:
        """What is live there, by app."""
        await self.hub.refresh()
        found = self.hub.newer_than(0, environments=(environment,))
        return {binding.app: binding for binding in found if binding.deployment is not None}
