"""App files: the config of an app as YAML or JSON, by the proto JSON mapping, in snake_case or camelCase.

Every violation is told at once, with its path, its line and its column.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pointsman.errors import Violation, did_you_mean
from pointsman.nodes import Node, NotReadableError, compose, scalar
from pointsman.v1.config_pb2 import AppConfig

# Four times the largest snapshot: text is larger than its serialisation, by quotes, indentation, comments.
MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_SHOWN_CHARS = 60
_WANTED = {
    FieldDescriptor.CPPTYPE_STRING: "text; put it in quotes",
    FieldDescriptor.CPPTYPE_INT32: "a whole number",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
}


class Found(msgspec.Struct, frozen=True):
    """One violation, and where it stands in the file: lines and columns count from 1."""

    violation: Violation
    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.violation}"


class AppFile(msgspec.Struct, frozen=True):
    """A file that was read and checked. `config` is sound when there are no `violations`, which are in the order of the file."""

    config: AppConfig
    violations: list[Found]


class Reading:
    """A file that was read, and not checked by the rules yet. `config` is what of it could be read."""

    def __init__(self, root: Node) -> None:
        self.config = AppConfig()
        self._root = root
        self._reader = _Reader()
        self._reader.fill("", root, self.config)

    @property
    def is_whole(self) -> bool:
        """Whether `config` is all that the file says."""
        return not self._reader.violations([], self._root)

    def check(self) -> AppFile:
        """By every rule that a server has, too."""
        # Takes as long to import as all else that a command needs, and servers have it already.
        from pointsman.rules import check_config

        return AppFile(self.config, self._reader.violations(check_config(self.config), self._root))


def parse(text: str) -> AppFile:
    """Reads and checks the text of a file. Raises NotReadableError as read() does."""
    return read(text).check()


def read(text: str) -> Reading:
    """Reads the text of a file.

    Raises:
        NotReadableError: when it is no YAML or JSON, or no mapping.
    """
    root = compose(text)
    if root is None:
        raise NotReadableError("the file is empty; `endpoints: []` is an app without anything")
    if root.kind != "mapping":
        raise NotReadableError(f"{root.where}: the file must be a mapping with endpoints, pipelines, tools and models")
    return Reading(root)


def read_field(text: str, field: FieldDescriptor, message: Message) -> list[Violation]:
    """Sets one field from what was typed for it alone: YAML or JSON where it is a mapping, else the bare value.

    Paths begin with the field's name.
    """
    reader, kind = _Reader(), field.message_type
    value = scalar(text)
    node: Node | None = Node(text if value is None else value, 1, 1, text)
    if kind is not None and kind.name != "Duration":
        try:
            node = compose(text)
        except NotReadableError as error:
            return [Violation(field.name, str(error))]
    if node is None:
        return []
    reader.field(field.name, node, field, message)
    return [found.violation for found in reader.violations([], node)]


def _itself(plain: Any) -> Any:
    return plain


def _list(plain: Any) -> list[Any]:
    return [plain]


def _pair(key: str, plain: Any) -> dict[str, Any]:
    return {key: plain}


class _Reader:
    """Fills a message from nodes, goes on after what is wrong, and remembers where everything stands."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._found: list[tuple[Violation, Node]] = []
        self._unknown: set[str] = set()
        """Paths with a key that no field has: what seems to be missing there may be what the key stands for."""

    def violations(self, of_rules: list[Violation], root: Node) -> list[Found]:
        """Those of the file and those of the rules, without the ones that only follow from another."""
        wrong = {violation.field for violation, _ in self._found}
        every = list(self._found)
        for violation in of_rules:
            field = violation.field
            follows = any(_is_part(field, path) for path in wrong) or (field not in self._nodes and _parent(field) in self._unknown)
            if not follows:
                every.append((violation, self._nearest(field, root)))
        return sorted((Found(violation, node.line, node.column) for violation, node in every), key=lambda found: (found.line, found.column))

    def _nearest(self, path: str, root: Node) -> Node:
        """The node at the path, or of the closest thing around it that stands in the file."""
        while path and path not in self._nodes:
            path = _parent(path)
        return self._nodes[path] if path else root

    def _wrong(self, path: str, node: Node, description: str) -> None:
        self._found.append((Violation(path, description), node))

    def fill(self, path: str, node: Node, message: Message) -> None:
        """Sets the fields of a message that the mapping gives."""
        descriptor = message.DESCRIPTOR
        if node.kind != "mapping":
            self._wrong(path, node, f"must be a mapping, with {', '.join(field.name for field in descriptor.fields)}")
            return
        fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
        for key, value, at in self._entries(path, node, {field.json_name: field.name for field in descriptor.fields}):
            field = fields.get(key.text)
            if field is None:
                near = (
                    did_you_mean(key.text, [f.name for f in descriptor.fields])
                    or f" There are {', '.join(f.name for f in descriptor.fields)}."
                )
                self._wrong(at, key, f"unknown field.{near}")
                self._unknown.add(path)
                continue
            oneof = field.containing_oneof
            # The oneof of an optional field is the generator's own.
            other = message.WhichOneof(oneof.name) if oneof is not None and len(oneof.fields) > 1 else None
            if other and value.content is not None:
                self._wrong(at, key, f"only one of {other} and {field.name} may be given")
            elif value.kind != "scalar" or value.content is not None:
                self.field(at, value, field, message)

    def _entries(self, path: str, node: Node, names: dict[str, str] | None = None) -> list[tuple[Node, Node, str]]:
        """(key, value, path) of a mapping whose keys are texts, each of them once."""
        entries: dict[str, tuple[Node, Node, str]] = {}
        for key, value in node.pairs:
            if key.kind != "scalar":
                self._wrong(path, key, "a key must be text")
                continue
            name = (names or {}).get(key.text, key.text)
            at = (f"{path}.{name}" if path else name) if names is not None else f'{path}["{name}"]'
            if name in entries:
                self._wrong(at, key, f"is there twice, first in line {entries[name][0].line}; keep one")
                continue
            self._nodes[at] = value
            entries[name] = (key, value, at)
        return list(entries.values())

    def field(self, path: str, node: Node, field: Any, message: Message) -> None:
        """Sets one field."""
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            if node.kind != "mapping":
                self._wrong(path, node, "must be a mapping")
                return
            message.ClearField(field.name)
            for key, value, at in self._entries(path, node):
                self._leaf(at, value, field, message, partial(_pair, key.text))
        elif not field.is_repeated:
            self._one(path, node, field, message, lambda: getattr(message, field.name))
        elif node.kind != "list":
            self._wrong(path, node, "must be a list")
        else:
            if kind is None:
                message.ClearField(field.name)
            for index, item in enumerate(node.items):
                at = f"{path}[{index}]"
                self._nodes[at] = item
                self._one(at, item, field, message, lambda: getattr(message, field.name).add(), _list)

    def _one(self, path: str, node: Node, field: FieldDescriptor, message: Message, made: Any, wrapped: Any = _itself) -> None:
        kind = field.message_type
        if kind is None or kind.full_name.startswith("google.protobuf."):
            self._leaf(path, node, field, message, wrapped)
        else:
            inner = made()
            inner.SetInParent()
            self.fill(path, node, inner)

    def _leaf(self, path: str, node: Node, field: FieldDescriptor, message: Message, wrapped: Any) -> None:
        """Lets protobuf's own JSON mapping decide."""
        before = len(self._found)
        plain = self._plain(path, node)
        if len(self._found) > before:
            return
        # The mapping clears a list or map before it fills it, so each part is read alone, and added.
        alone = type(message)() if field.is_repeated else message
        try:
            json_format.ParseDict({field.name: wrapped(plain)}, alone)
        except json_format.ParseError:
            shown = node.text if node.kind == "scalar" else f"a {node.kind}"
            shown = shown if len(shown) <= MAX_SHOWN_CHARS else f"{shown[:MAX_SHOWN_CHARS]}..."
            self._wrong(path, node, f"{shown or 'nothing'} is not allowed; it must be {_wanted(field, node)}")
            return
        if alone is not message:
            message.MergeFrom(alone)

    def _plain(self, path: str, node: Node) -> Any:
        if node.kind == "list":
            items = {f"{path}[{index}]": item for index, item in enumerate(node.items)}
            self._nodes |= items
            return [self._plain(at, item) for at, item in items.items()]
        if node.kind == "mapping":
            names: dict[str, str] = {}
            return {key.text: self._plain(at, value) for key, value, at in self._entries(path, node, names)}
        if isinstance(node.content, float) and not math.isfinite(node.content):
            self._wrong(path, node, f"{node.text} is no number of JSON")
        return node.content


def _wanted(field: FieldDescriptor, node: Node) -> str:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        field = kind.fields_by_name["value"]
        kind = field.message_type
    if kind is not None:
        return 'seconds with an s, such as "10s" or "0.5s"' if kind.name == "Duration" else "a mapping"
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values if value.number]
        return f"{' or '.join(names)}.{did_you_mean(node.text.upper(), names)}"
    return _WANTED[field.cpp_type]


def _parent(path: str) -> str:
    """Without its last part: `.name`, `[0]` or `["key"]`."""
    begins = '["' if path.endswith('"]') else "[" if path.endswith("]") else "."
    return path[: max(path.rfind(begins), 0)]


def _is_part(path: str, whole: str) -> bool:
    """Whether the path is the other one, or inside it."""
    return path == whole or (path.startswith(whole) and path[len(whole)] in ".[")
