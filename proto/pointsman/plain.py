"""Messages as plain values and as YAML, the way a person writes them: in snake_case, in the order of the proto files."""

from __future__ import annotations

import math
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from pointsman.nodes import scalar
from pointsman.values import MAX_EXACT_INTEGER

MAX_LINE_CHARS = 120


def plain(message: Message) -> dict[str, Any]:
    """The message by the proto JSON mapping, in snake_case. Without what has its default, as a person would write it."""
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return ordered(message.DESCRIPTOR, found)


def ordered(descriptor: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Names in the order of the proto file, keys of maps sorted: the same answer is the same text."""
    result = {}
    for field in descriptor.fields:
        if field.name not in found:
            continue
        value, kind = found[field.name], field.message_type
        if kind is not None and (kind.GetOptions().map_entry or kind.file.package == "google.protobuf"):
            value = _sorted(value)
        elif kind is not None:
            value = [ordered(kind, item) for item in value] if isinstance(value, list) else ordered(kind, value)
        result[field.name] = value
    return result


def _sorted(value: Any) -> Any:
    """As it was written, too: a Struct has only doubles, and 3 is not 3.0 for people."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        # An int has no -0.0.
        return int(value) if value or math.copysign(1, value) > 0 else value
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def as_yaml(value: object, *, document: bool = False) -> str:
    """YAML that `app push` reads as the same value."""
    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc]  # which of the two it is depends on the machine
        """Writes texts of several lines as such, and quotes what our reader, unlike PyYAML's, takes for a number."""

    def text(dumper: Any, written: str) -> Any:
        style = "|" if "\n" in written else None if isinstance(scalar(written), str) else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", written, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=MAX_LINE_CHARS, explicit_start=document)
    return dumped
