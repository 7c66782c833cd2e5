"""What is different between two releases, or a release and the draft, side by side."""

from __future__ import annotations

import asyncio
import difflib
from typing import Any

import msgspec
from starlette.responses import Response

from control_plane.console.parts import Parts
from control_plane.console.visit import Visit
from control_plane.service.diff import Change, diff
from control_plane.service.paging import MAX_PAGE_SIZE, PageRequest
from control_plane.service.snapshots import plain_of
from pointsman.plain import as_yaml

# So that a page stays small; the command line shows everything.
MAX_CHANGES = 100
MAX_LINES = 1000


class Side(msgspec.Struct, frozen=True):
    """Half of a row: `kind` is a class of console.css, the middle part is what differs within the line."""

    kind: str
    before: str
    middle: str = ""
    after: str = ""


class ShownChange(msgspec.Struct, frozen=True):
    """One change with its values as lines."""

    change: Change
    rows: list[tuple[Side, Side]]


class Comparison(msgspec.Struct, frozen=True):
    """What a page shows of a difference: at most MAX_CHANGES of `total`, of which `breaking` may refuse callers of before."""

    shown: list[ShownChange]
    total: int
    breaking: int


async def compare(parts: Parts, app: str, old: str, new: str) -> Comparison:
    """From one release to another; an empty tag is the draft. Raises AppNotFound, ReleaseNotFound."""
    before, after = await parts.releases.configs(app, old, new)
    return await asyncio.to_thread(_compare, before, after)


def _compare(before: bytes, after: bytes) -> Comparison:
    changes = [] if before == after else diff(plain_of(before), plain_of(after))
    shown: list[ShownChange] = []
    lines = 0
    for change in changes[:MAX_CHANGES]:
        rows = side_by_side(_lines(change.old), _lines(change.new))
        lines += len(rows)
        if lines > MAX_LINES and shown:
            break
        shown.append(ShownChange(change, rows[:MAX_LINES]))
    return Comparison(shown, len(changes), sum(bool(change.breaking) for change in changes))


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    return (value if isinstance(value, str) else as_yaml(value).removesuffix("...\n")).splitlines() or [""]


def side_by_side(old: list[str], new: list[str]) -> list[tuple[Side, Side]]:
    """Rows of two columns: what is the same stands beside itself."""
    rows = []
    for kind, old_from, old_to, new_from, new_to in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        left, right = old[old_from:old_to], new[new_from:new_to]
        if kind == "equal":
            rows += [(Side("same", line), Side("same", line)) for line in left]
            continue
        for index in range(max(len(left), len(right))):
            was, now = left[index] if index < len(left) else None, right[index] if index < len(right) else None
            rows.append(_row(was, now))
    return rows


def _row(was: str | None, now: str | None) -> tuple[Side, Side]:
    if was is None or now is None:
        nothing = Side("none", "")
        return (nothing if was is None else Side("removed", was)), (nothing if now is None else Side("added", now))
    start = 0
    while start < min(len(was), len(now)) and was[start] == now[start]:
        start += 1
    end = 0
    while end < min(len(was), len(now)) - start and was[-1 - end] == now[-1 - end]:
        end += 1
    cut_was, cut_now = len(was) - end, len(now) - end
    return Side("removed", was[:start], was[start:cut_was], was[cut_was:]), Side("added", now[:start], now[start:cut_now], now[cut_now:])


class ComparePage:
    """Two releases of an app."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit) -> Response:
        """`from` and `to` are tags; an empty `to` is the draft, an empty `from` the release before `to`."""
        app, old, new = visit.part("app"), visit.asked("from"), visit.asked("to")
        tags = [info.release.tag for info in (await self._parts.releases.list(app, PageRequest(size=MAX_PAGE_SIZE))).items]
        if not old and tags:
            older = tags[tags.index(new) + 1 :] if new in tags else tags
            old = older[0] if older else tags[-1]
        comparison = await compare(self._parts, app, old, new) if old else None
        tags += [tag for tag in (old, new) if tag and tag not in tags]
        return visit.page("compare.html", tab="releases", app=app, old=old, new=new, tags=tags, comparison=comparison)
