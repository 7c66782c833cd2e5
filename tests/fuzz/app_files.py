"""App files as people and machines write them: YAML and JSON, from the command line, and from the text of a draft."""

from __future__ import annotations

import json

import yaml
from hypothesis import strategies as st

from pointsman.appfile import parse
from pointsman.nodes import NotReadableError
from tests.fuzz.engine import Target, pure
from tests.fuzz.strategies import JSON, ODD_TEXTS, SEEDS, TEXT, mutated, texts
from tests.sample_apps import as_yaml, marked

GOOD = as_yaml(marked("v1", "http://127.0.0.1:1/"))
AS_JSON = json.dumps(marked("v1"))
FIELDS = ["endpoints", "pipelines", "stages", "steps", "tools", "models", "name", "path", "timeout", "input_schema", "inputSchema", "transform", "expression", "http", "headers", "mode", "temperature", "max_retries"]  # fmt: skip
BOMBS = [
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "&a [*a]", "a: &a\n  <<: *a\n", "!!python/object/apply:os.system ['id']", "!!python/name:os.system",
    "!!binary aGk=", "!!timestamp 2024-01-01", "? [a]\n: b", "? {a: b}\n: c", "- !<tag:yaml.org,2002:str> x", "%YAML 9.9\n---\na: 1", "---\na: 1\n---\nb: 2", "\t- a",
    "endpoints: " + "9" * 5000, "endpoints: 1e99999", "endpoints: 0x" + "f" * 5000, "endpoints: -.inf", "endpoints: .nan", "timeout: 10:30:00", "pipelines: {a: 1, a: 2}",
    '{"endpoints": NaN}', '{"a": 1, "a": 2}', '{"endpoints": "\\ud800"}', "endpoints: [{timeout: 1e400s}]", "endpoints: [{timeout: 315576000001s}]",
    "endpoints: [{input_schema: {a: 1" + "0" * 400 + "}}]", "endpoints: [{timeout: 99999999999999999999s}]", "pipelines: [{stages: [{mode: 99999999999}]}]",
    "models: [{targets: [{headers: {a: 1, b: null, c: [x]}}]}]", "pipelines: [{stages: [{steps: [{max_retries: 1.5}]}]}]", "a: |\n" + " x\n" * 5000, "a: >+\n\n\n",
]  # fmt: skip
NESTS = st.builds(
    lambda opening, times, closing: opening * times + closing * times,
    st.sampled_from(["[", "{", '{"a":', "[{", "- ", "a:\n ", "? ", "- - ", "&a ", "! ", '"', "'", "\\", "a: {"]),
    st.sampled_from([5, 29, 31, 100, 1000, 20_000]),
    st.sampled_from(["", "]", "}", "]}"]),
)
SHAPES = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(FIELDS) | texts(), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)
FILES = st.one_of(
    st.sampled_from(BOMBS),
    st.builds(lambda good, seed, bombs: mutated(good.encode(), seed, [bomb.encode() for bomb in bombs]).decode(errors="replace"), st.sampled_from([GOOD, AS_JSON]), SEEDS, st.lists(st.sampled_from(BOMBS), max_size=2)),
    st.builds(lambda prefix, nest: prefix + nest, st.sampled_from(["", "endpoints: ", "endpoints: [{input_schema: ", '{"endpoints": [{"input_schema": ']), NESTS),
    SHAPES.map(json.dumps),
    SHAPES.map(lambda shape: yaml.safe_dump(shape, allow_unicode=True)),
    st.lists(st.sampled_from(["a", ":", " ", "\n", "-", "[", "]", "{", "}", "&a", "*a", "!!", "|", ">", "#", "?", ",", "%", "@", "'", '"', "\t", "---", "...", "<<", "~", "1", "endpoints"]), max_size=30).map("".join),
    st.sampled_from(ODD_TEXTS) | TEXT,
)  # fmt: skip


def check_file(text: str) -> None:
    """It is read, with every mistake at a place in it, or refused in a line."""
    try:
        found = parse(text)
    except NotReadableError as error:
        assert str(error)
        assert "\n" not in str(error)
        assert "Traceback" not in str(error)
        return
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 1
    for mistake in found.violations:
        assert mistake.violation.description
        assert 1 <= mistake.line <= lines


TARGETS = [Target(name="app_files", cases=FILES, opened=pure(check_file), share=20_000)]
