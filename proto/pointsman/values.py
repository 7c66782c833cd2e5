"""Plain values (dict, list, str, int, float, bool, None) from and to google.protobuf.Struct and Value.

A Struct knows only doubles. Those without a fraction become ints, so that a pipeline gets the same values through gRPC as from
JSON through HTTP.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NullValue, Struct, Value

# Beyond this a double does not tell neighbouring integers apart (RFC 8259, section 6).
MAX_EXACT_INTEGER = 2**53

MAX_SHOWN_CHARS = 80

# Lists and maps within one another. A level of maps is three of protobuf, which takes at most 100.
MAX_NESTING = 32

# Of what an expression gives: a character counts 1, an element or entry ELEMENT_SIZE. More than any input of 4 MiB has.
MAX_VALUE_SIZE = 16 * 1024 * 1024
ELEMENT_SIZE = 8

NUL_REFUSED = "has the character NUL (U+0000), which expressions cannot hold; leave it out"


NESTING_REFUSED = f"is nested deeper than {MAX_NESTING} levels of lists and objects; make it flatter"
NUMBER_REFUSED = "has a number that is infinite or not a number, which JSON has no word for"
SIZE_REFUSED = (
    f"is too large: at most {MAX_VALUE_SIZE} characters, and elements that count {ELEMENT_SIZE} each, are allowed; give less of it"
)

INTEGER_REFUSED = "has an integer of more than 64 bits, which expressions cannot hold; write it as a string, or with an exponent"
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

# Of msgspec's words those that say less than they could to whom they are shown.
_NOT_JSON = {"Input data was truncated": "it ends too early"}

# Only then can an integer have more than 64 bits; that spares almost every text the walk.
_MANY_DIGITS, _ANY_DIGIT = b"0" * 19, bytes.maketrans(b"123456789", b"0" * 9)
_ESCAPES = re.compile(rb"\\.")
_STRINGS = re.compile(rb'"[^"]*"')
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_HARMLESS = frozenset({int, bool, type(None)})
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def refusal(plain: Any) -> str:
    """Why a plain value that did not come as JSON cannot be taken: words that follow its name; empty when it can."""
    kind = type(plain)
    if kind is str:
        return NUL_REFUSED if "\0" in plain else ""
    if kind is float:
        return "" if math.isfinite(plain) else NUMBER_REFUSED
    if kind in _HARMLESS:
        return ""
    parts: Iterable[Any] = plain
    if kind is not list:
        if any("\0" in key for key in plain):
            return NUL_REFUSED
        parts = plain.values()
    return next(filter(None, map(refusal, parts)), "")


def has_nul(plain: Any) -> bool:
    """Whether a string in the value has a NUL: cel-cpp's Python binding would silently cut the string there."""
    if isinstance(plain, str):
        return "\0" in plain
    if isinstance(plain, Mapping):
        return any(has_nul(key) or has_nul(value) for key, value in plain.items())
    return isinstance(plain, list) and any(map(has_nul, plain))


def has_long_integer(plain: Any) -> bool:
    """Whether an integer in the value has more than 64 bits."""
    if isinstance(plain, int):
        return not MIN_INTEGER <= plain <= MAX_INTEGER
    if isinstance(plain, Mapping):
        return any(map(has_long_integer, plain.values()))
    return isinstance(plain, list) and any(map(has_long_integer, plain))


def decode_json(data: bytes, *, unique_keys: bool = False) -> Any:
    """The plain value of JSON text. With `unique_keys` no object may have a key twice, which RFC 8259 leaves to the reader.

    Raises:
        ValueError: with the reason, when it is not JSON (RFC 8259), is nested too deep, or has what expressions cannot hold: a NUL in a
            string, an integer of more than 64 bits.
    """
    try:
        found = msgspec.json.decode(data)
    except RecursionError:
        raise ValueError(NESTING_REFUSED) from None
    except msgspec.DecodeError as error:
        raise ValueError(f"is not JSON: {_NOT_JSON.get(str(error), str(error).removeprefix('JSON is malformed: '))}") from None
    except UnicodeDecodeError:
        raise ValueError("is not JSON: a string in it is not UTF-8") from None
    if data.count(b"{") + data.count(b"[") > MAX_NESTING and _too_deep(data):
        raise ValueError(NESTING_REFUSED)
    # A NUL can only be written as this escape, so the search spares almost every text the walk.
    if b"\\u0000" in data and has_nul(found):
        raise ValueError(NUL_REFUSED)
    if _MANY_DIGITS in data.translate(_ANY_DIGIT) and has_long_integer(found):
        raise ValueError(INTEGER_REFUSED)
    if unique_keys and not (type(found) is dict and len(found) == data.count(b":")):
        _check_unique(data, found)
    return found


def _check_unique(data: bytes, found: Any) -> None:
    # A key that was dropped took its colon along; one that is escaped is counted nowhere, so it is looked at too.
    if data.count(b":") != msgspec.json.encode(found).count(b":") or b"\\u003" in data:
        json.loads(data, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"has the key {key[:MAX_SHOWN_CHARS]!r} twice in one object; leave one of them out")
        seen.add(key)


def _too_deep(data: bytes) -> bool:
    """Whether JSON text is nested deeper than MAX_NESTING: the innermost brackets are taken away that often, all of it in C."""
    marks = _ESCAPES.sub(b"", data) if b"\\" in data else data
    marks = marks.translate(_ONE_KIND, _NO_MARKS)
    brackets = marks.replace(b'""', b"")
    if b'"' in brackets:
        # A bracket stands in a string: before it the number of quotes is odd.
        brackets = _STRINGS.sub(b"", marks)
    for _ in range(MAX_NESTING):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def from_struct(struct: Struct) -> dict[str, Any]:
    """The plain map."""
    fields = struct.fields
    # Its items() is Python's own, and costs as much as all else here.
    return {key: from_value(fields[key]) for key in fields}


def from_value(value: Value) -> Any:
    """The plain value; a Value with no kind is None."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= MAX_EXACT_INTEGER else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    return None


def seconds_of(duration: Duration) -> float:
    """Also of one that no rule was applied to: protobuf's own conversions raise when it is longer than 10,000 years."""
    return duration.seconds + duration.nanos / 1e9


def to_value(plain: Any) -> Value:
    """The plain value as a message."""
    value = Value()
    fill_value(value, plain)
    return value


def to_struct(plain: Mapping[str, Any]) -> Struct:
    """The plain map as a message."""
    struct = Struct()
    _fill_struct(struct, plain)
    return struct


def fill_value(value: Value, plain: Any) -> None:
    """The same in place: messages that are made apart are copied once for every level above them."""
    kind = type(plain)
    if kind is str:
        value.string_value = plain
    elif kind is int or kind is float:
        value.number_value = plain
    elif kind is bool:
        value.bool_value = plain
    elif plain is None:
        value.null_value = NullValue.NULL_VALUE
    elif kind is dict or isinstance(plain, Mapping):
        _fill_struct(value.struct_value, plain)
    else:
        value.list_value.SetInParent()
        values = value.list_value.values
        for item in plain:
            fill_value(values.add(), item)


def _fill_struct(struct: Struct, plain: Mapping[str, Any]) -> None:
    struct.SetInParent()
    fields = struct.fields
    for key, item in plain.items():
        fill_value(fields[key], item)
