"""Environments, which all apps share: a new one, what it does with gateways that hear nothing, and the end of one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from starlette.responses import Response

from control_plane.console.filters import seconds_of
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path, with_query
from control_plane.model import Binding, StaleAction
from control_plane.service.environments import EnvironmentChange
from pointsman.errors import InvalidField, PointsmanError, RevisionConflict, Violation
from pointsman.v1 import environments_pb2 as pb

MAX_NAMED = 50
ACTIONS = {
    StaleAction.SERVE: "serve on",
    StaleAction.FLAG: "serve on, and say so in X-Stale",
    StaleAction.UNREADY: "serve on, and be unready for load balancers",
    StaleAction.REFUSE: "refuse triggers",
}
FIELDS = ("environment", "description", "max_staleness", "stale_action", "request_id")


class SharedEnvironmentPages:
    """The environments of the installation."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """In the order in which they were made, with a form for another."""
        await self._parts.hub.refresh()
        live: dict[str, int] = {}
        for binding in self._parts.hub.newer_than(0):
            if binding.deployment is not None:
                live[binding.environment] = live.get(binding.environment, 0) + 1
        return visit.page(
            "shared_environments.html",
            tab="environments-of-all",
            problem=problem,
            environments=await self._parts.all_environments(),
            live=live,
            actions=ACTIONS,
            deleted=visit.asked("deleted"),
            typed={name: visit.typed(name) for name in FIELDS},
        )

    async def create(self, visit: Visit) -> Response:
        """A new one, with nothing live in it."""
        request = pb.CreateEnvironmentRequest(environment=visit.typed("environment"), description=visit.typed("description"))
        try:
            change = _change(visit, request)
            await self._parts.environments.create(request.environment, change, await visit.call(request))
        except PointsmanError as error:
            return await self.list(visit, error)
        return visit.to(with_query(path("environments", request.environment), created="yes"))

    async def show(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """What it is, what is live in it, and what would be lost with it."""
        found = await self._parts.environments.get(visit.part("environment"))
        bound = await self._bound(found.environment)
        seconds = found.max_staleness.total_seconds() if found.max_staleness else None
        stored = {
            "description": found.description,
            "max_staleness": f"{seconds:g}s" if seconds else "",
            "stale_action": found.stale_action.value,
        }
        return visit.page(
            "shared_environment.html",
            tab="environments-of-all",
            problem=problem,
            found=found,
            bound=bound[:MAX_NAMED],
            count=len(bound),
            seen=_seen(bound),
            actions=ACTIONS,
            created=visit.asked("created"),
            changed=visit.asked("changed"),
            typed={name: visit.typed(name) for name in stored} if problem and visit.typed("stale_action") else stored,
        )

    async def change(self, visit: Visit) -> Response:
        """Its description, and how long gateways may hear nothing."""
        environment = visit.part("environment")
        request = pb.UpdateEnvironmentRequest(environment=environment, description=visit.typed("description"))
        try:
            change = _change(visit, request)
            await self._parts.environments.update(environment, change, await visit.call(request))
        except PointsmanError as error:
            return await self.show(visit, error)
        return visit.to(with_query(path("environments", environment), changed="yes"))

    async def delete(self, visit: Visit) -> Response:
        """Only while what the page named is what would be lost."""
        environment = visit.part("environment")
        request = pb.DeleteEnvironmentRequest(environment=environment, force=bool(visit.typed("force")))
        try:
            call = await visit.call(request)
            bound = await self._bound(environment)
            if request.force and visit.number("seen") != _seen(bound):
                raise RevisionConflict(
                    f"What is live in {environment!r} has changed since the page was made, so nothing was deleted. Look again, below.",
                    expected=visit.number("seen") or 0,
                    current=_seen(bound),
                    environment=environment,
                )
            await self._parts.environments.delete(environment, call, force=request.force)
        except PointsmanError as error:
            return await self.show(visit, error)
        return visit.to(with_query("/environments", deleted=environment))

    async def _bound(self, environment: str) -> Sequence[Binding]:
        """What is live there, by app."""
        return [binding for _, binding in sorted((await self._parts.live_in(environment)).items())]


def _seen(bound: Sequence[Binding]) -> int:
    """Changes with everything that is deployed there."""
    return max((binding.revision for binding in bound), default=0)


def _change(visit: Visit, request: pb.CreateEnvironmentRequest | pb.UpdateEnvironmentRequest) -> EnvironmentChange:
    """What the form asks for; put into the request too. Raises InvalidField."""
    action, limit = visit.typed("stale_action"), visit.typed("max_staleness")
    if action not in StaleAction.__members__:
        raise InvalidField([Violation("stale_action", f"{action[:40]!r} is none of {', '.join(StaleAction.__members__)}")])
    seconds = seconds_of("max_staleness", limit) if limit else 0.0
    request.stale_action = pb.Environment.StaleAction.Value(action)
    if seconds or isinstance(request, pb.UpdateEnvironmentRequest):
        request.max_staleness.FromTimedelta(timedelta(seconds=seconds))
    return EnvironmentChange(description=request.description, max_staleness=timedelta(seconds=seconds), stale_action=StaleAction(action))
