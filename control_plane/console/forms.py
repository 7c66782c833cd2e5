"""Forms for the messages of a config, made from their descriptors, their rules and their comments; and back from a form to a message.

What a message says, its form says: text -> message -> text and message -> text -> message are the identity, but for what browsers do to
text (line ends, zeros) and for headers and lists of names, one a line, whose values have no line break by their rules.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from control_plane.console.comments import comment_of
from pointsman.appfile import read_field
from pointsman.errors import Violation
from pointsman.plain import as_yaml, plain
from pointsman.v1.config_pb2 import AppConfig

LABELS = {
    "url": "URL",
    "base_url": "Base URL",
    "api_key": "API key",
    "http": "HTTP request",
    "mcp": "Tool of an MCP server",
    "inference": "Ask a model",
    "tool_call": "Call a tool",
    "transform": "Compute a value",
}
# From this limit on a text is one of several lines.
MANY_CHARS = 4096
YES = "yes"


class Field(msgspec.Struct, frozen=True):
    """One field of a form. `kind` is line, text, code, lines (names, one a line), headers, schema, choice, flag, number or duration."""

    name: str
    label: str
    hint: str
    kind: str
    descriptor: FieldDescriptor
    needed: bool = False
    rows: int = 0
    choices: tuple[str, ...] = ()
    refers_to: str = ""
    """The list of the config that its value names something of, such as `tools`."""


class Layout(msgspec.Struct, frozen=True):
    """The form of a message: `more` are numbers and flags that have defaults; `options` are the messages of its oneof, `children` the
    first message of each list that must have one.
    """

    prefix: str
    title: str
    hint: str
    fields: tuple[Field, ...]
    more: tuple[Field, ...]
    oneof: str
    options: tuple[Layout, ...]
    children: tuple[Layout, ...]

    @property
    def leaf(self) -> str:
        """Its field's own name in the message around it."""
        return self.prefix.rstrip(".").rpartition(".")[2].removesuffix("[0]")

    def every(self) -> Iterator[Field]:
        """Its fields, and those of the layouts inside it."""
        yield from (*self.fields, *self.more)
        for inner in (*self.options, *self.children):
            yield from inner.every()

    def oneofs(self) -> Iterator[str]:
        """Fields of the form that say which option is chosen."""
        if self.oneof:
            yield self.oneof
        for inner in (*self.options, *self.children):
            yield from inner.oneofs()


@functools.cache
def layout_of(descriptor: Descriptor, *, with_children: bool, prefix: str = "", title: str = "") -> Layout:
    """The form of a message type. `with_children`: with those that it cannot be without, for a new one."""
    fields: list[Field] = []
    options, children, oneof = [], [], ""
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or kind.file != AppConfig.DESCRIPTOR.file or kind.GetOptions().map_entry:
            fields.append(_field(field, prefix))
        elif field.is_repeated:
            if with_children and _rules(field).repeated.min_items:
                name = f"First {field.name.removesuffix('s')}"
                children.append(layout_of(kind, with_children=True, prefix=f"{prefix}{field.name}[0].", title=name))
        else:
            assert field.containing_oneof is not None, "messages of a config are in lists or oneofs"
            oneof = prefix + field.containing_oneof.name
            options.append(layout_of(kind, with_children=with_children, prefix=f"{prefix}{field.name}.", title=_label(field.name)))
    main = [field for field in fields if field.kind not in ("number", "duration", "flag")]
    more = [field for field in fields if field not in main]
    hint = comment_of(descriptor.name)
    return Layout(prefix, title or descriptor.name, hint, tuple(main), tuple(more), oneof, tuple(options), tuple(children))


def texts_of(layout: Layout, message: Message) -> dict[str, str]:
    """What the form of a message shows, by the names of its fields."""
    found = {field.name: _shown(field, message) for field in (*layout.fields, *layout.more)}
    if layout.oneof:
        chosen = message.WhichOneof(layout.oneof.rpartition(".")[2]) or ""
        found[layout.oneof] = chosen
        for option in layout.options:
            if option.leaf == chosen:
                found |= texts_of(option, getattr(message, chosen))
    for child in layout.children:
        for inner in getattr(message, child.leaf)[:1]:
            found |= texts_of(child, inner)
    return found


def read_into(layout: Layout, texts: Mapping[str, str], message: Message) -> list[Violation]:
    """Makes a message say what was typed; lists of messages that the form does not show stay. What cannot be read is told, by the field."""
    wrong: list[Violation] = []
    for field in (*layout.fields, *layout.more):
        message.ClearField(field.descriptor.name)
        if text := texts.get(field.name, ""):
            wrong += [_at(layout.prefix, violation) for violation in _read(field, text, message)]
    chosen = texts.get(layout.oneof, "")
    for option in layout.options:
        if option.leaf != chosen:
            message.ClearField(option.leaf)
            continue
        inner = getattr(message, chosen)
        inner.SetInParent()
        wrong += read_into(option, texts, inner)
    for child in layout.children:
        items = getattr(message, child.leaf)
        wrong += read_into(child, texts, items[0] if items else items.add())
    return wrong


