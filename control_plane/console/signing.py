"""Signing in with a token, and out."""

from __future__ import annotations

from starlette.responses import Response

from control_plane.console.parts import Parts
from control_plane.console.session import check_fits, sign_in, sign_out
from control_plane.console.visit import Visit, path
from pointsman.errors import PermissionDenied, PointsmanError


class SigningPages:
    """The only pages for everybody."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """Asks for the token."""
        if self._parts.authority.is_open:
            return visit.to("/apps")
        return visit.page("sign_in.html", problem=problem, tab="", next=_local(visit.asked("next") or visit.typed("next")))

    async def take(self, visit: Visit) -> Response:
        """In, and on to where the browser wanted to go."""
        try:
            _check_form(visit)
            token = self._parts.authority.owner(visit.typed("token"))
            check_fits(visit.typed("token"))
        except PointsmanError as error:
            return await self.show(visit, error)
        # A token that is for one app would only be refused the list of all.
        home = path("apps", token.apps[0], "releases") if len(token.apps) == 1 else "/apps"
        wanted = _local(visit.typed("next"))
        response = visit.to(home if wanted == "/apps" else wanted)
        sign_in(response, visit.typed("token"), secure=visit.is_secure)
        return response

    async def leave(self, visit: Visit) -> Response:
        """Out."""
        _check_form(visit)
        response = visit.to("/sign-in")
        sign_out(response)
        return response


def _check_form(visit: Visit) -> None:
    if not visit.is_of_this_browser:
        raise PermissionDenied(
            "This form was not made for this browser session: its cookie is missing or another. Try again, with cookies allowed."
        )


def _local(where: str) -> str:
    """A path of the console, never another site."""
    return where if where.startswith("/") and not where.startswith(("//", "/\\", "/sign-")) else "/apps"
