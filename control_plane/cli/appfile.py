"""App files: the config of an app as YAML or JSON, by the proto JSON mapping, in snake_case or camelCase.

Every violation is told at once, with its path and, for what stands in the file, its line and column.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from pointsman.errors import Violation, did_you_mean
from pointsman.rules import MAX_SNAPSHOT_BYTES, check_config
from pointsman.v1.config_pb2 import AppConfig

# Text is larger than its serialisation: quotes, indentation, comments.
MAX_FILE_BYTES = 4 * MAX_SNAPSHOT_BYTES
MAX_DEPTH = 100
_STEP = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]|\["([^"]*)"\]')


@dataclass(frozen=True)
class AppFile:
    """A file that was read. `config` is sound when there are no `violations`."""

    config: AppConfig
    violations: list[tuple[Violation, str]]
    """With where each stands, `line 3, column 5`, or empty when that is not known."""


class AppFileError(Exception):
    """The file cannot be read as YAML or JSON at all; the message says why, and where."""


def read(path: str) -> AppFile:
    """Reads and checks a file; `-` is the standard input.

    Raises:
        AppFileError: when it is no YAML or JSON, or no mapping.
    """
    root = _compose(_text(path))
    if root is None:
        return AppFile(AppConfig(), [])
    if not isinstance(root, yaml.MappingNode):
        raise AppFileError(f"line {_line(root)}: the file must be a mapping with endpoints, pipelines, tools and models")
    violations = list(_shape("", root, AppConfig.DESCRIPTOR, 0))
    config = AppConfig()
    if not violations:
        try:
            json_format.ParseDict(_value(root), config)
        except json_format.ParseError as error:
            violations = [Violation("", str(error))]
    if not violations:
        violations = check_config(config)
    return AppFile(config, [(violation, _where(root, violation.field)) for violation in violations])


def _text(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise AppFileError(f"{path} has {len(data)} bytes; at most {MAX_FILE_BYTES} are allowed")
        return data.decode()
    except OSError as error:
        raise AppFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise AppFileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes without aliases, which would let a small file stand for a huge one, and without deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs say no types here
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not allowed; write the value out", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise AppFileError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise AppFileError(str(error).splitlines()[0]) from None
    finally:
        loader.dispose()


def _shape(path: str, node: yaml.Node, descriptor: Descriptor, depth: int) -> Iterator[Violation]:
    """Keys that are twice, or that no field has; lists and mappings where they belong."""
    if descriptor.full_name.startswith("google.protobuf."):
        return
    if not isinstance(node, yaml.MappingNode):
        yield Violation(path, f"must be a mapping, with {', '.join(field.name for field in descriptor.fields)}")
        return
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    seen: set[str] = set()
    for key_node, value in node.value:
        key = str(key_node.value)
        field = fields.get(key)
        at = f"{path}.{key}" if path else key
        if field is None:
            yield Violation(at, f"unknown field.{did_you_mean(key, [f.name for f in descriptor.fields])}")
        elif field.name in seen:
            yield Violation(at, "is there twice; keep one")
        else:
            seen.add(field.name)
            yield from _field(f"{path}.{field.name}" if path else field.name, value, field, depth)


def _field(path: str, node: yaml.Node, field: FieldDescriptor, depth: int) -> Iterator[Violation]:
    message = field.message_type
    if message is None or message.GetOptions().map_entry or _is_null(node):
        return
    if not field.is_repeated:
        yield from _shape(path, node, message, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _shape(f"{path}[{index}]", item, message, depth + 1)
    else:
        yield Violation(path, "must be a list")


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _value(node: yaml.Node) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    return constructor.construct_document(node)


def _where(root: yaml.Node, path: str) -> str:
    """Where the last part of the path that stands in the file begins."""
    node, found = root, root
    for name, index, key in _STEP.findall(path):
        following = _item(node, int(index)) if index else _entry(node, name or key)
        if following is None:
            break
        node = found = following
    return f"line {_line(found)}, column {found.start_mark.column + 1}"


def _item(node: yaml.Node, index: int) -> yaml.Node | None:
    return node.value[index] if isinstance(node, yaml.SequenceNode) and index < len(node.value) else None


def _entry(node: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    camel = re.sub(r"_([a-z])", lambda match: match[1].upper(), name)
    return next((value for key, value in node.value if key.value in (name, camel)), None)


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line + 1
    return line