def by_field(layout: Layout, violations: list[Violation]) -> tuple[dict[str, str], list[Violation]]:
    """What is wrong with each field of the form, and what is wrong elsewhere; paths are relative to the form's message."""
    names = [*(field.name for field in layout.every()), *layout.oneofs()]
    found: dict[str, str] = {}
    others = []
    for violation in violations:
        path = violation.field
        near = [name for name in names if path == name or (path.startswith(name) and path[len(name)] in ".[")]
        # A oneof of which none is chosen is told at its message.
        near = near or [name for name in layout.oneofs() if name.rpartition(".")[0] == path]
        if not near:
            others.append(violation)
            continue
        name = max(near, key=len)
        inner = path[len(name) :].lstrip(".") if len(path) > len(name) else ""
        said = f"{inner}: {violation.description}" if inner else violation.description
        found[name] = f"{found[name]}; {said}" if name in found else said
    return found, others


def _rules(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[validate_pb2.field]


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def _field(field: FieldDescriptor, prefix: str) -> Field:
    comment = comment_of(field.full_name.removeprefix("pointsman.v1."))
    rules = _rules(field)
    kind, rows = _kind_of(field, comment)
    choices: tuple[str, ...] = ()
    if field.enum_type is not None:
        choices = tuple(value.name for value in field.enum_type.values if value.number)
    elif field.type == field.TYPE_STRING and not field.is_repeated:
        choices = tuple(value for value in getattr(rules.string, "in") if value)
    has_needs = field.type == field.TYPE_STRING and bool(rules.string.min_len or rules.string.pattern) and not field.is_repeated
    refers_to = next((one.name for one in AppConfig.DESCRIPTOR.fields if f"AppConfig.{one.name}" in comment), "")
    if kind == "line" and (choices or refers_to):
        kind = "choice"
    needed = has_needs and rules.ignore != validate_pb2.IGNORE_IF_ZERO_VALUE
    hint = comment.replace("AppConfig.", "the app's ")
    return Field(prefix + field.name, _label(field.name), hint, kind, field, needed, rows, choices, refers_to)


def _kind_of(field: FieldDescriptor, comment: str) -> tuple[str, int]:
    """What is typed, and in how many lines."""
    kind = field.message_type
    if kind is not None:
        name = "headers" if kind.GetOptions().map_entry else "duration" if kind.name == "Duration" else "schema"
        return name, {"headers": 3, "duration": 0, "schema": 8}[name]
    if field.is_repeated:
        return "lines", 3
    if field.enum_type is not None:
        return "choice", 0
    if field.type == field.TYPE_BOOL:
        return "flag", 0
    if field.type != field.TYPE_STRING:
        return "number", 0
    if comment.startswith(("Expression", "CEL")):
        return "code", 2
    if comment.startswith("Template"):
        return "code", 2 if field.name.endswith("url") else 6
    return ("text", 2) if _rules(field).string.max_len >= MANY_CHARS else ("line", 0)


def _shown(field: Field, message: Message) -> str:
    descriptor = field.descriptor
    value: Any = getattr(message, descriptor.name)
    if descriptor.has_presence and not message.HasField(descriptor.name):
        return ""
    match field.kind:
        case "lines":
            return "\n".join(value)
        case "headers":
            return "\n".join(f"{name}: {value[name]}" for name in sorted(value))
        case "schema":
            return as_yaml(plain(message)[descriptor.name])
        case "duration":
            return str(value.ToJsonString())
        case "flag":
            return YES if value else ""
        case "number":
            return repr(value) if value or descriptor.has_presence else ""
    if descriptor.enum_type is not None:
        return str(descriptor.enum_type.values_by_number[value].name) if value else ""
    return str(value)


def _read(field: Field, text: str, message: Message) -> list[Violation]:
    descriptor = field.descriptor
    name = descriptor.name
    match field.kind:
        case "lines":
            getattr(message, name).extend(line.strip() for line in text.split("\n") if line.strip())
        case "headers":
            return _read_headers(name, text, getattr(message, name))
        case "flag":
            setattr(message, name, text == YES)
        case "schema":
            return read_field(text, descriptor, message)
        case "number" | "duration":
            return read_field(text.strip(), descriptor, message) if text.strip() else []
        case _ if descriptor.enum_type is not None:
            return read_field(text, descriptor, message)
        case _:
            setattr(message, name, text)
    return []


def _read_headers(name: str, text: str, headers: Any) -> list[Violation]:
    wrong = []
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon:
            wrong.append(Violation(name, f"{line.strip()[:40]!r} has no colon; write one `Name: value` a line"))
        elif key.strip() in headers:
            wrong.append(Violation(name, f"{key.strip()} is there twice; keep one"))
        else:
            headers[key.strip()] = value.removeprefix(" ")
    return wrong


def _at(prefix: str, violation: Violation) -> Violation:
    return Violation(prefix + violation.field, violation.description)
