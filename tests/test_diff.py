"""DiffReleases: what changed, and what of it breaks callers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.service.diff import Kind, diff, narrowed

CHAT = {"name": "chat", "path": "chat", "pipeline": "p", "input_schema": {"type": "object", "required": ["message"]}}
STAGE = {"name": "answer", "steps": [{"name": "reply", "transform": {"expression": "1"}}, {"name": "log", "timeout": "5s"}]}
CONFIG = {"endpoints": [CHAT], "pipelines": [{"name": "p", "stages": [STAGE]}], "models": [{"name": "m"}]}


def changed(old, new):
    return [(change.kind.value, change.path, change.old, change.new) for change in diff(old, new)]


def test_the_same_config_has_no_changes():
    assert diff(CONFIG, CONFIG) == []


def test_a_changed_field_is_told_with_its_path_and_both_values():
    stage = {**STAGE, "steps": [STAGE["steps"][0], {"name": "log", "timeout": "9s"}]}
    new = {**CONFIG, "pipelines": [{"name": "p", "stages": [stage]}]}
    assert changed(CONFIG, new) == [("CHANGED", "pipelines[p].stages[answer].steps[log].timeout", "5s", "9s")]


def test_items_are_matched_by_name_and_a_new_order_of_steps_is_a_change_of_its_own():
    extra = {"name": "extra", "transform": {"expression": "2"}}
    stage = {**STAGE, "steps": [STAGE["steps"][1], extra, STAGE["steps"][0]]}
    new = {**CONFIG, "pipelines": [{"name": "p", "stages": [stage]}]}
    steps = "pipelines[p].stages[answer].steps"
    assert changed(CONFIG, new) == [
        ("ADDED", f"{steps}[extra]", None, extra),
        ("CHANGED", steps, ["reply", "log"], ["log", "reply"]),
    ]


def test_another_kind_of_step_is_one_part_gone_and_one_added():
    stage = {**STAGE, "steps": [{"name": "reply", "tool_call": {"tool": "t"}}, STAGE["steps"][1]]}
    new = {**CONFIG, "pipelines": [{"name": "p", "stages": [stage]}]}
    kinds = {(change.kind, change.path.rpartition(".")[2]) for change in diff(CONFIG, new)}
    assert kinds == {(Kind.REMOVED, "transform"), (Kind.ADDED, "tool_call")}


def test_an_endpoint_that_is_gone_or_moved_breaks_its_callers():
    (gone,) = diff(CONFIG, {**CONFIG, "endpoints": []})
    assert gone.breaking == "endpoint 'chat' is gone"
    (moved,) = diff(CONFIG, {**CONFIG, "endpoints": [{**CHAT, "path": "talk"}]})
    assert moved.breaking == "path was chat, is talk"
    without_path = {key: value for key, value in CHAT.items() if key != "path"}
    (same,) = diff(CONFIG, {**CONFIG, "endpoints": [without_path]})
    assert same.breaking == ""
    (get,) = diff(CONFIG, {**CONFIG, "endpoints": [{**CHAT, "method": "GET"}]})
    assert get.breaking == "method was POST, is GET"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({}, {"required": ["a"]}, "input.a is required now"),
        ({"type": ["string", "null"]}, {"type": "string"}, "input may not be null any more"),
        ({"properties": {"a": {}}}, {"properties": {"a": {"type": "string"}}}, "input.a must be string now"),
        ({}, {"properties": {"a": {"type": "string"}}}, "input.a must be string now"),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "input takes fewer values: a"),
        ({"maxLength": 9}, {"maxLength": 5}, "input: maxLength is 5 now"),
        ({"minimum": 1}, {"minimum": 2}, "input: minimum is 2 now"),
        ({}, {"additionalProperties": False}, "input takes no other properties now"),
        (
            {"properties": {"a": {}}, "additionalProperties": False},
            {"properties": {}, "additionalProperties": False},
            "input.a is not taken any more",
        ),
        ({"items": {"type": "number"}}, {"items": {"type": "integer"}}, "input[] may not be number any more"),
        ({"anyOf": [{}]}, {"anyOf": [{"type": "string"}]}, "input: anyOf changed"),
    ],
)
def test_a_narrower_schema_is_breaking_and_says_why(old, new, reason):
    assert narrowed(old, new) == [reason]
    assert narrowed(new, new) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"required": ["a"]}, {}),
        ({"type": "integer"}, {"type": "number"}),
        ({"maxLength": 5}, {"maxLength": 9}),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}),
        ({"properties": {"a": {"type": "string"}}}, {}),
    ],
)
def test_a_wider_schema_is_not_breaking(old, new):
    assert narrowed(old, new) == []


VALUES = st.recursive(st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2), lambda inner: st.lists(inner, max_size=2))
OBJECTS = st.dictionaries(st.sampled_from(["description", "timeout", "method"]), VALUES, max_size=3)
NAMED = st.lists(st.tuples(st.sampled_from("abc"), OBJECTS), max_size=3, unique_by=lambda item: item[0]).map(
    lambda items: [{**fields, "name": name} for name, fields in items]
)


@given(NAMED, NAMED)
def test_every_difference_is_found_both_ways(old, new):
    forward, back = diff({"tools": old}, {"tools": new}), diff({"tools": new}, {"tools": old})
    assert sorted((change.path, repr(change.old), repr(change.new)) for change in forward) == sorted(
        (change.path, repr(change.new), repr(change.old)) for change in back
    )
    by_name = [{item["name"]: {k: v for k, v in item.items() if v is not None} for item in side} for side in (old, new)]
    assert bool(forward) == (by_name[0] != by_name[1])
