"""Closures give exactly what the library gives, errors included."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.expressions import Expression, ExpressionError, compile_expression

VALUES = st.recursive(
    st.none()
    | st.booleans()
    # Beyond 64 bits the library refuses any expression, also one that does not look at the value.
    | st.sampled_from([0, 1, -1, 2, 2**63 - 1, -(2**63)])
    | st.sampled_from([0.0, 1.0, -0.5, 1e300])
    | st.sampled_from(["", "a", "b", "ab", "é", "x\ty"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "k"]), inner, max_size=3),
    max_leaves=5,
)
LEAVES = st.sampled_from(
    [
        *("input", "input.a", "input.b", "input.a.k", "steps.s", "steps.t.a", "steps.gone", "environment", "release"),
        *("has(input.a)", "has(input.a.b)", "1", "2", "-1", "9223372036854775807", "1.5", "'a'", "''"),
        *("true", "false", "null", "[]", "{}", "3u", "b'x'"),
    ]
)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "+", "-", "&&", "||", "in"])
    return (
        st.tuples(inner, operators, inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})")
        | st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} ? {parts[1]} : {parts[2]})")
        | inner.map(lambda one: f"!{one}")
        | inner.map(lambda one: f"size({one})")
        | pair.map(lambda both: f"[{both[0]}, {both[1]}]")
        | pair.map(lambda both: f"{{'a': {both[0]}, 'b': {both[1]}}}")
        | inner.map(lambda one: f"[{one}].map(x, x)")
    )


EXPRESSIONS = st.recursive(LEAVES, grown, max_leaves=6)


def outcome(evaluate: Any, variables: dict[str, Any]) -> tuple[str, Any]:
    try:
        found = evaluate(variables)
    except ExpressionError as error:
        return "error", str(error)
    return "value", typed(found)


def typed(value: Any) -> Any:
    """The value with its types all the way down: 1, 1.0 and True differ, the order of a map does not matter."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value


@settings(max_examples=1500)
@given(EXPRESSIONS, VALUES, VALUES, VALUES)
def test_the_two_agree(source, a, b, step):
    try:
        expression = compile_expression(source)
    except ExpressionError:
        return
    variables = {"input": {"a": a, "b": b}, "steps": {"s": step, "t": {"a": a}, "gone": None}, "environment": "a", "release": "v1"}
    assert outcome(expression.evaluate, variables) == outcome(expression.evaluate_by_library, variables)


@pytest.mark.parametrize(
    "source",
    [
        "'Dear ' + input.a + '!'",
        "{'a': input.a, 'n': [1, size(input.a)]}",
        "input.a == 'x' && !(steps.s == null) || has(input.b)",
        "input.a in ['x', 'y'] ? 1 + 2 : 0",
    ],
)
def test_what_is_common_is_done_by_a_closure(source, monkeypatch):
    expression = compile_expression(source)
    monkeypatch.setattr(Expression, "evaluate_by_library", lambda *_: pytest.fail("the library was asked"))
    expression.evaluate({"input": {"a": "x"}, "steps": {"s": 1}, "environment": "e", "release": "r"})


@pytest.mark.parametrize(
    "items",
    [
        list(range(100)),
        [*range(100), 2**63],
        [-(2**63) - 1, *range(100)],
        [*range(100), True],
        [1.5, *range(100)],
        ["ab"] * 100,
        [*["ab"] * 100, None],
        [*["ab"] * 100, {"a": ["b"]}],
        [*range(100), (1, 2)],
        {f"k{number}": number for number in range(100)},
        ["x" * 200_000] * 100,
        {f"k{number}": "x" * 200_000 for number in range(100)},
    ],
    ids=lambda items: str(items)[-20:],
)
def test_the_two_agree_on_many_items(items):
    expression = compile_expression("[input.items, 1]")
    variables = {"input": {"items": items}, "steps": {}, "environment": "a", "release": "v1"}
    assert outcome(expression.evaluate, variables) == outcome(expression.evaluate_by_library, variables)
