"""Where in a config something stands, by the paths that violations have, and what can be done there: find, add, move, remove, rename."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from pointsman.errors import InvalidField, Violation
from pointsman.v1.config_pb2 import AppConfig, Pipeline, Step

_PART = re.compile(r"([a-z]{1,20})\[(0|[1-9][0-9]{0,3})\]")
_LIST = re.compile(r"[a-z]{1,20}")


class Place(msgspec.Struct, frozen=True):
    """A message in a list of the config, as `pipelines[0].stages[1]`, or with index -1 the list itself: where one is to be added."""

    around: tuple[tuple[str, int], ...]
    list: str
    index: int

    @property
    def path(self) -> str:
        """As violations have it."""
        return self.list_path if self.is_new else f"{self.list_path}[{self.index}]"

    @property
    def list_path(self) -> str:
        """Of the list that it is in."""
        return "".join(f"{name}[{index}]." for name, index in self.around) + self.list

    @property
    def is_new(self) -> bool:
        """Whether it is yet to be added."""
        return self.index < 0

    @property
    def parent(self) -> Place | None:
        """What it is in; None for what stands in the config itself."""
        if not self.around:
            return None
        return Place(self.around[:-1], *self.around[-1])

    @property
    def noun(self) -> str:
        """What stands there, such as `step`."""
        return self.list.removesuffix("s")

    @property
    def anchor(self) -> str:
        """An id for HTML."""
        return "at-" + re.sub(r"[^a-z0-9]+", "-", self.path).strip("-")

    def at(self, index: int) -> Place:
        """Another place of the same list; -1: the list."""
        return Place(self.around, self.list, index)

    def descriptor(self) -> Descriptor:
        """Of the messages of the list."""
        found = AppConfig.DESCRIPTOR
        for name in (*(name for name, _ in self.around), self.list):
            kind = found.fields_by_name[name].message_type
            assert kind is not None, "places are of messages"
            found = kind
        return found


def place_of(path: str) -> Place:
    """Reads a path. Raises InvalidField when no config has such a one."""
    *around, last = path.split(".")
    parts, match = [_PART.fullmatch(part) for part in around], _PART.fullmatch(last)
    if all(parts) and (match or _LIST.fullmatch(last)):
        inside = tuple((part[1], int(part[2])) for part in parts if part)
        place = Place(inside, match[1], int(match[2])) if match else Place(inside, last, -1)
        if _is_of_config(place):
            return place
    raise InvalidField([Violation("at", f"{path[:80]!r} is no place of a draft, such as pipelines[0].stages[1]")])


def _is_of_config(place: Place) -> bool:
    found: Descriptor | None = AppConfig.DESCRIPTOR
    for name in (*(name for name, _ in place.around), place.list):
        field = found.fields_by_name.get(name) if found is not None else None
        if field is None or not field.is_repeated or field.message_type is None or field.message_type.GetOptions().map_entry:
            return False
        found = field.message_type
    return True


def list_at(config: AppConfig, place: Place) -> Any:
    """The list that a place is in; None when what it is in is not there."""
    found: Any = config
    for name, index in place.around:
        items = getattr(found, name)
        if index >= len(items):
            return None
        found = items[index]
    return getattr(found, place.list)


def find(config: AppConfig, place: Place) -> Any:
    """The message there; None when there is none."""
    items = list_at(config, place)
    return items[place.index] if items is not None and 0 <= place.index < len(items) else None


def names_at(config: AppConfig, place: Place) -> list[str]:
    """What it is called, after what it is in; a server of a model, which has no name, is called by its position."""
    names = names_at(config, place.parent) if place.parent else []
    found = find(config, place)
    return names if place.is_new else [*names, getattr(found, "name", "") or str(place.index)]


def again(config: AppConfig, place: Place, names: list[str]) -> Place | None:
    """Where it stands now, in a config that somebody else changed; None when it is gone."""
    around: list[tuple[str, int]] = []
    lists = [*(name for name, _ in place.around), place.list]
    for name, called in zip(lists, names, strict=False):
        items = list_at(config, Place(tuple(around), name, -1))
        index = next((index for index, item in enumerate(items) if (getattr(item, "name", "") or str(index)) == called), None)
        if index is None:
            return None
        around.append((name, index))
    if place.is_new:
        return Place(tuple(around), place.list, -1) if len(around) == len(place.around) else None
    return Place(tuple(around[:-1]), *around[-1]) if len(around) == len(lists) else None


def move(config: AppConfig, source: Place, target: Place) -> Place:
    """Takes a message out and puts it before what stands at the target, or at the end of its list; says where it is then.

    Raises:
        InvalidField: when there is nothing at the source, or no such list, or one of other things.
    """
    moved, items, others = find(config, source), list_at(config, source), list_at(config, target)
    if moved is None or others is None or source.descriptor() != target.descriptor():
        raise InvalidField([Violation("at", f"{source.path} cannot be moved to {target.path}: the draft is not what the page showed")])
    index = min(len(others) if target.is_new else target.index, len(others))
    is_same = source.around == target.around
    kept = type(moved)()
    kept.CopyFrom(moved)
    # What holds the other list may be moved by the removal: lists are of different parents or the same, never inside what is moved.
    del items[source.index]
    index -= 1 if is_same and index > source.index else 0
    others.insert(index, kept)
    return target.at(index)


def rename(config: AppConfig, place: Place, old: str, new: str) -> int:
    """Makes what refers to something by its old name refer to it by its new one; says how many places there were."""
    count = 0
    for holder, field in _references(config, place):
        value = getattr(holder, field)
        if isinstance(value, str):
            if value == old:
                setattr(holder, field, new)
                count += 1
        else:
            for index, one in enumerate(value):
                if one == old:
                    value[index] = new
                    count += 1
    if place.list == "steps":
        count += _rename_step(config.pipelines[place.around[0][1]], old, new)
    return count


def _references(config: AppConfig, place: Place) -> Iterator[tuple[Any, str]]:
    if place.list == "pipelines":
        yield from ((endpoint, "pipeline") for endpoint in config.endpoints)
    for step in (step for pipeline in config.pipelines for stage in pipeline.stages for step in stage.steps):
        kind = step.WhichOneof("kind")
        if place.list == "tools" and kind == "tool_call":
            yield step.tool_call, "tool"
        if kind == "inference" and place.list in ("tools", "models"):
            yield step.inference, "tools" if place.list == "tools" else "model"


def _rename_step(pipeline: Pipeline, old: str, new: str) -> int:
    """In the expressions and templates of its pipeline: `steps.old` and `steps["old"]`."""
    dotted = re.compile(rf"(?<![\w.])steps(\??\.\??){re.escape(old)}(?!\w)") if re.fullmatch(r"\w+", old) else None
    indexed = re.compile(rf"(?<![\w.])steps\[(['\"]){re.escape(old)}\1\]")
    is_plain = re.fullmatch(r"\w+", new) is not None
    count = 0
    for holder, field in _sources(pipeline):
        text, times = indexed.subn(lambda found: f"steps[{found[1]}{new}{found[1]}]", getattr(holder, field))
        if dotted is not None:
            text, more = dotted.subn(lambda found: f"steps{found[1]}{new}" if is_plain else f"steps['{new}']", text)
            times += more
        if times:
            setattr(holder, field, text)
            count += times
    return count


def _sources(pipeline: Pipeline) -> Iterator[tuple[Message, str]]:
    yield pipeline, "output"
    for stage in pipeline.stages:
        yield stage, "gate"
        for step in stage.steps:
            yield step, "when"
            yield from _sources_of_step(step)


def _sources_of_step(step: Step) -> Iterator[tuple[Message, str]]:
    match step.WhichOneof("kind"):
        case "inference":
            yield step.inference, "system"
            yield step.inference, "prompt"
        case "tool_call":
            yield step.tool_call, "arguments"
        case "transform":
            yield step.transform, "expression"
