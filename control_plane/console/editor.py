"""The draft as a picture with forms: pipelines as columns of stages with cards of steps. Each form is one change of the draft, at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf import message_factory
from google.protobuf.message import Message
from starlette.responses import Response

from control_plane.cli.samples import SAMPLES, sample_text
from control_plane.console import places
from control_plane.console.compare import Side, compare, side_by_side
from control_plane.console.draft import STARTER
from control_plane.console.forms import Layout, by_field, layout_of, read_into, texts_of
from control_plane.console.parts import Parts
from control_plane.console.places import Place, place_of
from control_plane.console.releases import release_form
from control_plane.console.visit import Visit, path, with_query
from control_plane.service.snapshots import snapshot_of
from pointsman.appfile import parse
from pointsman.errors import InvalidField, PointsmanError, RevisionConflict, Violation
from pointsman.plain import as_yaml, plain
from pointsman.v1.apps_pb2 import UpdateDraftRequest
from pointsman.v1.config_pb2 import AppConfig

LISTS = ("endpoints", "pipelines", "tools", "models")
# What a new step does until it is told what to do: it hands the input on.
_NEW_STEP = {"kind": "transform", "transform.expression": "input"}


class Form(msgspec.Struct, frozen=True):
    """What a form shows.

    Texts stand in it and `wrong` beside them, by field; `names` is what the place was called when the form was made, as JSON; `rows` are
    theirs and yours when somebody else saved meanwhile, and `is_gone` says that they removed it.
    """

    place: Place
    layout: Layout
    texts: Mapping[str, str]
    wrong: Mapping[str, str]
    others: list[Violation]
    names: str
    rows: list[tuple[Side, Side]]
    is_gone: bool


class EditorPages:
    """The board of a pipeline, the form of anything, and the changes that they ask for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit) -> Response:
        """The pipeline at `at`, or the first."""
        return await self._board(visit)

    async def change(self, visit: Visit) -> Response:
        """`do`: `move FROM TO`, `delete AT`, or `sample NAME` for a draft that is empty."""
        verb, *given = visit.typed("do").split() or [""]
        config = await self._config(visit)
        try:
            if verb == "sample" and len(given) == 1:
                config, where = await asyncio.to_thread(_sample, config, given[0]), place_of("pipelines[0]")
            elif verb == "move" and len(given) == 2:
                where = places.move(config, place_of(given[0]), place_of(given[1]))
            elif verb == "delete" and len(given) == 1:
                where = _delete(config, place_of(given[0]))
            else:
                raise InvalidField([Violation("do", f"{visit.typed('do')[:80]!r} is nothing that can be done with a draft")])
            await self._save(visit, config)
        except PointsmanError as error:
            return await self._board(visit, problem=error)
        return visit.to(self._back_to(visit, where))

    async def form(self, visit: Visit) -> Response:
        """Of what stands at `at`, or, when that is a list, of a new one for it."""
        config, place = await self._config(visit), place_of(visit.asked("at"))
        _found(config, place)
        message = places.find(config, place)
        layout = _layout(place)
        texts = _texts_of_new(config, place, layout) if place.is_new else texts_of(layout, message)
        form = Form(place, layout, texts, {}, [], json.dumps(places.names_at(config, place)), [], is_gone=False)
        return await self._form(visit, form, config)

    async def save(self, visit: Visit) -> Response:
        """What was typed becomes part of the draft; refused, it stays in the form."""
        place, names = place_of(visit.typed("at")), _names(visit.typed("names"))
        layout = _layout(place)
        texts = {name: visit.text(name) for name in (*(field.name for field in layout.every()), *layout.oneofs())}
        form = Form(place, layout, texts, {}, [], json.dumps(names), [], is_gone=False)
        draft = await self._parts.apps.draft(visit.part("app"))
        config = await asyncio.to_thread(AppConfig.FromString, draft.config)
        version, at = visit.typed("expected_draft_version"), place
        try:
            if visit.number("expected_draft_version") != draft.version:
                return await self._after_conflict(visit, form, names, _conflict(visit.part("app"), version, draft.version))
            at = _found(config, place)
            renamed = _edit(config, at, form)
            await self._save(visit, config)
        except RevisionConflict as error:
            return await self._after_conflict(visit, form, names, error)
        except InvalidField as error:
            return await self._form(visit, _told(form, at.path, error), config, problem=error, version=version)
        except PointsmanError as error:
            return await self._form(visit, form, config, problem=error, version=version)
        return visit.to(self._back_to(visit, at, renamed=renamed))

    async def changes(self, visit: Visit) -> Response:
        """What is different from the newest release."""
        return visit.page("changes.html", tab="draft", **await draft_tabs(self._parts, visit))

    async def _config(self, visit: Visit) -> AppConfig:
        draft = await self._parts.apps.draft(visit.part("app"))
        return await asyncio.to_thread(AppConfig.FromString, draft.config)

    async def _save(self, visit: Visit, config: AppConfig) -> None:
        app, expected = visit.part("app"), visit.number("expected_draft_version")
        request = UpdateDraftRequest(app=app, config=config, expected_draft_version=expected)
        await self._parts.apps.update_draft(app, snapshot_of(config), expected, await visit.call(request))

    async def _after_conflict(self, visit: Visit, form: Form, names: list[str], error: RevisionConflict) -> Response:
        """The form for the draft as it is now, with theirs beside yours."""
        config = await self._config(visit)
        place = places.again(config, form.place, names)
        theirs = places.find(config, place) if place is not None else None
        yours = message_factory.GetMessageClass(form.place.descriptor())()
        if theirs is not None:
            yours.CopyFrom(theirs)
        read_into(form.layout, form.texts, yours)
        rows = side_by_side(_lines(theirs) if theirs is not None else [], _lines(yours))
        # What somebody else removed can be added again, to what it was in.
        place = place or places.again(config, form.place.at(-1), names[:-1]) or form.place
        layout = _layout(place)
        texts = {**_texts_of_new(config, place, layout), **form.texts} if place.is_new else form.texts
        is_gone = theirs is None and not form.place.is_new
        told = Form(place, layout, texts, {}, [], form.names, rows, is_gone)
        return await self._form(visit, told, config, problem=error)

    async def _form(
        self, visit: Visit, form: Form, config: AppConfig, *, problem: PointsmanError | None = None, version: str = ""
    ) -> Response:
        known = {name: [item.name for item in getattr(config, name)] for name in LISTS}
        shown = await draft_tabs(self._parts, visit)
        return visit.page(
            "editor_form.html",
            tab="draft",
            problem=problem,
            form=form,
            known=known,
            wants_delete=bool(visit.asked("delete")),
            again=with_query(path("apps", visit.part("app"), "editor", "form"), at=form.place.path),
            message=places.find(config, form.place),
            expected=version if version.isdecimal() else shown["draft"].version,
            config=config,
            at=form.place,
            place_of=place_of,
            **shown,
        )

    async def _board(self, visit: Visit, *, problem: PointsmanError | None = None) -> Response:
        config = await self._config(visit)
        at = visit.asked("at") or visit.typed("at") or "pipelines[0]"
        found = places.find(config, place_of(at))
        place = place_of(at if found is not None else "pipelines[0]")
        while place.parent is not None:
            place = place.parent
        # What has no picture of its own stands beside the first pipeline.
        base = place if place.list == "pipelines" else place_of("pipelines[0]")
        pipeline = places.find(config, base)
        shown = await draft_tabs(self._parts, visit)
        return visit.page(
            "editor.html",
            tab="draft",
            problem=problem,
            config=config,
            samples=SAMPLES,
            at=place,
            base=base.path,
            pipeline=pipeline,
            place_of=place_of,
            callers=[(index, one) for index, one in enumerate(config.endpoints) if pipeline and one.pipeline == pipeline.name],
            did=visit.asked("did"),
            renamed=visit.asked("renamed"),
            again=with_query(path("apps", visit.part("app"), "editor"), at=place.path),
            **shown,
        )

    def _back_to(self, visit: Visit, place: Place, renamed: int = 0) -> str:
        """The board or the form that shows a place, with the place in sight."""
        if place.list == "targets" and place.parent is not None:
            return with_query(path("apps", visit.part("app"), "editor", "form"), at=place.parent.path)
        root = place
        while root.parent is not None:
            root = root.parent
        where = with_query(path("apps", visit.part("app"), "editor"), at=root.path, did=place.anchor, renamed=renamed or "")
        return f"{where}#{place.anchor}"


