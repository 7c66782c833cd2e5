"""What every change of what is live has in common: a page that says exactly what will change, and the form that does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
from google.protobuf import json_format
from starlette.responses import Response

from control_plane.console.compare import Comparison, compare
from control_plane.console.parts import Parts
from control_plane.console.rollouts import ROLLOUT_SECONDS, Rollouts
from control_plane.console.terminal import REASON, Line
from control_plane.console.visit import Visit, with_query
from control_plane.model import Binding, Deployment
from control_plane.service.calls import Call
from control_plane.service.deployments import Deployed, Options
from pointsman.errors import InvalidField, PointsmanError, Violation
from pointsman.v1.deployments_pb2 import DeployManyRequest, DeployRequest, PromoteRequest, RollbackRequest

Request = DeployRequest | DeployManyRequest | PromoteRequest | RollbackRequest
Target = DeployRequest | DeployManyRequest.Target | PromoteRequest | RollbackRequest


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A change, as a request, as a command, and as what carries it out.

    `environment` is the one that changes, `app` the only one it is about, empty where there may be several. `where` takes the form
    with its `fields`; `done` is where it leads.
    """

    verb: str
    app: str
    environment: str
    request: Request
    command: Sequence[str]
    where: str
    fields: dict[str, str]
    carry_out: Callable[[Options, Call], Awaitable[Deployed]]
    done: Callable[[Deployed], str]

    @property
    def targets(self) -> Sequence[Target]:
        """The parts of the request of which each names a binding, and the revision that is expected of it."""
        return self.request.targets if isinstance(self.request, DeployManyRequest) else [self.request]

    @property
    def method(self) -> str:
        """Of DeploymentService."""
        return type(self.request).__name__.removesuffix("Request")

    def options(self, *, force: bool, rollout_seconds: float | None = None) -> Options:
        """As the request says. Of several bindings what is expected stands in the request alone."""
        expected = self.request.expected_revision if not isinstance(self.request, DeployManyRequest) else None
        return Options(expected_revision=expected, reason=self.request.reason, force=force, rollout_seconds=rollout_seconds)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one binding; `comparison` is shown where there is only one."""

    app: str
    live: Deployment | None
    target: Deployment
    changes: bool
    comparison: Comparison | None


class Confirmation:
    """Shows what a wish would change, and fulfils it."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._rollouts = rollouts

    async def show(self, visit: Visit, wish: Wish, problem: PointsmanError | None = None) -> Response:
        """What will change, as a dry run of the store says: no rule is repeated here. Gateways are asked when it is done."""
        live = await self._parts.live_in(wish.environment)
        for target in wish.targets:
            target.expected_revision = live[target.app].revision if target.app in live else 0
        planned = await wish.carry_out(wish.options(force=True), visit.preview())
        changing = {deployment.app for deployment in planned.deployments}
        moves = [await self._move(wish, live.get(target.app), target, changing) for target in map(_deployment, planned.bindings)]
        progress = await self._rollouts.look([live.get(binding.app, binding) for binding in planned.bindings])
        return visit.page(
            "confirm.html",
            tab="environments" if wish.app else "apps",
            problem=problem,
            app=wish.app,
            wish=wish,
            moves=moves,
            changing=[move for move in moves if move.changes],
            expected=" ".join(str(target.expected_revision) for target in wish.targets),
            gateways=progress.rollout.total,
            lines=_lines(visit, wish),
            again=with_query(wish.where, **wish.fields),
            typed={name: visit.typed(name) for name in ("reason", "force", "request_id")},
        )

    async def _move(self, wish: Wish, binding: Binding | None, target: Deployment, changing: Collection[str]) -> Move:
        live = binding.deployment if binding else None
        return Move(
            app=target.app,
            live=live,
            target=target,
            changes=target.app in changing,
            comparison=await compare(self._parts, target.app, live.release, target.release) if live and wish.app else None,
        )

    async def take(self, visit: Visit, wish: Wish) -> Response:
        """Does it; what is refused is told on the same page, with what is live by now."""
        try:
            _expect(visit, wish)
            wish.request.reason = visit.typed("reason")
            wish.request.force = bool(visit.typed("force"))
            options = wish.options(force=wish.request.force, rollout_seconds=ROLLOUT_SECONDS)
            deployed = await wish.carry_out(options, await visit.call(wish.request))
        except PointsmanError as error:
            return await self.show(visit, wish, error)
        if deployed.rollout is not None and deployed.deployments:
            self._rollouts.took(deployed.rollout)
        return visit.to(wish.done(deployed))


def _expect(visit: Visit, wish: Wish) -> None:
    """Puts into the request what the form was made for. Raises InvalidField."""
    expected = [visit.number("expected_revision", given) for given in visit.typed("expected_revision").split()]
    if expected and len(expected) != len(wish.targets):
        raise InvalidField([Violation("expected_revision", f"has {len(expected)} numbers; give {len(wish.targets)}, one for each app")])
    for target, revision in zip(wish.targets, expected, strict=False):
        target.expected_revision = revision or 0


def _deployment(binding: Binding) -> Deployment:
    assert binding.deployment is not None, "a change makes something live"
    return binding.deployment


def _lines(visit: Visit, wish: Wish) -> list[Line]:
    """The same from a terminal; refused, as the form is, when somebody else changes it first, but for a command about several apps."""
    expected = ["--expected-revision", str(wish.targets[0].expected_revision)] if len(wish.targets) == 1 else []
    command = [*wish.command, *expected, *(["--force"] if wish.request.force else [])]
    asked = json_format.MessageToDict(wish.request, preserving_proto_field_name=True)
    for target in asked.get("targets", [asked]):
        target["expected_revision"] = int(target["expected_revision"])
    reason = asked.pop("reason", "")

    def lines(reason: str) -> tuple[str, str]:
        cli = visit.command(*command, *(["--reason", reason] if reason else []))
        return cli, visit.grpcurl(f"DeploymentService/{wish.method}", asked | ({"reason": reason} if reason else {}))

    return [Line(*found) for found in zip(("CLI", "grpcurl"), lines(reason), lines(""), lines(REASON), strict=True)]
