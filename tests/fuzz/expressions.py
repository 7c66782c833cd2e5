"""CEL expressions and templates of a release, which its author writes and a gateway runs on what callers send."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pointsman.expressions import MAX_EXPRESSION_BYTES, TOOL_VARIABLES, ExpressionError, compile_expression, compile_template
from tests.fuzz.engine import Target, pure
from tests.fuzz.strategies import JSON, ODD_TEXTS, SEEDS, TEXT, mutated

VARIABLES: dict[str, Any] = {
    "input": {"a": "xxxxxxxxxx", "n": 1000000000, "l": list(range(100)), "m": {"k": [1.5, None, True]}, "s": "a\n" * 50, "neg": -(2**63)},
    "steps": {"one": {"text": "x" * 1000}, "two": None},
    "environment": "production",
    "release": "v1",
    "arguments": {"id": 7, "q": "a&b"},
}
NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "2",
        "3",
        "100",
        "1000000000",
        "9223372036854775807",
        "-9223372036854775808",
        "1.5",
        "1e308",
        "18446744073709551615",
        "1e-320",
    ]
)
ATOMS = NUMBERS | st.sampled_from(["input", "input.a", "input.n", "input.l", "input.m", "input.s", "steps.one.text", "steps.two", "environment", "release", "input.nothing", "true", "'x'", "''", '"\\u00e9"', "'%s'", "'a,b'", "[]", "[1, 2]", "['a']"])  # fmt: skip
CEL_ATOMS = ATOMS | st.sampled_from(["null", "b'\\xff'", "1u", "r'\\d+'", "{}", "{'k': 1}", "{1: 2}", "int", "timestamp('2024-01-01T00:00:00Z')", "duration('1h')", "optional.none()", "type(1)", "x", "y"])  # fmt: skip
CEL_FORMS = [
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} / {1})", "({0} % {1})", "({0} == {1})", "({0} < {1})", "({0} && {1})", "({0} || {1})", "({0} in {1})",
    "({0} ? {1} : {0})", "!{0}", "-{0}", "{0}[{1}]", "{0}[?{1}]", "{0}.?a", "[{0}, {1}]", "[{0}, {0}]", "{{'k': {0}, 'j': {1}}}", "{{{0}: {1}}}", "has(input.a)",
    "{0}.map(x, {1})", "{0}.map(x, [x, x])", "{0}.map(x, x + x)", "{0}.filter(x, {1})", "{0}.all(x, {1})", "{0}.exists_one(x, {1})", "{0}.map(x, {1}, [x, {0}])",
    "size({0})", "string({0})", "int({0})", "double({0})", "uint({0})", "bytes({0})", "type({0})", "dyn({0})", "timestamp({0})", "duration({0})", "bool({0})",
    "{0}.replace('x', {1})", "{0}.replace({1}, {0})", "{0}.replace('', 'xxxxxxxxxx')", "{0}.split({1})", "{0}.split('')", "{0}.join({1})", "{0}.join()", "{0}.format([{1}])",
    "{0}.substring({1})", "{0}.substring({1}, {1})", "{0}.charAt({1})", "{0}.indexOf({1})", "{0}.lastIndexOf({1})", "{0}.lowerAscii()", "{0}.trim()", "{0}.reverse()",
    "strings.quote({0})", "{0}.matches({1})", "{0}.startsWith({1})", "{0}.contains({1})", "{0}.getFullYear({1})", "{0}.getHours('Europe/Nowhere')", "optional.of({0})",
    "optional.ofNonZeroValue({0})", "{0}.orValue({1})", "{0}.optMap(x, {1})", "{0}.optFlatMap(x, {1})", "{0}.value()", "math.greatest({0}, {1})",
]  # fmt: skip
TEMPLATE_FORMS = [
    "({0} + {1})", "({0} ~ {1})", "({0} * {1})", "({0} ** {1})", "({0} // {1})", "({0} % {1})", "({0} == {1})", "({0} in {1})", "({0} is {2})", "({0} if {1} else {0})",
    "{0}[{1}]", "{0}[{1}:{1}]", "{0}[::{1}]", "not {0}", "-{0}", "[{0}, {1}]", "{{'k': {0}}}", "range({0})", "range({0}, {1}, {0})", "dict(a={0})", "lipsum({0})",
    "{0}|{3}", "{0}|{3}({1})", "{0}|{3}({1}, {0})", "{0}|{3}(indent={1})", "{0}|{3}(width={1})", "{0}|{3}(precision={1})", "{0}|{3}(count={1})", "{0}|{3}(attribute={1})",
    "{0}|{3}(length={1})", "{0}|{3}(default={1})", "{0}|{3}(reverse={1})", "{0}|{3}('xxxxxxxxxx', {1})", "{0}|tojson(indent={1})", "{0}|indent({1}, true, true)",
    "input.pop({0})", "input.l.append({0})", "input.l.extend(input.l)", "input.m.update({0})", "{0}.get({1})", "{0}.items()", "{0}.copy()", "{0}.index({1})", "input . clear ( )", "{0}.nothing({1}, {0})", "{0}.pop", "(input|attr({1}))({0})", "input[{0}]({1})",
]  # fmt: skip
TESTS = st.sampled_from(
    [
        "defined",
        "odd",
        "divisibleby(0)",
        "string",
        "in([1])",
        "eq(1)",
        "sequence",
        "startingwith('a')",
        "nothing",
        "safe",
        "filter",
        "test('x')",
    ]
)
FILTERS = st.sampled_from([
    "abs", "attr", "batch", "bool", "capitalize", "chain", "count", "default", "dictsort", "escape", "first", "float", "format", "groupby", "indent", "int", "items", "join",
    "last", "length", "lines", "list", "lower", "map", "max", "min", "pprint", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice",
    "sort", "split", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "wordcount", "wordwrap", "zip", "striptags", "filesizeformat",
])  # fmt: skip
STATEMENTS = [
    "{{{{ {0} }}}}", "{{% if {0} %}}{{{{ {1} }}}}{{% elif {1} %}}b{{% endif %}}", "{{% for x in {0} %}}{{{{ x }}}}{{% else %}}e{{% endfor %}}",
    "{{% for x in {0} recursive %}}{{{{ loop(x) }}}}{{% endfor %}}", "{{% set y = {0} %}}{{{{ y }}}}", "{{% set y %}}{{{{ {0} }}}}{{% endset %}}{{{{ y ~ y }}}}",
    "{{% macro m(x) %}}{{{{ m(x) }}}}{{% endmacro %}}{{{{ m({0}) }}}}", "{{% with y = {0} %}}{{{{ y }}}}{{% endwith %}}", "{{% filter upper %}}{{{{ {0} }}}}{{% endfilter %}}",
    "{{% include {0} %}}", "{{% import {0} as y %}}", "{{% extends {0} %}}", "{{% block b %}}{{{{ {0} }}}}{{% endblock %}}", "{{# {0} #}}", "{{% raw %}}{0}{{% endraw %}}",
    "{{% for x in {0} %}}{{% for y in {1} %}}xxxxxxxxxxxxxxxx{{% endfor %}}{{% endfor %}}", "{{{{ debug() }}}}", "{{% set n = namespace(a={0}) %}}", "{{% do {0} %}}",
    "{{% autoescape {0} %}}a{{% endautoescape %}}", "{{% call(x) {0} %}}a{{% endcall %}}",
]  # fmt: skip
REPEATS = st.sampled_from([1, 1, 1, 1, 3, 10, 30, 300, 3000])


def _formed(forms: list[str]) -> Any:
    def extend(inner: Any) -> Any:
        return st.builds(lambda form, a, b, test, name: form.format(a, b, test, name), st.sampled_from(forms), inner, inner, TESTS, FILTERS)

    return extend


def _chained(form: str, a: str, b: str, times: int, test: str, name: str) -> str:
    """The same form around itself, again and again: what grows, grows far."""
    for _ in range(times):
        if len(a) > 2 * MAX_EXPRESSION_BYTES:
            break
        a = form.format(a, b, test, name)
    return a


def _expressions(atoms: Any, forms: list[str]) -> Any:
    grown = st.recursive(atoms, _formed(forms), max_leaves=8)
    chained = st.builds(_chained, st.sampled_from(forms), grown, atoms, st.sampled_from([2, 5, 10, 25, 31]), TESTS, FILTERS)
    return grown, chained


CEL, CEL_CHAINED = _expressions(CEL_ATOMS, CEL_FORMS)
VALUE, VALUE_CHAINED = _expressions(ATOMS, TEMPLATE_FORMS)
BRACKETS = st.sampled_from(["(", "[", "{", "!", "-", "not ", "1+", "1~", "a.", "a[", "f(", "{{", "{%", "{#", "a|b", "a if b else ", "'", '"', "\\", "{% if 1 %}", "{% for x in input.l %}", "1<", "x,", "a==", "x?", "x?y:", "[1].map(x,"])  # fmt: skip
DEEP = st.builds(
    lambda opening, times, rest: opening * times + rest,
    BRACKETS,
    st.sampled_from([2, 31, 33, 100, 1000, 8000, 60000]),
    TEXT | st.sampled_from(["1", "1}}", ""]),
)
OLD_CEL = CEL | st.builds(lambda source, seed: mutated(source.encode(), seed).decode(errors="replace"), CEL, SEEDS)
SOURCES = st.one_of(CEL, CEL_CHAINED, CEL_CHAINED, OLD_CEL, DEEP, st.sampled_from(ODD_TEXTS), TEXT)
TEMPLATE = st.builds(lambda form, a, b: form.format(a, b), st.sampled_from(STATEMENTS), VALUE | VALUE_CHAINED, VALUE)
TEMPLATES = st.one_of(
    TEMPLATE,
    TEMPLATE,
    st.lists(TEMPLATE, min_size=2, max_size=4).map("".join),
    st.builds(lambda source, times: source * min(times, 300_000 // len(source)), TEMPLATE, REPEATS),
    st.builds(lambda source, seed: mutated(source.encode(), seed).decode(errors="replace"), TEMPLATE, SEEDS),
    DEEP.map(lambda text: "{{ " + text + " }}"),
    DEEP,
)


def check_expression(case: tuple[str, Any]) -> None:
    """It is refused when it is made, or gives a value of JSON, or an error for a person."""
    source, given = case
    try:
        expression = compile_expression(source)
        _is_json(expression.evaluate({**VARIABLES, "input": {**VARIABLES["input"], "g": given}}))
    except ExpressionError as error:
        _is_for_people(error)


def check_template(case: tuple[str, bool, Any]) -> None:
    """It is refused when it is made, or gives text, or an error for a person; it changes nothing that later steps see."""
    source, quote, given = case
    variables = {**VARIABLES, "input": {**VARIABLES["input"], "g": given}}
    before = repr(variables)
    try:
        text = compile_template(source, variables=TOOL_VARIABLES, quote_url=quote).render(variables)
        assert " object at 0x" not in text
    except ExpressionError as error:
        _is_for_people(error)
    assert repr(variables) == before


def _is_json(value: Any) -> None:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value[:100]:
            _is_json(item)
    else:
        assert value is None or type(value) in (bool, int, float, str)


def _is_for_people(error: Exception) -> None:
    text = str(error)
    assert text
    assert len(text) < 20_000
    assert "\n" not in text
    assert not any(inner in text for inner in ("Traceback", "object at 0x", "panicked")), text


PINNED = [
    # The library ended the process at an optional in a map.
    "{'k': input.?a}",
    "{'k': {'k': optional.of(true)}}",
    # What a few kilobytes can grow to: by replacing, by doubling, by standing in a list twice, in the syntax tree itself.
    "'x'" + ".replace('x', 'xxxxxxxxxx')" * 30,
    "['xxxxxxxxxx']" + ".map(x, x + x)" * 30,
    "[[0]]" + ".map(x, [x, x])" * 30,
    "input.l" + ".map(x, [x, x])" * 19,
    "optional.of(1)" + ".optMap(x, x)" * 31,
    "strings.quote(" * 30 + "input.s" + ")" * 30,
]
PINNED_TEMPLATES = [
    # The library ended the process at each of these.
    "{{ input|tojson(indent=input.n) }}",
    "{{ 1" + "+1" * 60_000 + " }}",
    "{{ 1" + "+1" * 60_000,
    "{{ {'a': {}}" + "+1" * 60_000 + " }}",
    "{{ '}}'" + "~1" * 60_000 + " }}",
    "{% if 1 %}" + "{% elif 1 %}" * 20_000 + "{% endif %}",
    "{{ input|tojson(1, 2) }}",
    # It had the attributes of Python's own dicts and lists.
    "{{ input.pop('a') }}",
    "{{ input.pop }}{{ input.items }}",
    "{% set f = input|attr('pop') %}{{ f('a') }}",
    "{{ input['pop']('a') }}",
    "{{ input.nothing() }}",
    "{{ input.get() }}",
    "{% for i in range(60) %}{{ input.l.extend(input.l) }}{% endfor %}",
    "{{ 'a\"'" + "|tojson" * 60 + " }}",
]

TARGETS = [
    Target(
        name="expressions",
        cases=st.tuples(SOURCES, JSON),
        opened=pure(check_expression),
        share=20_000,
        pinned=[(source, None) for source in PINNED],
    ),
    Target(
        name="templates",
        cases=st.tuples(TEMPLATES, st.booleans(), JSON),
        opened=pure(check_template),
        share=20_000,
        pinned=[(source, False, None) for source in PINNED_TEMPLATES],
    ),
]
