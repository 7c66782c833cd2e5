"""Plain values: what JSON text and messages may hold."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.v1.trigger_pb2 import TriggerResponse
from pointsman.values import MAX_NESTING, decode_json, from_value, refusal, to_value

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4) | st.sampled_from(['[{"', "}]", "\\"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=20)


def depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(NESTED, st.lists(st.booleans(), max_size=MAX_NESTING + 4))
def test_json_is_taken_up_to_the_nesting_that_messages_can_hold(value, around):
    for in_list in around:
        value = [value, "]"] if in_list else {"[": value}
    text = msgspec.json.encode(value)
    if depth(value) > MAX_NESTING:
        with pytest.raises(ValueError, match="nested deeper than 32 levels"):
            decode_json(text)
    else:
        assert decode_json(text) == value
        sent = TriggerResponse(output=to_value(value)).SerializeToString()
        assert from_value(TriggerResponse.FromString(sent).output) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 10_000, "nested deeper"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper"),
        (b'["a\\u0000"]', "NUL"),
        (b'{"a": [9223372036854775808]}', "more than 64 bits"),
        (b"[-9223372036854775809]", "more than 64 bits"),
        (b"NaN", "is not JSON: invalid character"),
        (b'"\xff"', "is not JSON: a string in it is not UTF-8"),
        (b"", "is not JSON: it ends too early"),
    ],
)
def test_other_text_is_refused_with_the_reason(text, says):
    with pytest.raises(ValueError, match=says):
        decode_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "b": 2, "a": 3}}]',
        b'{"a": {"x": ":"}, "a": 2}',
        rb'{"a": 1, "a": "\u003a"}',
        rb'{"\u0061": 1, "a": 2}',
    ],
)
def test_a_key_that_is_there_twice_is_refused_by_name_where_that_is_asked_for(text):
    with pytest.raises(ValueError, match="has the key 'a' twice in one object"):
        decode_json(text, unique_keys=True)
    assert decode_json(text)


@given(NESTED)
def test_other_objects_have_every_key_once(value):
    for text in (msgspec.json.encode(value), json.dumps(value).encode(), json.dumps(value).replace(":", " : ").encode()):
        assert decode_json(text, unique_keys=True) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"[9223372036854775807, -9223372036854775808]", [2**63 - 1, -(2**63)]),
        (b"[1e30]", [1e30]),
        (b'["12345678901234567890123"]', ["12345678901234567890123"]),
        (b"[0.12345678901234567890123]", [0.12345678901234568]),
    ],
)
def test_what_looks_like_a_long_integer_and_is_none_is_taken(text, value):
    assert decode_json(text) == value


@pytest.mark.parametrize(("value", "says"), [({"a": [float("nan")]}, "infinite"), ({"a\0": 1}, "NUL"), ({"a": [1.5, {"b": "c"}]}, "")])
def test_values_of_messages_that_json_has_no_word_for_are_refused(value, says):
    assert says in refusal(value)
    assert bool(refusal(value)) == bool(says)
