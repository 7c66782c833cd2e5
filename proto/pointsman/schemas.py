"""JSON Schemas, compiled: never fetching anything, and with a regular-expression engine that takes linear time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jsonschema_rs
from google.protobuf.struct_pb2 import Struct

from pointsman.errors import Violation
from pointsman.values import from_struct

MAX_VIOLATIONS = 100
DRAFT_2020_12 = "https://json-schema.org/draft/2020-12/schema"


class Schema:
    """A compiled schema. Immutable; may be used on any thread."""

    __slots__ = ("_validator", "source")

    def __init__(self, source: dict[str, Any], validator: Any) -> None:
        self.source = source
        self._validator = validator

    def violations(self, value: Any) -> list[Violation]:
        """What the value breaks, with paths such as `items[0].name`; empty when it satisfies the schema. At most 100."""
        if self._validator.is_valid(value):
            return []
        found = []
        for error in self._validator.iter_errors(value):
            found.append(Violation(_path(error.instance_path), error.message))
            if len(found) == MAX_VIOLATIONS:
                break
        return found


def compile_schema(struct: Struct) -> Schema:
    """Raises ValueError, with the reason, when it is no schema or refers to what is not in it."""
    return compile_source(from_struct(struct))


def compile_source(source: dict[str, Any]) -> Schema:
    """The same of a plain value. Raises as compile_schema."""
    validator = jsonschema_rs.validator_for(source, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    return Schema(source, validator)


def schema_violations(struct: Struct) -> list[Violation]:
    """Why it is no schema that can be used here, with paths inside it such as `properties.name.type`; empty when it is one."""
    try:
        compile_schema(struct)
    except jsonschema_rs.ValidationError as error:
        source = from_struct(struct)
        found = []
        if source.get("$schema", DRAFT_2020_12) == DRAFT_2020_12:
            # Compiling stops at the first error; the schema of schemas knows all of them, but neither patterns nor references.
            found = Schema(source, jsonschema_rs.validator_for({"$ref": DRAFT_2020_12}, offline=True)).violations(source)
        # Each vocabulary of the schema of schemas says that a schema is one.
        return list(dict.fromkeys(found)) or [Violation(_path(error.instance_path), _explained(error.message))]
    return []


def _explained(message: str) -> str:
    if message.endswith('is not a "regex"'):
        return f"{message} that can be used here: look-around and back-references are not supported, and what it compiles to must be small"
    if "Retrieval is disabled" in message:
        return f"{message}; put what it refers to into the schema, under $defs"
    return message


def _path(elements: Iterable[str | int]) -> str:
    path = ""
    for element in elements:
        path += f"[{element}]" if isinstance(element, int) else f".{element}" if path else element
    return path