async def draft_tabs(parts: Parts, visit: Visit) -> dict[str, Any]:
    """What the head of the draft's pages shows: the form of Create Release, and what changed since the newest release."""
    app = visit.part("app")
    form = await release_form(parts, visit, app)
    newest, draft = form["newest"], form["draft"]
    comparison = await compare(parts, app, newest.tag, "") if newest and draft.has_changes else None
    return {**form, "comparison": comparison}


def _layout(place: Place) -> Layout:
    return layout_of(place.descriptor(), with_children=place.is_new)


def _texts_of_new(config: AppConfig, place: Place, layout: Layout) -> dict[str, str]:
    """So that only a name is missing: stages and steps of a new pipeline are named, and do something that works."""
    texts = {}
    for name in (*(field.name for field in layout.every()), *layout.oneofs()):
        head, _, leaf = name.rpartition(".")
        if head.endswith("]") and leaf == "name":
            texts[name] = "main" if head.endswith("stages[0]") else "first"
        for suffix, text in _NEW_STEP.items():
            if name == suffix or name.endswith(f".{suffix}"):
                texts[name] = text
    if place.list == "tools":
        texts["kind"] = "http"
    if place.list == "endpoints" and config.pipelines:
        texts["pipeline"] = config.pipelines[0].name
    if place.list == "stages":
        texts |= _free_step(config, place)
    return texts


def _free_step(config: AppConfig, place: Place) -> dict[str, str]:
    pipeline = places.find(config, place.parent) if place.parent else None
    taken = {step.name for stage in pipeline.stages for step in stage.steps} if pipeline is not None else set()
    number = next(number for number in range(1, len(taken) + 2) if f"step_{number}" not in taken)
    return {"steps[0].name": f"step_{number}"}


def _found(config: AppConfig, place: Place) -> Place:
    """Where a form's message is, or will be. Raises InvalidField when it is nowhere."""
    items = places.list_at(config, place)
    if items is None or place.index >= len(items):
        raise InvalidField([Violation("at", f"there is no {place.path} in the draft, which may have changed; look at the draft again")])
    return place.at(len(items)) if place.is_new else place


def _edit(config: AppConfig, place: Place, form: Form) -> int:
    """Puts what was typed into the config; says how many references followed a new name. Raises InvalidField."""
    items = places.list_at(config, place)
    message = items.add() if form.place.is_new else items[place.index]
    old = "" if form.place.is_new else getattr(message, "name", "")
    if wrong := read_into(form.layout, form.texts, message):
        raise InvalidField([Violation(f"{place.path}.{one.field}", one.description) for one in wrong])
    new = getattr(message, "name", "")
    return places.rename(config, place, old, new) if old and new and old != new else 0


def _lines(message: Message) -> list[str]:
    return as_yaml(plain(message)).splitlines()


def _names(text: str) -> list[str]:
    """Raises InvalidField."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InvalidField([Violation("names", "is not what the page wrote; open the form again")])
    return found


def _told(form: Form, at_path: str, error: InvalidField) -> Form:
    """The violations beside their fields, the others on top."""
    prefix = f"{at_path}."
    inside = [one for one in error.violations if one.field.startswith(prefix) or one.field == at_path]
    outside = [one for one in error.violations if one not in inside]
    wrong, others = by_field(form.layout, [Violation(one.field.removeprefix(at_path).removeprefix("."), one.description) for one in inside])
    return Form(form.place, form.layout, form.texts, wrong, others + outside, form.names, [], is_gone=False)


def _sample(config: AppConfig, name: str) -> AppConfig:
    """A draft to start from. Raises InvalidField when there is something in the draft, or no such sample."""
    if name not in ("hello", *SAMPLES):
        raise InvalidField([Violation("do", f"there is no sample {name[:80]!r}; there are hello, {', '.join(SAMPLES)}")])
    if config.ByteSize():
        raise InvalidField([Violation("do", "a sample would replace the whole draft, which is not empty; delete what is in it first")])
    return parse(STARTER if name == "hello" else sample_text(name)).config


def _delete(config: AppConfig, place: Place) -> Place:
    if _found(config, place) != place:
        raise InvalidField([Violation("at", f"{place.path} is a list; what is in it can be deleted")])
    del places.list_at(config, place)[place.index]
    return place.parent or place.at(max(0, place.index - 1))


def _conflict(app: str, expected: str, current: int) -> RevisionConflict:
    message = f"The draft of app {app!r} is at version {current}, not {expected}: someone else changed it. Compare, then decide."
    return RevisionConflict(message, app=app, expected=expected, current=current)
