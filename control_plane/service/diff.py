"""What is different between two configs, and which of it breaks callers. Pure: plain JSON values in, changes out."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

# Lists whose items have names: matched by name, so that an insertion is one addition and not a change of everything after it.
NAMED_LISTS = frozenset({"endpoints", "pipelines", "stages", "steps", "tools", "models"})
# Of those, the ones whose order means something.
ORDERED_LISTS = frozenset({"stages", "steps"})
# JSON Schema limits that refuse more when they grow, and those that refuse more when they shrink.
LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
# Keywords that are not looked into: any change of them counts as narrower.
OPAQUE = ("pattern", "format", "multipleOf", "uniqueItems", "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else")


class Kind(enum.Enum):
    """What happened to a value."""

    ADDED = "ADDED"
    REMOVED = "REMOVED"
    CHANGED = "CHANGED"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `path` names list items by name (`pipelines[chat].stages[answer].steps[reply].timeout`).

    `old` is None when added, `new` None when removed. `breaking` says why callers of before may now be refused; else empty.
    """

    kind: Kind
    path: str
    old: Any
    new: Any
    breaking: str = ""


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The changes from old to new, in the order of the config. Both are configs by the proto JSON mapping, in snake_case."""
    return list(_objects("", old, new))


def _objects(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        yield from _values(f"{path}.{key}" if path else key, key, old.get(key), new.get(key))


def _values(path: str, key: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if key == "input_schema" and path.startswith("endpoints["):
        yield Change(kind=_kind(old, new), path=path, old=old, new=new, breaking="; ".join(narrowed(old or {}, new or {})))
    elif key in NAMED_LISTS:
        yield from _named(path, key, old or [], new or [])
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _objects(path, old, new)
    else:
        yield Change(kind=_kind(old, new), path=path, old=old, new=new, breaking=_breaks_caller(path, key, old, new))


def _named(path: str, key: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    before, after = {item["name"]: item for item in old}, {item["name"]: item for item in new}
    for name, item in before.items():
        if name in after:
            yield from _objects(f"{path}[{name}]", item, after[name])
        else:
            breaking = f"endpoint {name!r} is gone" if key == "endpoints" else ""
            yield Change(kind=Kind.REMOVED, path=f"{path}[{name}]", old=item, new=None, breaking=breaking)
    for name, item in after.items():
        if name not in before:
            yield Change(kind=Kind.ADDED, path=f"{path}[{name}]", old=None, new=item)
    order = [name for name in before if name in after], [name for name in after if name in before]
    if key in ORDERED_LISTS and order[0] != order[1]:
        yield Change(kind=Kind.CHANGED, path=path, old=order[0], new=order[1])


def _kind(old: Any, new: Any) -> Kind:
    if old is None:
        return Kind.ADDED
    return Kind.REMOVED if new is None else Kind.CHANGED


def _breaks_caller(path: str, key: str, old: Any, new: Any) -> str:
    """A moved endpoint: its callers will not find it. A path that is absent is the endpoint's name."""
    if not path.startswith("endpoints[") or path.count(".") != 1 or key not in ("path", "method"):
        return ""
    name = path[len("endpoints[") : path.index("]")]
    default = name if key == "path" else "POST"
    was, now = (str(value or default).removeprefix("/") for value in (old, new))
    return "" if was == now else f"{key} was {was}, is {now}"


def narrowed(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "input") -> list[str]:
    """Why inputs that the old schema takes may be refused by the new one; empty when no reason was found.

    Looks at type, enum, const, required, properties, additionalProperties, items, pattern and the numeric limits. Schemas that are
    built from others ($ref, allOf, anyOf, oneOf, not, if) are called narrower when those parts changed at all.
    """
    found = list(_narrowed_here(old, new, at))
    properties, before = new.get("properties") or {}, old.get("properties") or {}
    for name, schema in properties.items():
        if name in before:
            found += narrowed(_schema(before[name]), _schema(schema), f"{at}.{name}")
        elif old.get("additionalProperties", True) is True:
            found += narrowed({}, _schema(schema), f"{at}.{name}")
    if new.get("additionalProperties", True) is False:
        if old.get("additionalProperties", True) is not False:
            found.append(f"{at} takes no other properties now")
        else:
            found += [f"{at}.{name} is not taken any more" for name in before if name not in properties]
    if isinstance(new.get("items"), Mapping):
        found += narrowed(_schema(old.get("items", {})), new["items"], f"{at}[]")
    return found


def _narrowed_here(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[str]:
    required = old.get("required") or ()
    yield from (f"{at}.{name} is required now" for name in new.get("required") or () if name not in required)
    was, now = _types(old), _types(new)
    if now and not was:
        yield f"{at} must be {' or '.join(sorted(now))} now"
    elif now and (lost := was - now - ({"integer"} if "number" in now else set())):
        yield f"{at} may not be {' or '.join(sorted(lost))} any more"
    allowed, before = _choices(new), _choices(old)
    if allowed is not None and (before is None or any(value not in allowed for value in before)):
        yield f"{at} takes fewer values: {', '.join(map(str, allowed))}"
    for key in (*LOWER_BOUNDS, *UPPER_BOUNDS):
        if key in new and (key not in old or (new[key] > old[key] if key in LOWER_BOUNDS else new[key] < old[key])):
            yield f"{at}: {key} is {new[key]:g} now"
    for key in OPAQUE:
        if key in new and new[key] != old.get(key) and new[key] is not False:
            yield f"{at}: {key} changed"


def _schema(schema: Any) -> Mapping[str, Any]:
    """`true` is the schema that takes everything, `false` the one that takes nothing."""
    if isinstance(schema, Mapping):
        return schema
    return {} if schema else {"enum": []}


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")
