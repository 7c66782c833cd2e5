"""The draft as YAML text: errors at their lines, what changed since the newest release, two people who edit at once."""

from __future__ import annotations

import asyncio
import re

import msgspec
from starlette.responses import Response

from control_plane.console.compare import MAX_LINES, Side, compare, side_by_side
from control_plane.console.parts import Parts
from control_plane.console.releases import release_form
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.snapshots import plain_of, snapshot_of
from pointsman.appfile import AppFile, parse
from pointsman.errors import PointsmanError, RevisionConflict
from pointsman.nodes import NotReadableError
from pointsman.plain import as_yaml
from pointsman.v1.apps_pb2 import UpdateDraftRequest

# Text that is percent-encoded, at worst, takes three times its bytes.
MAX_DRAFT_FORM_BYTES = 24 * 1024 * 1024
MAX_ERRORS = 50
# What an empty draft begins with, so that the first thing to do is to change something that works.
STARTER = """\
endpoints:
  - name: hello
    pipeline: hello
    input_schema:
      type: object
      required: [name]
      properties:
        name: {type: string}

pipelines:
  - name: hello
    stages:
      - name: answer
        steps:
          - name: reply
            transform:
              expression: "'Hello, ' + input.name"
"""
_AT = re.compile(r"line (\d+), column (\d+): (.*)", re.DOTALL)


class Mistake(msgspec.Struct, frozen=True):
    """What is wrong at a line of the text; line 0 is the text as a whole."""

    line: int
    column: int
    field: str
    description: str
    excerpt: list[tuple[int, str]]


class DraftPage:
    """The draft of an app."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit) -> Response:
        """As it is stored."""
        return await self._page(visit)

    async def save(self, visit: Visit) -> Response:
        """Stores what was typed, or only checks it. What is refused stays on the page as it was typed."""
        app, text = visit.part("app"), visit.text("text")
        try:
            found = await asyncio.to_thread(parse, text) if text.strip() else AppFile(UpdateDraftRequest().config, [])
        except NotReadableError as error:
            return await self._page(visit, text=text, mistakes=[_unreadable(str(error), text)])
        if found.violations:
            mistakes = [
                _mistake(one.line, one.column, one.violation.field, one.violation.description, text)
                for one in found.violations[:MAX_ERRORS]
            ]
            return await self._page(visit, text=text, mistakes=mistakes)
        if visit.typed("action") == "check":
            return await self._page(visit, text=text, sound=True)
        try:
            expected = visit.number("expected_draft_version")
            request = UpdateDraftRequest(app=app, config=found.config, expected_draft_version=expected)
            await self._parts.apps.update_draft(app, snapshot_of(found.config), expected, await visit.call(request))
        except PointsmanError as error:
            return await self._page(visit, text=text, problem=error)
        return visit.to(with_query(path("apps", app, "draft"), saved="yes"))

    async def _page(
        self,
        visit: Visit,
        *,
        text: str | None = None,
        mistakes: list[Mistake] | None = None,
        sound: bool = False,
        problem: PointsmanError | None = None,
    ) -> Response:
        app = visit.part("app")
        form = await release_form(self._parts, visit, app)
        draft, newest = form["draft"], form["newest"]
        stored = await asyncio.to_thread(lambda: as_yaml(plain_of(draft.config)) if draft.config else "")
        begun = stored if draft.version else STARTER
        theirs: list[tuple[Side, Side]] = []
        expected = draft.version
        if isinstance(problem, RevisionConflict) and text is not None:
            theirs = await asyncio.to_thread(lambda: _differing(side_by_side(stored.splitlines(), text.splitlines())))
        elif text is not None:
            # The version that this text was made from, for as long as the difference to a newer one was not shown.
            typed = visit.typed("expected_draft_version")
            expected = int(typed) if re.fullmatch("[0-9]{1,18}", typed) else draft.version
        comparison = await compare(self._parts, app, newest.tag, "") if newest and draft.has_changes else None
        return visit.page(
            "draft.html",
            status=400 if mistakes else 200,
            problem=problem,
            tab="draft",
            text=begun if text is None else text,
            mistakes=mistakes or [],
            sound=sound,
            saved=visit.asked("saved"),
            theirs=theirs[:MAX_LINES],
            expected=expected,
            comparison=comparison,
            **form,
        )


def _differing(rows: list[tuple[Side, Side]]) -> list[tuple[Side, Side]]:
    return [row for row in rows if row[0].kind != "same"]


def _unreadable(message: str, text: str) -> Mistake:
    at = _AT.fullmatch(message)
    return _mistake(int(at[1]), int(at[2]), "", at[3], text) if at else _mistake(0, 0, "", message, text)


def _mistake(line: int, column: int, field: str, description: str, text: str) -> Mistake:
    lines = text.split("\n")
    around = range(max(1, line - 1), min(len(lines), line + 1) + 1) if line else range(0)
    return Mistake(line, column, field, description, [(number, lines[number - 1][:200]) for number in around])
