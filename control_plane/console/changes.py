"""Deploy, Promote, Rollback: of one app, in one environment. All of it without scripts."""

from __future__ import annotations

from starlette.responses import Response

from control_plane.console.confirming import Confirmation, Wish
from control_plane.console.parts import Parts
from control_plane.console.rollouts import Rollouts
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.deployments import Deployed
from control_plane.service.paging import MAX_PAGE_SIZE, PageRequest
from pointsman.v1.deployments_pb2 import DeployRequest, PromoteRequest, RollbackRequest


class ChangePages:
    """The three ways to change what is live."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._confirmation = Confirmation(parts, rollouts)

    async def show_deploy(self, visit: Visit) -> Response:
        """Of a release, to an environment; what is not named yet is chosen."""
        release, environment = visit.asked("release"), visit.asked("environment")
        if not release or not environment:
            return await self._choose(visit, "Deploy", release=release, environment=environment)
        return await self._confirmation.show(visit, self._deploy(visit.part("app"), release, environment))

    async def deploy(self, visit: Visit) -> Response:
        """Does it."""
        return await self._confirmation.take(visit, self._deploy(visit.part("app"), visit.typed("release"), visit.typed("environment")))

    async def show_promote(self, visit: Visit) -> Response:
        """Of what is live in one environment, to another."""
        source, target = visit.asked("from"), visit.asked("to")
        if not source or not target:
            return await self._choose(visit, "Promote", source=source, target=target)
        return await self._confirmation.show(visit, self._promote(visit.part("app"), source, target))

    async def promote(self, visit: Visit) -> Response:
        """Does it."""
        return await self._confirmation.take(visit, self._promote(visit.part("app"), visit.typed("from"), visit.typed("to")))

    async def show_rollback(self, visit: Visit) -> Response:
        """To what was live before, or to the release `to`."""
        environment = visit.asked("environment")
        if not environment:
            return visit.to(path("apps", visit.part("app"), "environments"))
        return await self._confirmation.show(visit, self._rollback(visit.part("app"), environment, visit.asked("to")))

    async def rollback(self, visit: Visit) -> Response:
        """Does it."""
        return await self._confirmation.take(visit, self._rollback(visit.part("app"), visit.typed("environment"), visit.typed("to")))

    def _deploy(self, app: str, release: str, environment: str) -> Wish:
        return Wish(
            verb="Deploy",
            app=app,
            environment=environment,
            request=DeployRequest(app=app, environment=environment, release=release),
            command=["deploy", release, "--to", environment, "--app", app],
            where=path("apps", app, "deploy"),
            fields={"release": release, "environment": environment},
            carry_out=lambda options, call: self._parts.deployments.deploy(app, environment, release, options, call),
            done=lambda deployed: _done(app, environment, deployed),
        )

    def _promote(self, app: str, source: str, target: str) -> Wish:
        return Wish(
            verb="Promote",
            app=app,
            environment=target,
            request=PromoteRequest(app=app, from_environment=source, to_environment=target),
            command=["promote", "--from", source, "--to", target, "--app", app],
            where=path("apps", app, "promote"),
            fields={"from": source, "to": target},
            carry_out=lambda options, call: self._parts.deployments.promote(app, source, target, options, call),
            done=lambda deployed: _done(app, target, deployed),
        )

    def _rollback(self, app: str, environment: str, to_release: str) -> Wish:
        return Wish(
            verb="Rollback",
            app=app,
            environment=environment,
            request=RollbackRequest(app=app, environment=environment, to_release=to_release),
            command=["rollback", environment, *(["--to", to_release] if to_release else []), "--app", app],
            where=path("apps", app, "rollback"),
            fields={"environment": environment, "to": to_release},
            carry_out=lambda options, call: self._parts.deployments.rollback(app, environment, to_release, options, call),
            done=lambda deployed: _done(app, environment, deployed),
        )

    async def _choose(self, visit: Visit, verb: str, **chosen: str) -> Response:
        app = visit.part("app")
        releases = await self._parts.releases.list(app, PageRequest(size=MAX_PAGE_SIZE))
        return visit.page(
            "choose.html",
            tab="environments",
            app=app,
            verb=verb,
            chosen=chosen,
            releases=[info.release.tag for info in releases.items],
            environments=await self._parts.all_environments(),
            bindings=await self._parts.bindings_of(app),
        )


def _done(app: str, environment: str, deployed: Deployed) -> str:
    """The page of the environment, which follows the rollout."""
    told = {"done": deployed.binding.revision} if deployed.deployment else {"same": "yes"}
    return with_query(path("apps", app, "environments", environment), **told)
