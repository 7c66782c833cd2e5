"""Releases of an app: the list, a new one, what is in one."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse, Response

from control_plane.console.pages import SECURITY_HEADERS
from control_plane.console.parts import Parts
from control_plane.console.rollouts import ROLLOUT_SECONDS, Rollouts
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.deployments import Options
from control_plane.service.paging import PageRequest
from control_plane.service.snapshots import plain_of
from pointsman.errors import PointsmanError, ReleaseNotFound
from pointsman.plain import as_yaml
from pointsman.rules import check_request
from pointsman.v1.releases_pb2 import CreateReleaseRequest

PAGE_SIZE = 25
# What of a snapshot a page shows; the whole of it can be downloaded.
MAX_SHOWN_CHARS = 64 * 1024


class ReleasePages:
    """Everything that is done with releases, but for making them live."""

    def __init__(self, parts: Parts, rollouts: Rollouts) -> None:
        self._parts = parts
        self._rollouts = rollouts

    async def list(self, visit: Visit) -> Response:
        """Newest first; `q` searches."""
        app, text = visit.part("app"), visit.asked("q")
        releases = await self._parts.releases.list(app, PageRequest(size=PAGE_SIZE, token=visit.asked("page")), matching=text)
        return visit.page(
            "releases.html",
            tab="releases",
            releases=releases.items,
            next_page=releases.next_page_token,
            first_page=not visit.asked("page"),
            created=visit.asked("created"),
            q=text,
            **await release_form(self._parts, visit, app),
        )

    async def new(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """The form of the dialog as a page of its own: without scripts, and when something is wrong."""
        app = visit.part("app")
        return visit.page("release_new.html", tab="releases", problem=problem, **await release_form(self._parts, visit, app))

    async def create(self, visit: Visit) -> Response:
        """A release of the draft; deployed at once when that was wished."""
        app = visit.part("app")
        request = CreateReleaseRequest(
            app=app,
            tag=visit.typed("tag"),
            description=visit.typed("description"),
            deploy_to=visit.typed("deploy_to") if visit.typed("deploy") else "",
        )
        try:
            created, deployed = await self._parts.releases.create(
                app=app,
                tag=request.tag,
                description=request.description,
                config=None,
                deploy_to=request.deploy_to,
                call=await visit.call(request),
                options=Options(rollout_seconds=ROLLOUT_SECONDS),
            )
        except PointsmanError as error:
            return await self.new(visit, error)
        if deployed is None:
            return visit.to(with_query(path("apps", app, "releases"), created=created.release.tag))
        if deployed.rollout is not None:
            self._rollouts.took(deployed.rollout)
        return visit.to(with_query(path("apps", app, "environments", request.deploy_to), done=deployed.binding.revision))

    async def check(self, visit: Visit) -> Response:
        """Whether a tag may be used, while it is typed."""
        app, tag = visit.part("app"), visit.asked("tag")
        broken = [violation.description for violation in check_request(CreateReleaseRequest(app=app, tag=tag)) if violation.field == "tag"]
        if broken:
            message = broken[0]
        else:
            try:
                await self._parts.releases.get(app, tag, with_snapshot=False)
                message = f"There is a release {tag} already; choose another tag."
            except ReleaseNotFound:
                message = ""
        return JSONResponse({"ok": not message, "message": message or f"{tag} is free."}, headers=SECURITY_HEADERS)

    async def snapshot(self, visit: Visit) -> Response:
        """What is in a release, for ever."""
        app = visit.part("app")
        info = await self._parts.releases.get(app, visit.part("tag"), with_snapshot=True)
        assert info.snapshot is not None, "it was asked for"
        text = await asyncio.to_thread(_text, info.snapshot)
        if visit.asked("download"):
            headers = SECURITY_HEADERS | {"Content-Disposition": f'attachment; filename="{app}-{info.release.tag}.yaml"'}
            return Response(text, media_type="application/yaml", headers=headers)
        return visit.page(
            "snapshot.html",
            tab="releases",
            app=app,
            info=info,
            text=text[:MAX_SHOWN_CHARS],
            cut=max(0, len(text) - MAX_SHOWN_CHARS),
            bindings=await self._parts.bindings_of(app),
        )


async def release_form(parts: Parts, visit: Visit, app: str) -> dict[str, Any]:
    """What the form of Create Release needs to know, with what was typed into it."""
    newest = await parts.releases.list(app, PageRequest(size=1))
    return {
        "app": app,
        "draft": await parts.apps.draft(app),
        "newest": newest.items[0].release if newest.items else None,
        "environments": await parts.all_environments(),
        "typed": {name: visit.typed(name) for name in ("tag", "description", "deploy", "deploy_to", "request_id")},
    }


def _text(snapshot: bytes) -> str:
    return as_yaml(plain_of(snapshot))
