"""What is live where, or was at a moment, since when, by whom; the history; who serves it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from starlette.responses import Response

from control_plane.console.filters import moment_of
from control_plane.console.parts import Parts
from control_plane.console.rollouts import MAX_NAMED, Rollouts, served
from control_plane.console.visit import Visit
from control_plane.model import Binding
from control_plane.service.paging import PageRequest
from pointsman.errors import InvalidField, PointsmanError, Violation

HISTORY_SIZE = 20


class EnvironmentPages:
    """The environments of an app."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._rollouts = rollouts

    async def list(self, visit: Visit) -> Response:
        """Each environment with what is live in it, or was `as_of` a moment; those with nothing are only named."""
        app, typed = visit.part("app"), visit.asked("as_of")
        moment: datetime | None = None
        problem: PointsmanError | None = None
        try:
            moment = self._past_moment(typed)
        except InvalidField as error:
            problem = error
        bindings = await self._parts.bindings_of(app, moment)
        known = await self._parts.all_environments()
        names = [found.environment for found in known]
        # Something was live in them then; they are deleted since.
        gone = sorted(bindings.keys() - set(names))
        return visit.page(
            "environments.html",
            tab="environments",
            problem=problem,
            app=app,
            as_of=typed,
            moment=moment,
            gone=gone,
            live=[(name, bindings[name]) for name in (*names, *gone) if name in bindings],
            idle=[
                found.environment for found in known if found.environment not in bindings and (not moment or found.create_time <= moment)
            ],
            line="" if moment is None else visit.command("--app", app, "status", "--as-of", moment.isoformat()),
        )

    def _past_moment(self, text: str) -> datetime | None:
        """None where nothing was typed. Raises InvalidField."""
        now = self._parts.clock()
        moment = moment_of("as_of", text, now)
        if moment is not None and moment > now:
            raise InvalidField([Violation("as_of", f"{text[:40]!r} is yet to come; write a time that has passed")])
        return moment

    async def one(self, visit: Visit) -> Response:
        """What is live in one, who serves it, and how it came about."""
        app, environment = visit.part("app"), visit.part("environment")
        binding = await self._parts.binding(app, environment)
        history = await self._parts.deployments.history(app, environment, PageRequest(size=HISTORY_SIZE, token=visit.asked("page")))
        return visit.page(
            "environment.html",
            tab="environments",
            app=app,
            environment=environment,
            binding=binding,
            progress=None if binding is None else await self._rollouts.look([binding]),
            serves="" if binding is None else served([binding]),
            max_named=MAX_NAMED,
            history=history.items,
            next_page=history.next_page_token,
            first_page=not visit.asked("page"),
            done=visit.asked("done"),
            same=visit.asked("same"),
        )

    async def rollout(self, visit: Visit) -> Response:
        """Who serves it, as it happens."""
        app, environment = visit.part("app"), visit.part("environment")

        async def find() -> Sequence[Binding]:
            binding = await self._parts.binding(app, environment)
            return [] if binding is None else [binding]

        await find()
        return visit.stream(self._rollouts.events(visit, find))
