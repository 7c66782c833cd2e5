"""Simple CEL expressions as Python closures: what is common in gates and mappings, several times as quick as the library.

Only the plain cases are done here, with exactly the types that they are for: literals, `a.b.c`, `has()`, comparisons, `&&`, `||`, `!`,
`?:`, `+` of strings or ints, `size()`, `in`, lists and maps. Whatever is not plain (another type, a missing key, an overflow) raises
NotPlainError, and the library evaluates the expression instead; so errors and odd values are always the library's own. A property
test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pointsman.values import ELEMENT_SIZE, MAX_NESTING, MAX_VALUE_SIZE

Closure = Callable[[Mapping[str, Any]], Any]

MANY = 64
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
_SCALARS = frozenset({bool, float, str, type(None)})
_CONTAINERS = frozenset({dict, list})
_COMPARABLE = frozenset({bool, int, str, type(None)})
_ORDERED = frozenset({int, str})


class NotPlainError(Exception):
    """The library has to do it."""


class TooLargeError(Exception):
    """It gave more than there is room for."""


class _UnsupportedError(Exception):
    """The expression has a part that is not done here."""


def compile_closure(expr: Any) -> Closure | None:
    """A closure for a checked expression (the tree of syntax.parse), or None when it has a part that is not done here."""
    try:
        inner = _compile(expr)
    except _UnsupportedError:
        return None

    def closure(variables: Mapping[str, Any]) -> Any:
        found = inner(variables)
        if type(found) not in _SCALARS:
            _check(found, MAX_NESTING, MAX_VALUE_SIZE)
        return found

    return closure


def _check(value: Any, nesting: int, room: int) -> int:
    """What is left of the room for it, when all of it is as the library would give it, and not nested deeper than so.

    What stands in it twice counts twice, as it will when it is written.
    """
    kind = type(value)
    if kind is int and MIN_INT <= value <= MAX_INT:
        return room
    if not nesting or kind not in _CONTAINERS:
        raise NotPlainError
    room -= ELEMENT_SIZE * len(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise NotPlainError
            room -= len(key)
        value = value.values()
    room = _check_items(value, nesting - 1, room)
    if room < 0:
        raise TooLargeError
    return room


def _check_items(items: Collection[Any], nesting: int, room: int) -> int:
    if len(items) > MANY:
        # A million numbers or texts, looked at one by one, would hold up everything else.
        kinds = set(map(type, items))
        if kinds == {str}:
            return room - sum(map(len, items))
        if kinds == {int} and min(items) >= MIN_INT and max(items) <= MAX_INT:
            return room
    for item in items:
        kind = type(item)
        if kind is str:
            room -= len(item)
        elif kind not in _SCALARS:
            room = _check(item, nesting, room)
    return room


def _compile(expr: Any) -> Closure:
    kind = expr.WhichOneof("expr_kind")
    compiler = _KINDS.get(kind)
    if compiler is None:
        raise _UnsupportedError
    return compiler(getattr(expr, kind))


def _constant(constant: Any) -> Closure:
    kind = constant.WhichOneof("constant_kind")
    if kind not in ("null_value", "bool_value", "int64_value", "double_value", "string_value"):
        raise _UnsupportedError
    value = None if kind == "null_value" else getattr(constant, kind)
    return lambda _variables: value


def _ident(ident: Any) -> Closure:
    name = ident.name

    def read(variables: Mapping[str, Any]) -> Any:
        try:
            return variables[name]
        except KeyError:
            # Names of types, such as `int`, are identifiers too.
            raise NotPlainError from None

    return read


def _select(select: Any) -> Closure:
    operand, field = _compile(select.operand), select.field

    def read(variables: Mapping[str, Any]) -> Any:
        found = operand(variables)
        if type(found) is dict:
            try:
                return found[field]
            except KeyError:
                pass
        raise NotPlainError

    def has(variables: Mapping[str, Any]) -> bool:
        found = operand(variables)
        if type(found) is dict:
            return field in found
        raise NotPlainError

    return has if select.test_only else read


def _list(created: Any) -> Closure:
    if created.optional_indices:
        raise _UnsupportedError
    items = [_compile(element) for element in created.elements]
    return lambda variables: [item(variables) for item in items]


def _map(created: Any) -> Closure:
    entries = []
    for entry in created.entries:
        key = entry.map_key.const_expr
        if entry.optional_entry or entry.WhichOneof("key_kind") != "map_key" or key.WhichOneof("constant_kind") != "string_value":
            raise _UnsupportedError
        entries.append((key.string_value, _compile(entry.value)))
    if created.message_name or len({key for key, _ in entries}) != len(entries):
        raise _UnsupportedError
    return lambda variables: {key: value(variables) for key, value in entries}


def _call(call: Any) -> Closure:
    arguments = [call.target, *call.args] if call.HasField("target") else list(call.args)
    make = _FUNCTIONS.get((call.function, len(arguments)))
    if make is None or (call.HasField("target") and call.function != "size"):
        raise _UnsupportedError
    return make(*map(_compile, arguments))


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise NotPlainError


def _and(left: Closure, right: Closure) -> Closure:
    # A left side that errs raises NotPlainError, and the library applies CEL's rule that `error && false` is false.
    return lambda variables: _bool(right(variables)) if _bool(left(variables)) else False


def _or(left: Closure, right: Closure) -> Closure:
    return lambda variables: True if _bool(left(variables)) else _bool(right(variables))


def _not(operand: Closure) -> Closure:
    return lambda variables: not _bool(operand(variables))


def _conditional(condition: Closure, then: Closure, otherwise: Closure) -> Closure:
    return lambda variables: then(variables) if _bool(condition(variables)) else otherwise(variables)


def _equal(left: Closure, right: Closure) -> Closure:
    def equal(variables: Mapping[str, Any]) -> bool:
        a, b = left(variables), right(variables)
        kind = type(a)
        if kind is type(b) and kind in _COMPARABLE:
            return bool(a == b)
        # null differs from every value that is not null; other mixtures are the library's.
        if (a is None) != (b is None):
            return False
        raise NotPlainError

    return equal


def _unequal(left: Closure, right: Closure) -> Closure:
    equal = _equal(left, right)
    return lambda variables: not equal(variables)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Closure, Closure], Closure]:
    def make(left: Closure, right: Closure) -> Closure:
        def ordered(variables: Mapping[str, Any]) -> bool:
            a, b = left(variables), right(variables)
            if type(a) is type(b) and type(a) in _ORDERED:
                return compare(a, b)
            raise NotPlainError

        return ordered

    return make


def _add(left: Closure, right: Closure) -> Closure:
    def add(variables: Mapping[str, Any]) -> Any:
        a, b = left(variables), right(variables)
        if type(a) is type(b):
            if type(a) is str:
                if len(a) + len(b) > MAX_VALUE_SIZE:
                    raise TooLargeError
                return a + b
            if type(a) is int and MIN_INT <= (found := a + b) <= MAX_INT:
                return found
        raise NotPlainError

    return add


def _size(operand: Closure) -> Closure:
    def size(variables: Mapping[str, Any]) -> int:
        found = operand(variables)
        if type(found) in (str, list, dict):
            return len(found)
        raise NotPlainError

    return size


def _in(item: Closure, container: Closure) -> Closure:
    def contains(variables: Mapping[str, Any]) -> bool:
        a, found = item(variables), container(variables)
        if type(a) is str:
            if type(found) is dict:
                return a in found
            if type(found) is list and all(type(one) is str for one in found):
                return a in found
        raise NotPlainError

    return contains


_KINDS: dict[str, Callable[[Any], Closure]] = {
    "const_expr": _constant,
    "ident_expr": _ident,
    "select_expr": _select,
    "call_expr": _call,
    "list_expr": _list,
    "struct_expr": _map,
}
_FUNCTIONS: dict[tuple[str, int], Callable[..., Closure]] = {
    ("_&&_", 2): _and,
    ("_||_", 2): _or,
    ("!_", 1): _not,
    ("_?_:_", 3): _conditional,
    ("_==_", 2): _equal,
    ("_!=_", 2): _unequal,
    ("_<_", 2): _ordered(lambda a, b: a < b),
    ("_<=_", 2): _ordered(lambda a, b: a <= b),
    ("_>_", 2): _ordered(lambda a, b: a > b),
    ("_>=_", 2): _ordered(lambda a, b: a >= b),
    ("_+_", 2): _add,
    ("size", 1): _size,
    ("@in", 2): _in,
}
