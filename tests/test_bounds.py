"""What is allowed beside what would grow without end (tests/fuzz/expressions.py has those): nobody who means well is refused."""

from __future__ import annotations

import pytest

from pointsman.bounds import MAX_GROWTH, MAX_TAG_BYTES, expression_problem, growth_of, template_problem
from pointsman.expressions import ExpressionError, _cel, compile_expression, compile_template
from pointsman.syntax import parse

ESCAPED = "input.text" + "".join(
    f".replace('{old}', '{new}')" for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\\\\", "&#39;"))
)


def growth(source):
    return growth_of(parse(_cel().compile(source).serialize()))


@pytest.mark.parametrize(
    ("source", "at_most"),
    [
        ("input.a", 1),
        ("input.a + input.a + 'four'", 6),
        ("'x'.replace('x', 'xxxxxxxxxx')", 10),
        ("input.a.replace('\\n', ' ').replace('\\t', ' ').replace('  ', ' ')", 1),
        ("input.a.replace('', 'xx')", 3),
        ("input.template.replace('{name}', input.name)", 1),
        (ESCAPED, 5 * 4 * 4 * 6 * 5),
        ("input.l.map(x, x.name).filter(x, x != '').map(x, '- ' + x).join('\\n')", 100),
        ("input.l.filter(a, a.n > 1).map(a, {'name': a.name, 'all': input.l.map(b, {'x': a, 'y': b})})", 1000),
        ("[1, 2, 3].map(x, [x, x])", 100),
        ("'%s and %s'.format([input.a, input.b])", 25),
        ("input.a == 'b' ? 'yes' : 'no'", 3),
        ("input.?a.orValue('none')", 10),
        ("size(input.l.map(x, [x, x]).map(x, [x, x]))", 1),
    ],
)
def test_what_is_common_grows_little(source, at_most):
    assert growth(source) <= at_most
    compile_expression(source)


@pytest.mark.parametrize(
    ("source", "at_least"),
    [
        ("'x'" + ".replace('x', 'xxxxxxxxxx')" * 7, 10**7),
        ("['x']" + ".map(x, x + x)" * 20, 2**20),
        ("[[0]]" + ".map(x, [x, x])" * 20, 2**20),
        ("['xxxxxxxxxx'].map(x, x.replace('x', x)).map(x, x.replace('x', x)).map(x, x.replace('x', x))", 10**7),
        ("optional.of('x')" + ".optMap(x, x + x + x + x + x + x + x + x + x + x)" * 3, 10**3),
    ],
)
def test_what_grows_is_seen_to(source, at_least):
    assert growth(source) >= at_least
    if at_least > MAX_GROWTH:
        with pytest.raises(ExpressionError, match="upon one another"):
            compile_expression(source)


@pytest.mark.parametrize(
    "source",
    ["{'k': input.?a}", "[[input[?'a']]]", "{'k': {'k': optional.none()}}", "{'k': input.l.first()}", "input.l.map(x, {'k': x.?a})"],
)
def test_an_optional_is_refused_wherever_it_stands(source):
    # The library's own conversion ends the process at some of these.
    with pytest.raises(ExpressionError, match="orValue"):
        compile_expression(source).evaluate({"input": {"a": 1, "l": [{}]}})


def test_what_stands_in_a_value_many_times_counts_each_time():
    source = compile_expression("input.l.map(x, input.large)")
    with pytest.raises(ExpressionError, match="too large"):
        source.evaluate({"input": {"l": list(range(9000)), "large": "x" * 4096}})
    assert len(source.evaluate({"input": {"l": list(range(9000)), "large": "x"}})) == 9000


def test_maps_of_optionals_are_counted():
    assert not expression_problem("a.optMap(x, 1)" * 6)
    assert "at most 6" in expression_problem("a.optMap(x, 1).optFlatMap(x, 1)" * 4)


LONG = "x" * MAX_TAG_BYTES


@pytest.mark.parametrize(
    "source",
    [
        LONG * 10,
        "{{ input.a }} " * 5000,
        "{{ '}}' }}" * 2000 + '{% if input.a == "%}" %}' + LONG + "{% endif %}" + LONG,
        "{# " + LONG + " {{ #}" + LONG,
        "{{ {'a': {'b': 1}} }}" + LONG,
        "{%- if 1 -%}" + LONG + "{%- elif 2 -%}" + LONG + "{%- endif -%}",
        "{{ '" + "x" * (MAX_TAG_BYTES - 50) + "' }}" + LONG,
    ],
)
def test_long_templates_with_short_tags_are_taken(source):
    assert not template_problem(source)
    compile_template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1" + "+1" * MAX_TAG_BYTES + " }}",
        "{{ '}}' ~ '" + LONG + "' }}",
        '{{ "a\\"}}" ~ "' + LONG + '" }}',
        "{{ {'a': {'b': [{}]}}" + "+1" * MAX_TAG_BYTES + " }}",
        "{% set a = 1" + "+1" * MAX_TAG_BYTES,
        "{{ ( }}" + LONG,
    ],
)
def test_long_tags_are_refused(source):
    assert "between the brackets of one tag" in template_problem(source)
    with pytest.raises(ExpressionError, match="tag"):
        compile_template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ input.pop('a') }}",
        "{{ input.l.append(1) }}",
        "{{ input\n.l . extend ( input.l ) }}",
        "{{ input.l[0].clear() }}",
        "{{ input.copy().update(a=1) }}",
        "{% set f = input.pop %}{{ f('a') }}",
        "{{ input['pop']('a') }}",
        "{{ (input|attr('pop'))('a') }}",
        "{{ input.pop }}",
        "{{ input[input.a] }}",
    ],
)
def test_a_template_changes_nothing_and_sees_nothing_of_python(source):
    value = {"a": "pop", "l": [{"b": 2}]}
    with pytest.raises(ExpressionError, match=r"there is no method|undefined"):
        compile_template(source).render({"input": value})
    assert value == {"a": "pop", "l": [{"b": 2}]}


def test_a_template_may_look_by_methods():
    source = "{% for k, v in input.items() %}{{ k }}={{ v }};{% endfor %}{{ input.get('b', 0) }} {{ input.l.count(1) }} {{ input|tojson }} {{ input.items }}"
    assert compile_template(source).render({"input": {"a": "x", "l": [1, 1]}}) == 'a=x;l=[1, 1];0 2 {"a": "x", "l": [1, 1]} items()'
    with pytest.raises(ExpressionError, match="called a method: get expected"):
        compile_template("{{ input.get() }}").render({"input": {}})


def test_many_branches_are_refused():
    with pytest.raises(ExpressionError, match="has 501 branches; at most 500"):
        compile_template("{% if 1 %}" + "{% elif 1 %}" * 501 + "{% endif %}")


def test_json_in_templates_is_that_of_the_library():
    value = {"a": [1, 1.5, None, True, "<>&'\"\u00e9\n"], "b": {}, "c": []}
    rendered = compile_template("{{ input|tojson }} {{ input|tojson(indent=true) }} {{ input.b|tojson(2) }}").render({"input": value})
    assert rendered == (
        r'{"a": [1, 1.5, null, true, "\u003c\u003e\u0026\u0027\"é\n"], "b": {}, "c": []} '
        '{\n  "a": [\n    1,\n    1.5,\n    null,\n    true,\n    "\\u003c\\u003e\\u0026\\u0027\\"é\\n"\n  ],\n  "b": {},\n  "c": []\n} {}'
    )
    assert compile_template("{{ input.nothing|tojson }}").render({"input": {}}) == "null"
    with pytest.raises(ExpressionError, match="more than a value and an indent"):
        compile_template("{{ input|tojson(1, 2) }}").render({"input": {}})
