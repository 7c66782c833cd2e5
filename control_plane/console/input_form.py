"""A form made from an endpoint's input schema: a field for each simple property, JSON for the others and, as another way, for the whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pointsman.errors import InvalidField, Violation
from pointsman.values import decode_json

MAX_FIELDS = 40
PREFIX = "in."
SIMPLE = ("string", "integer", "number", "boolean")


class Field(msgspec.Struct, frozen=True):
    """One property. `kind` is one of SIMPLE, `choice` (then `choices` are JSON) or `json`; `value` is what stands there."""

    name: str
    kind: str
    required: bool
    hint: str
    value: str
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the form's field."""
        return PREFIX + self.name


def fields_of(schema: Mapping[str, Any], typed: Callable[[str], str]) -> list[Field]:
    """The fields of a schema, empty when it names no properties, or too many for a form."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or len(properties) > MAX_FIELDS:
        return []
    required = schema.get("required", [])
    sound = {name: found if isinstance(found, dict) else {} for name, found in properties.items()}
    return [_field(name, found, name in required, typed(PREFIX + name)) for name, found in sound.items()]


def _field(name: str, schema: dict[str, Any], required: bool, typed: str) -> Field:
    choices = schema.get("enum")
    kind = str(schema.get("type", ""))
    default = schema["default"] if "default" in schema else next(iter(_list(schema.get("examples"))), None)
    known = [str(schema.get(key, "")) for key in ("title", "description") if schema.get(key)]
    if isinstance(choices, list) and choices:
        shown = json.dumps(default) if default is not None else ""
        return Field(
            name, "choice", required, ". ".join(known), typed or shown, tuple(json.dumps(one, ensure_ascii=False) for one in choices)
        )
    if kind in SIMPLE:
        shown = default if isinstance(default, str) else json.dumps(default) if default is not None else ""
        return Field(name, kind, required, ". ".join(known), typed or shown)
    shown = json.dumps(default, ensure_ascii=False) if default is not None else ""
    return Field(name, "json", required, ". ".join([*known, "As JSON"]), typed or shown)


def read_fields(fields: list[Field], typed: Callable[[str], str]) -> dict[str, Any]:
    """The input. What was left empty is left out, but for a text that is needed. Raises InvalidField."""
    found: dict[str, Any] = {}
    wrong: list[Violation] = []
    for field in fields:
        text = typed(field.key)
        if not text.strip():
            if field.required and field.kind == "string":
                found[field.name] = text
            continue
        try:
            found[field.name] = text if field.kind == "string" else _decoded(text, field.kind)
        except ValueError as error:
            wrong.append(Violation(field.key, str(error)))
    if wrong:
        raise InvalidField(wrong)
    return found


def read_json(text: str) -> dict[str, Any]:
    """The input as JSON. Raises InvalidField."""
    try:
        found = decode_json(text.encode()) if text.strip() else {}
    except ValueError as error:
        raise InvalidField([Violation("json", f"the input {error}")]) from None
    if not isinstance(found, dict):
        raise InvalidField([Violation("json", "the input is not a JSON object, such as {}")])
    return found


def skeleton(fields: list[Field]) -> str:
    """JSON to begin with: what is needed, and what has a value."""
    empty: dict[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "json": {}}
    found: dict[str, Any] = {}
    for field in fields:
        if field.value:
            try:
                found[field.name] = field.value if field.kind == "string" else _decoded(field.value, field.kind)
            except ValueError:
                found[field.name] = field.value
        elif field.required:
            found[field.name] = json.loads(field.choices[0]) if field.choices else empty[field.kind]
    return json.dumps(found, indent=2, ensure_ascii=False)


def _decoded(text: str, kind: str) -> Any:
    """Raises ValueError, for a person."""
    try:
        found = decode_json(text.strip().encode())
    except (ValueError, msgspec.MsgspecError):
        found = None
        if text.strip() != "null":
            raise ValueError(f"{text.strip()[:40]!r} is not {_CALLED[kind]}") from None
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if (kind == "boolean" and not isinstance(found, bool)) or (kind in ("integer", "number") and not is_number):
        raise ValueError(f"{text.strip()[:40]!r} is not {_CALLED[kind]}")
    return found


_CALLED = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "choice": "one of the choices", "json": "JSON"}


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []
