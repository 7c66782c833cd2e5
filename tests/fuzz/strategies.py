"""Values that are odd, messages of any kind, and bytes that were once good."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ODD_TEXTS = [
    "", " ", "\0", "a\0b", "\x7f", "\r\n", "-", ".", "..", "../../../etc/passwd", "/", "//", "%00", "%", "%s%n", "${secret:KEY}", "{{ 1 }}", "'", '"',
    "'; DROP TABLE releases; --", "<script>", "\u2028", "\ufeff", "\u202e", "\U0001f600", "e\u0301", "\ud7ff", "NaN", "Infinity", "-0", "1e999", "0x10",
    "9" * 30, "null", "true", "*", "_", "A" * 127, "a" * 63, "a" * 64, "a" * 5000, "\u00e9" * 2000, "sha256:" + "0" * 64, "sha256:" + "g" * 64,
]  # fmt: skip
ODD_INTEGERS = [
    0,
    1,
    -1,
    2,
    50,
    500,
    501,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32,
    2**53,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    253402300800,
    315576000001,
    -62135596801,
]
ODD_FLOATS = [0.0, -0.0, 1.0, 0.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 1e-300, 2.0**63]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = {
    "app": ["shop", "shop", "shop", "ghost"],
    "environment": ["staging", "production", "development", "nowhere"],
    "to_environment": ["staging", "production"],
    "from_environment": ["staging", "production"],
    "deploy_to": ["staging", ""],
    "release": ["v1", "v2", "v3", ""],
    "to_release": ["v1", "v2", ""],
    "tag": ["v1", "v2", "v9"],
    "endpoint": ["where", "/where", "nothing"],
    "gateway_id": ["g1", "gateway-1"],
    "request_id": ["018f2b1e-0000-7000-8000-000000000000", "018f2b1e-0000-4000-8000-00000000000A", ""],
    "digest": ["sha256:" + "0" * 64],
    "instance_id": ["018f2b1e-0000-7000-8000-000000000000"],
    "execution_id": ["018f2b1e-0000-7000-8000-000000000000"],
    "method": ["POST", "GET", ""],
    "pipeline": ["tell"],
    "name": ["a", "where", "tell", "begin", "start"],
    "expression": ["1", "input", "input.message", "steps.a", "'x' + release"],
    "url": ["http://127.0.0.1:1/", "https://tools.example/{{ input.id }}"],
    "prompt": ["{{ input.message }}", "text"],
}


@cache
def texts(name: str = "") -> SearchStrategy[str]:
    """Of a field of this name: mostly what it may be, else what nobody expects."""
    odd = st.sampled_from(ODD_TEXTS) | TEXT
    known = NAMES.get(name)
    return st.one_of(st.sampled_from(known), st.sampled_from(known), odd) if known else odd


INTEGERS = st.sampled_from(ODD_INTEGERS) | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.sampled_from(ODD_FLOATS) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_INTEGERS) | FLOATS | texts(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
    max_leaves=6,
)


@cache
def messages(descriptor: Descriptor, depth: int = 4) -> SearchStrategy[Any]:
    """Any message of this kind, whether its rules allow it or not."""
    return _messages(descriptor, depth)


@cache
def tame(descriptor: Descriptor) -> SearchStrategy[Any]:
    """A message whose known fields are as they should be, and of the others one or two as nobody expects: it goes further."""
    return _tame(descriptor)


@st.composite
def _messages(draw: Any, descriptor: Descriptor, depth: int) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)) > 0 and (depth or field.message_type is None):
            _fill(draw, field, message, depth)
    return message


@st.composite
def _tame(draw: Any, descriptor: Descriptor) -> Message:
    message: Any = message_factory.GetMessageClass(descriptor)()
    others = []
    for field in descriptor.fields:
        known = NAMES.get(field.name)
        if known and field.cpp_type == field.CPPTYPE_STRING and not field.is_repeated:
            setattr(message, field.name, draw(st.sampled_from(known)))
        else:
            others.append(field)
    for field in draw(st.lists(st.sampled_from(others), max_size=2)) if others else []:
        _fill(draw, field, message, 3)
    return message


def _fill(draw: Any, field: FieldDescriptor, message: Any, depth: int) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _fill_map(draw, field, message, depth)
    elif kind is not None:
        inner = draw(messages(kind, depth - 1))
        if field.is_repeated:
            getattr(message, field.name).append(inner)
        else:
            getattr(message, field.name).CopyFrom(inner)
            getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(plain(field), max_size=3)))
    else:
        setattr(message, field.name, draw(plain(field)))


def _fill_map(draw: Any, field: FieldDescriptor, message: Any, depth: int) -> None:
    value = field.message_type.fields_by_name["value"]
    for key in draw(st.lists(texts(field.name), max_size=2)):
        if value.message_type is None:
            getattr(message, field.name)[key] = draw(plain(value))
        else:
            getattr(message, field.name)[key].CopyFrom(draw(messages(value.message_type, depth - 1)))


@cache
def plain(field: FieldDescriptor) -> SearchStrategy[Any]:
    """A value of a field that is no message."""
    if field.enum_type is not None:
        return st.sampled_from([*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1])
    if field.cpp_type == field.CPPTYPE_STRING:
        return st.binary(max_size=40) if field.type == field.TYPE_BYTES else texts(field.name)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return FLOATS
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    low, high = (
        (0, 2**bits - 1) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    return st.sampled_from([number for number in ODD_INTEGERS if low <= number <= high]) | st.integers(low, high)


SEEDS = st.integers(0, 2**64 - 1)


def mutated(data: bytes, seed: int, splice: Sequence[bytes] = ()) -> bytes:
    """The bytes with a few of the faults of a network, a disk or an enemy, chosen by the seed."""
    chance = random.Random(seed)
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(found) + 1)
        what = chance.randrange(8)
        if what == 0:
            found[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 1:
            found[at:at] = chance.randbytes(chance.choice((1, 2, 8, 100)))
        elif what == 2:
            del found[at : at + chance.choice((1, 2, 8, 100))]
        elif what == 3:
            del found[at:]
        elif what == 4:
            found[at:at] = found[at : at + chance.randrange(1, 200)] * chance.choice((1, 2, 50))
        elif what == 5:
            # A length, or a number, of protobuf that is huge.
            found[at:at] = chance.choice(
                (b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x0b" * 200, b"\x0a\xff\xff\xff\x7f")
            )
        elif what == 6 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif splice:
            found[at:at] = chance.choice(splice)
    return bytes(found[: 64 * 1024])


def nested(tag: bytes, depth: int, inner: bytes = b"") -> bytes:
    """A message of protobuf in itself, so deep; the tag is that of the field, length-delimited."""
    for _ in range(depth):
        inner = tag + _varint(len(inner)) + inner
    return inner


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def requests(descriptor: Descriptor) -> SearchStrategy[bytes]:
    """Bytes for a method that takes such messages: good ones, broken ones, and some that never were one."""
    good = tame(descriptor).map(lambda message: message.SerializePartialToString())
    return st.one_of(
        good,
        good,
        messages(descriptor).map(lambda message: message.SerializePartialToString()),
        st.builds(mutated, good, SEEDS),
        st.binary(max_size=60),
        st.builds(nested, st.sampled_from([bytes([number << 3 | 2]) for number in range(1, 12)]), st.sampled_from([10, 99, 101, 5000])),
    )
