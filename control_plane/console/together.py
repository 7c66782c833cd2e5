"""Deploy together: releases of several apps, to one environment, at one revision, all or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response

from control_plane.console.confirming import Confirmation, Wish
from control_plane.console.parts import Parts
from control_plane.console.rollouts import MAX_NAMED, Rollouts, served
from control_plane.console.visit import Visit, path, with_query
from control_plane.model import Binding
from control_plane.service.calls import Call
from control_plane.service.deployments import Deployed, Options, Wanted
from control_plane.service.paging import MAX_PAGE_SIZE, PageRequest
from pointsman.errors import AppNotFound, InvalidField, PermissionDenied, PointsmanError, ReleaseNotFound, Violation
from pointsman.v1.deployments_pb2 import DeployManyRequest

# What of many apps a page shows; DeployMany takes 500.
MAX_APPS = 200
# How many releases are offered in all, so that the page stays small; of each app so many of the newest.
MAX_OFFERED = 1500
MAX_OFFERED_EACH = 50
# The field of an app in the form where releases are chosen.
CHOICE = "release."


class TogetherPages:
    """Choosing, confirming, and following."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._rollouts = rollouts
        self._confirmation = Confirmation(parts, rollouts)

    async def show(self, visit: Visit) -> Response:
        """What to deploy where is chosen first. `releases` names it as a command does: APP=TAG, divided by spaces."""
        environment, step = visit.asked("environment"), visit.asked("step")
        chosen = visit.asked_each(CHOICE)
        try:
            chosen = chosen or _releases(visit.asked("releases"))
            if step == "confirm":
                return visit.to(with_query("/deploy", **self._wish(environment, chosen).fields))
            if step or not chosen:
                return await self._choose(visit, environment, chosen)
            wish = self._wish(environment, chosen)
            await visit.check(wish.request)
            return await self._confirmation.show(visit, wish)
        except (AppNotFound, ReleaseNotFound, InvalidField) as error:
            return await self._choose(visit, environment, chosen, error)

    async def take(self, visit: Visit) -> Response:
        """Does it."""
        return await self._confirmation.take(visit, self._wish(visit.typed("environment"), _releases(visit.typed("releases"))))

    async def one(self, visit: Visit) -> Response:
        """What was deployed at a revision, and who serves all of it."""
        environment = visit.part("environment")
        bindings = await self._deployed(visit)
        return visit.page(
            "together.html",
            tab="apps",
            environment=environment,
            revision=visit.part("revision"),
            bindings=bindings,
            progress=await self._rollouts.look(bindings) if bindings else None,
            serves=served(bindings) if bindings else "",
            max_named=MAX_NAMED,
            app="",
        )

    async def rollout(self, visit: Visit) -> Response:
        """Who serves all of it, as it happens."""
        return visit.stream(self._rollouts.events(visit, lambda: self._deployed(visit)))

    async def _deployed(self, visit: Visit) -> list[Binding]:
        """By app; what was replaced since is not among it."""
        revision = visit.number("revision", visit.part("revision"))
        live = await self._parts.live_in(visit.part("environment"))
        return [binding for _, binding in sorted(live.items()) if binding.revision == revision]

    def _wish(self, environment: str, chosen: Mapping[str, str]) -> Wish:
        """Raises InvalidField."""
        if not chosen:
            raise InvalidField([Violation("releases", "none is chosen; choose a release of one app or more")])
        request = DeployManyRequest()
        for app, release in chosen.items():
            request.targets.add(app=app, environment=environment, release=release)

        async def carry_out(options: Options, call: Call) -> Deployed:
            wanted = [
                Wanted(
                    app=target.app,
                    environment=target.environment,
                    release=target.release,
                    expected_revision=target.expected_revision if target.HasField("expected_revision") else None,
                )
                for target in request.targets
            ]
            return await self._parts.deployments.deploy_many(wanted, options, call)

        return Wish(
            verb="Deploy",
            app="",
            environment=environment,
            request=request,
            command=["deploy", *_named(chosen).split(), "--to", environment],
            where="/deploy",
            fields={"environment": environment, "releases": _named(chosen)},
            carry_out=carry_out,
            done=lambda deployed: _done(environment, deployed),
        )

    async def _choose(self, visit: Visit, environment: str, chosen: Mapping[str, str], problem: PointsmanError | None = None) -> Response:
        known = [found.environment for found in await self._parts.all_environments()]
        allowed = [name for name in known if name in (visit.own_environments or known)]
        environment = next((name for name in (environment, "staging", *allowed) if name in allowed), "")
        apps = sorted(app.app for app in (await self._parts.apps.list(PageRequest(size=MAX_PAGE_SIZE))).items)
        tags = await self._parts.releases.newest_tags(min(MAX_OFFERED_EACH, max(MAX_OFFERED // max(len(apps), 1), 1)))
        there = [app for app in apps if app in tags]
        shown = sorted(sorted(there, key=lambda app: app not in chosen)[:MAX_APPS])
        return visit.page(
            "choose_together.html",
            tab="apps",
            problem=problem,
            app="",
            environment=environment,
            environments=allowed,
            offered=[(app, _with(tags[app], chosen.get(app, ""))) for app in shown],
            more=len(there) - len(shown),
            bare=[app for app in apps if app not in tags],
            live=await self._parts.live_in(environment),
            chosen=chosen,
            refused=_refused(visit),
            same=visit.asked("same"),
        )


def _with(tags: Sequence[str], chosen: str) -> Sequence[str]:
    """What is chosen stays, also where it is not among those that are offered."""
    return [*tags, chosen] if chosen and chosen not in tags else tags


def _refused(visit: Visit) -> PermissionDenied | None:
    """Why who asks may not deploy anything."""
    try:
        visit.check_method("DeployMany")
    except PermissionDenied as error:
        return error
    return None


def _releases(text: str) -> dict[str, str]:
    """Of `shop=v42 search=v7` the tag of each app. Raises InvalidField."""
    found: dict[str, str] = {}
    for word in text.split():
        app, equals, tag = word.partition("=")
        if not equals or app in found:
            wrong = "names its app twice" if equals else "is no APP=TAG"
            raise InvalidField([Violation("releases", f"{word[:80]!r} {wrong}; write each app once, such as shop=v42 search=v7")])
        found[app] = tag
    return found


def _named(chosen: Mapping[str, str]) -> str:
    return " ".join(f"{app}={tag}" for app, tag in chosen.items())


def _done(environment: str, deployed: Deployed) -> str:
    if not deployed.deployments:
        return with_query("/deploy", environment=environment, same="yes")
    return path("deploy", environment, str(deployed.deployments[0].revision))
