"""YAML or JSON text as a tree whose parts know their line and column.

YAML is read by its 1.2 core schema, so that `no`, `10:30` and `2024-01-01` are text. What surprises more than it helps, or lets a
small file stand for a huge one, is refused: aliases, tags, several documents, deep nesting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

# A schema this deep is still one that protobuf takes: each level is three nested messages, and its limit is 100.
MAX_DEPTH = 30
# Python refuses to convert integers of thousands of digits; such a number is a float anyway.
MAX_NUMBER_CHARS = 400
_INTEGER = re.compile(r"[-+]?[0-9]+")
# An escaped backslash, or the two halves of one character.
_PAIR = re.compile(r"\\\\|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None} | {
    spelled: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelled in (word, word.capitalize(), word.upper())
}
Scalar = str | int | float | bool | None


class NotReadableError(Exception):
    """The text is no YAML or JSON that is taken; the message says why, and where."""


class Node(msgspec.Struct, frozen=True):
    """A part of the file. `content` is a list of pairs for a mapping, a list of nodes for a list, else the value itself."""

    content: list[tuple[Node, Node]] | list[Node] | Scalar
    line: int
    column: int
    text: str = ""
    """A scalar as it was written, without its quotes."""
    kind: str = "scalar"

    @property
    def where(self) -> str:
        """For people; both count from 1."""
        return f"line {self.line}, column {self.column}"

    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        """Of a mapping."""
        assert self.kind == "mapping"
        return self.content  # type: ignore[return-value]  # what a mapping holds

    @property
    def items(self) -> list[Node]:
        """Of a list."""
        assert self.kind == "list"
        return self.content  # type: ignore[return-value]  # what a list holds


def compose(text: str) -> Node | None:
    """The tree; None when there is nothing but white space and comments.

    Raises:
        NotReadableError: at the first thing that cannot be read.
    """
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        # JSON may be indented by tabs, YAML may not; inside JSON's texts they are not allowed, so none is lost.
        # JSON writes characters beyond the first 65,536 as two escapes, which libyaml refuses.
        text = _PAIR.sub(_character, text.replace("\t", " "))
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: Iterator[Any] = yaml.parse(text, Loader=loader)
    try:
        found = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if found is not None:
                    raise NotReadableError(f"{_at(event.start_mark)}: a second document; keep one")
                found = _node(next(events), events, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotReadableError(f"{_at(mark)}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise NotReadableError(str(error).splitlines()[0]) from None
    return None if found is None or (found.kind == "scalar" and found.content is None) else found


def _node(event: Any, events: Iterator[Any], depth: int) -> Node:
    at = _at(event.start_mark)
    if depth > MAX_DEPTH:
        raise NotReadableError(f"{at}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(event, yaml.AliasEvent):
        raise NotReadableError(f"{at}: aliases (*{event.anchor}) are not taken; write the value out")
    if event.tag is not None and event.tag != "!":
        raise NotReadableError(f"{at}: tags ({event.tag}) are not taken; write the value alone")
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if isinstance(event, yaml.ScalarEvent):
        return Node(scalar(event.value) if event.implicit[0] else event.value, line, column, event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, depth + 1))
        return Node(items, line, column, kind="list")
    pairs = []
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(event, events, depth + 1)
        pairs.append((key, _node(next(events), events, depth + 1)))
    return Node(pairs, line, column, kind="mapping")


def scalar(written: str) -> Scalar:
    """What a plain word means by YAML 1.2's core schema; its octal, hexadecimal and infinite numbers stay text."""
    if written in _WORDS:
        return _WORDS[written]
    if _INTEGER.fullmatch(written) and len(written) < MAX_NUMBER_CHARS:
        return int(written)
    return float(written) if _FLOAT.fullmatch(written) else written


def _character(pair: re.Match[str]) -> str:
    if pair[1] is None:
        return pair[0]
    return (bytes.fromhex(pair[1]) + bytes.fromhex(pair[2])).decode("utf-16-be")


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
