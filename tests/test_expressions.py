"""Expressions and templates: what they see, what they give, and how they are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.expressions import MAX_EXPRESSION_BYTES, TOOL_VARIABLES, ExpressionError, compile_expression, compile_template
from pointsman.values import MAX_NESTING

VARIABLES = {
    "input": {"n": 3, "x": 1.5, "name": "Ann"},
    "steps": {"a": {"k": [1, 2]}, "gone": None},
    "environment": "staging",
    "release": "v1",
}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("input.n + 1", 4),
        ("double(input.n) * input.x", 4.5),
        ("input.n * 1.5", 4.5),
        ("1 - input.x / 2", 0.25),
        ("input.n * 2", 6),
        ("input.n * 1.5 > 4 && input.x + 1 >= 2", True),
        ("[1, 2.5].map(i, i * 2)", [2, 5.0]),
        ("input.n > 2.5", True),
        ("'hello ' + input.name", "hello Ann"),
        ("steps.a.k[1]", 2),
        ("steps['a'].k.map(i, i * 2)", [2, 4]),
        ("steps.gone == null", True),
        ("environment + '/' + release", "staging/v1"),
        ("input.?missing.orValue('none')", "none"),
        ("has(input.missing) ? 1 : 2", 2),
        ("{'a': [1, 2.5, null, true], 'b': {'c': input.name}}", {"a": [1, 2.5, None, True], "b": {"c": "Ann"}}),
        ("['a', 'b'].join('-')", "a-b"),
        ("duration('90s')", "90s"),
        ("duration('1234567s')", "1234567s"),
        ("duration('-1.25s')", "-1.25s"),
        ("timestamp('2026-01-02T03:04:05Z')", "2026-01-02T03:04:05Z"),
    ],
)
def test_an_expression_gives_a_plain_value(source, value):
    assert compile_expression(source).evaluate(VARIABLES) == value


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("inptu.n", "line 1, column 6: unknown variable 'inptu'; did you mean input?"),
        ("1 +\n  ", "line 2, column"),
        ("double(input.n) > 2", "write 2.0 for 2, or double(x)"),
        ("frobnicate(1)", "unknown function 'frobnicate'"),
        ("1" + " + 1" * MAX_EXPRESSION_BYTES, "at most 8192 are allowed"),
    ],
)
def test_a_bad_expression_is_refused_when_it_is_compiled(source, says):
    with pytest.raises(ExpressionError) as error:
        compile_expression(source)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("input.missing", "has(x.key)"),
        ("input.name * 1.5", "No matching overloads"),
        ("1.0 / 0.0", "gave inf, which JSON has no word for"),
        ("0 / 0.0", "gave nan"),
        ("[double('-Infinity')]", "gave -inf"),
        ("optional.of(1)", "take its value with .orValue(...)"),
        ("[optional.none()]", "take its value with .orValue(...)"),
        ("int", "JSON has no word for"),
        ("1 / (input.n - 3)", "divide by zero"),
        ("b'abc'", "JSON has no word for"),
        ("{1: 2}", "keys must be strings"),
    ],
)
def test_an_expression_without_a_value_says_why(source, says):
    with pytest.raises(ExpressionError) as error:
        compile_expression(source).evaluate(VARIABLES)
    assert says in str(error.value)


def test_a_value_beyond_64_bits_is_an_error_not_a_crash():
    with pytest.raises(ExpressionError):
        compile_expression("input.n").evaluate({**VARIABLES, "input": {"n": 2**70}})


def test_an_expression_that_explodes_is_stopped():
    numbers = {**VARIABLES, "input": {"l": list(range(300))}}
    with pytest.raises(ExpressionError):
        compile_expression("input.l.map(a, input.l.map(b, input.l.map(c, input.l.map(d, a+b+c+d))))").evaluate(numbers)


@pytest.mark.parametrize(
    "source",
    [
        "steps",
        "{'a': [steps.big, steps.big, steps.big, steps.big, steps.big]}",
        "steps.big + steps.big + steps.big + steps.big + steps.big",
        "[steps.big, steps.big.upperAscii(), steps.big, steps.big, steps.big]",
        "[1, 2, 3, 4, 5].map(n, steps.big).join('')",
        "[steps.many, steps.many, steps.many].filter(x, true)",
    ],
)
def test_what_is_too_large_is_an_error_and_a_step_cannot_double_what_was_before_it_for_ever(source):
    expression = compile_expression(source)

    def run_steps(steps: dict[str, object]) -> None:
        for number in range(99):
            steps = {**steps, f"s{number}": expression.evaluate({**VARIABLES, "steps": steps})}

    with pytest.raises(ExpressionError, match="too large"):
        run_steps({"big": "x" * 4 * 1024 * 1024, "many": [0] * 1_000_000})


def test_what_a_caller_may_send_may_be_given_too():
    largest = {"l": [0] * ((4 * 1024 * 1024 - 8) // 2)}
    assert compile_expression("input").evaluate({**VARIABLES, "input": largest}) == largest


@pytest.mark.parametrize("source", ["1", "'yes'", "null"])
def test_a_gate_must_be_a_bool(source):
    with pytest.raises(ExpressionError, match="must give true or false"):
        compile_expression(source).evaluate_bool(VARIABLES)


@pytest.mark.parametrize(
    ("source", "steps"),
    [
        ("steps.a.b + steps['c-d'] + \"steps.no\" + steps.?e.orValue('') + steps[?'f'].orValue('')", {"a", "c-d", "e", "f"}),
        ("has(steps.a.b) && has(steps.c)", {"a", "c"}),
        ("input.steps.a + input['steps'].b", set()),
        ("[{'k': steps.a}].map(steps, steps.k)", {"a"}),
        ("steps.a // steps.b", {"a"}),
        ("steps.l.map(i, steps.m + i).size() > 1 ? steps.n : null", {"l", "m", "n"}),
        ("steps[input.name]", set()),
    ],
)
def test_the_steps_that_an_expression_names_are_known(source, steps):
    assert compile_expression(source).steps == steps


def test_the_steps_that_a_template_names_are_known():
    source = "{{ steps.a.b }} {% for x in steps.l %}{{ x.y }}{% endfor %} {{ input.steps.z }} {% set steps = {'q': 1} %}{{ steps.q }}"
    assert compile_template(source).steps == {"a", "l"}


@given(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from("+-*/"), st.booleans())
def test_ints_and_doubles_mix_as_doubles(n, x, operator, swapped):
    left, right = (x, n) if swapped else (n, x)
    variables = {**VARIABLES, "input": {"l": left, "r": right}}
    mixed = outcome(f"input.l {operator} input.r", variables)
    assert mixed == outcome(f"double(input.l) {operator} double(input.r)", variables)


def outcome(source, variables):
    try:
        found = compile_expression(source).evaluate(variables)
    except ExpressionError as error:
        return str(error)
    return type(found), found


def nested(levels, value=1):
    for _ in range(levels):
        value = {"k": value}
    return value


@pytest.mark.parametrize("source", ["input.v", "[input.v].map(x, x)[0]"])
def test_a_value_nested_too_deep_is_refused_by_closures_and_by_the_library(source):
    expression = compile_expression(source)
    assert expression.evaluate({**VARIABLES, "input": {"v": nested(MAX_NESTING)}}) == nested(MAX_NESTING)
    with pytest.raises(ExpressionError, match="nested deeper than 32"):
        expression.evaluate({**VARIABLES, "input": {"v": nested(MAX_NESTING + 1)}})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Hi {{ input.name }}, {{ input.n }}", "Hi Ann, 3"),
        ("{% if steps.gone %}x{% else %}y{% endif %}", "y"),
        ("{{ steps.a | tojson }}", '{"k": [1, 2]}'),
        ("{{ '<b>' }}\n", "<b>\n"),
    ],
)
def test_a_template_gives_text(source, text):
    assert compile_template(source).render(VARIABLES) == text


def test_values_in_a_url_are_percent_encoded():
    url = compile_template("http://h/{{ arguments.id }}?q={{ arguments.q }}", variables=TOOL_VARIABLES, quote_url=True)
    assert url.render({**VARIABLES, "arguments": {"id": "a/b c", "q": True}}) == "http://h/a%2Fb%20c?q=true"
    with pytest.raises(ExpressionError, match="a URL takes text and numbers"):
        url.render({**VARIABLES, "arguments": {"id": None, "q": 1}})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ inptu.n }}", "unknown variable 'inptu'; did you mean input?"),
        ("{{ input.n", "syntax error"),
        ("{% set x = namespace(s='') %}", "unknown variable 'namespace'"),
        ("{{ debug() }}", "unknown variable 'debug'"),
    ],
)
def test_a_bad_template_is_refused_when_it_is_compiled(source, says):
    with pytest.raises(ExpressionError) as error:
        compile_template(source)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ input.missing }}", "`input.missing` is undefined"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "fuel"),
        ("{{ input.__class__ }}", "undefined"),
    ],
)
def test_a_template_that_fails_says_why_and_shows_no_values(source, says):
    with pytest.raises(ExpressionError) as error:
        compile_template(source).render({**VARIABLES, "input": {"secret": "hunter2"}})
    assert says in str(error.value)
    assert "hunter2" not in str(error.value)


# Without NUL, which the doors refuse (values.has_nul): the library would cut a string there.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_what_goes_into_an_expression_comes_out_of_it(value):
    found = compile_expression("input.v").evaluate({**VARIABLES, "input": {"v": value}})
    assert found == value
    assert type(found) is type(value)
