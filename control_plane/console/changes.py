"""Deploy, Promote, Rollback: a page that says exactly what will change, and the form that does it. All of it without scripts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from google.protobuf import json_format
from starlette.responses import Response

from control_plane.console.compare import compare
from control_plane.console.parts import Parts
from control_plane.console.rollouts import ROLLOUT_SECONDS, Rollouts
from control_plane.console.terminal import REASON, Line
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.calls import Call
from control_plane.service.deployments import Deployed, Options
from control_plane.service.paging import MAX_PAGE_SIZE, PageRequest
from pointsman.errors import PointsmanError
from pointsman.v1.deployments_pb2 import DeployRequest, PromoteRequest, RollbackRequest

Request = DeployRequest | PromoteRequest | RollbackRequest


class Wish(msgspec.Struct, frozen=True):
    """One of the three, as a request, as a command, and as what carries it out. `environment` is the one that changes."""

    verb: str
    app: str
    environment: str
    request: Request
    command: Sequence[str]
    fields: dict[str, str]
    carry_out: Callable[[Options, Call], Awaitable[Deployed]]


class ChangePages:
    """The three ways to change what is live."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._rollouts = rollouts

    async def show_deploy(self, visit: Visit) -> Response:
        """Of a release, to an environment; what is not named yet is chosen."""
        release, environment = visit.asked("release"), visit.asked("environment")
        if not release or not environment:
            return await self._choose(visit, "Deploy", release=release, environment=environment)
        return await self._confirm(visit, self._deploy(visit.part("app"), release, environment))

    async def deploy(self, visit: Visit) -> Response:
        """Does it."""
        return await self._do(visit, self._deploy(visit.part("app"), visit.typed("release"), visit.typed("environment")))

    async def show_promote(self, visit: Visit) -> Response:
        """Of what is live in one environment, to another."""
        source, target = visit.asked("from"), visit.asked("to")
        if not source or not target:
            return await self._choose(visit, "Promote", source=source, target=target)
        return await self._confirm(visit, self._promote(visit.part("app"), source, target))

    async def promote(self, visit: Visit) -> Response:
        """Does it."""
        return await self._do(visit, self._promote(visit.part("app"), visit.typed("from"), visit.typed("to")))

    async def show_rollback(self, visit: Visit) -> Response:
        """To what was live before, or to the release `to`."""
        environment = visit.asked("environment")
        if not environment:
            return visit.to(path("apps", visit.part("app"), "environments"))
        return await self._confirm(visit, self._rollback(visit.part("app"), environment, visit.asked("to")))

    async def rollback(self, visit: Visit) -> Response:
        """Does it."""
        return await self._do(visit, self._rollback(visit.part("app"), visit.typed("environment"), visit.typed("to")))

    def _deploy(self, app: str, release: str, environment: str) -> Wish:
        return Wish(
            "Deploy",
            app,
            environment,
            DeployRequest(app=app, environment=environment, release=release),
            ["deploy", release, "--to", environment],
            {"release": release, "environment": environment},
            lambda options, call: self._parts.deployments.deploy(app, environment, release, options, call),
        )

    def _promote(self, app: str, source: str, target: str) -> Wish:
        return Wish(
            "Promote",
            app,
            target,
            PromoteRequest(app=app, from_environment=source, to_environment=target),
            ["promote", "--from", source, "--to", target],
            {"from": source, "to": target},
            lambda options, call: self._parts.deployments.promote(app, source, target, options, call),
        )

    def _rollback(self, app: str, environment: str, to_release: str) -> Wish:
        return Wish(
            "Rollback",
            app,
            environment,
            RollbackRequest(app=app, environment=environment, to_release=to_release),
            ["rollback", environment, *(["--to", to_release] if to_release else [])],
            {"environment": environment, "to": to_release},
            lambda options, call: self._parts.deployments.rollback(app, environment, to_release, options, call),
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

    async def _confirm(self, visit: Visit, wish: Wish, problem: PointsmanError | None = None) -> Response:
        """What will change, as a dry run of the store says: no rule is repeated here. Gateways are asked when it is done."""
        current = await self._parts.binding(wish.app, wish.environment)
        expected = current.revision if current else 0
        planned = await wish.carry_out(Options(expected_revision=expected, force=True), visit.preview())
        target = planned.binding.deployment
        assert target is not None, "a change makes something live"
        live = current.deployment if current else None
        progress = await self._rollouts.look(current or planned.binding)
        return visit.page(
            "confirm.html",
            tab="environments",
            problem=problem,
            app=wish.app,
            wish=wish,
            live=live,
            target=target,
            changes=live is None or planned.deployment is not None,
            expected=expected,
            gateways=progress.rollout.total,
            comparison=await compare(self._parts, wish.app, live.release, target.release) if live else None,
            lines=_lines(visit, wish, expected),
            again=with_query(path("apps", wish.app, wish.verb.lower()), **wish.fields),
            typed={name: visit.typed(name) for name in ("reason", "force", "request_id")},
        )

    async def _do(self, visit: Visit, wish: Wish) -> Response:
        try:
            expected = visit.number("expected_revision")
            wish.request.reason = visit.typed("reason")
            wish.request.force = bool(visit.typed("force"))
            if expected is not None:
                wish.request.expected_revision = expected
            options = Options(
                expected_revision=expected, reason=wish.request.reason, force=wish.request.force, rollout_seconds=ROLLOUT_SECONDS
            )
            deployed = await wish.carry_out(options, await visit.call(wish.request))
        except PointsmanError as error:
            return await self._confirm(visit, wish, error)
        if deployed.rollout is not None and deployed.deployment is not None:
            self._rollouts.took(deployed.rollout)
        told = {"done": deployed.binding.revision} if deployed.deployment else {"same": "yes"}
        return visit.to(with_query(path("apps", wish.app, "environments", wish.environment), **told))


def _lines(visit: Visit, wish: Wish, expected: int) -> list[Line]:
    """The same from a terminal; refused, as the form is, when somebody else changes it first."""
    command = [*wish.command, "--app", wish.app, "--expected-revision", str(expected), *(["--force"] if wish.request.force else [])]
    asked = json_format.MessageToDict(wish.request, preserving_proto_field_name=True) | {"expected_revision": expected}
    reason = asked.pop("reason", "")
    method = f"DeploymentService/{wish.verb}"

    def lines(reason: str) -> tuple[str, str]:
        cli = visit.command(*command, *(["--reason", reason] if reason else []))
        return cli, visit.grpcurl(method, asked | ({"reason": reason} if reason else {}))

    return [Line(*found) for found in zip(("CLI", "grpcurl"), lines(reason), lines(""), lines(REASON), strict=True)]
