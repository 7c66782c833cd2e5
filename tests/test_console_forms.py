"""Forms of a config's messages: what they say is what the message says, both ways, and mistakes stand at their fields."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from control_plane.console.comments import comment_of
from control_plane.console.forms import by_field, layout_of, read_into, texts_of
from pointsman.errors import Violation
from pointsman.v1 import config_pb2 as pb

MESSAGES = (pb.Endpoint, pb.Pipeline, pb.Stage, pb.Step, pb.Tool, pb.Model, pb.ModelTarget)
# Browsers send line feeds as they like, and nobody types a zero.
TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=30)
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True)
LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20).filter(lambda text: "\n" not in text)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False, width=32) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def messages(draw, descriptor: Descriptor):
    """Any message of a config, whether its rules allow it or not, without lists of messages."""
    message = getattr(pb, descriptor.name)()
    for field in descriptor.fields:
        in_oneof = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        if not in_oneof and draw(st.booleans()):
            fill(draw, field, message)
    for oneof in descriptor.oneofs:
        chosen = draw(st.sampled_from([field for field in oneof.fields if field.message_type] or [None]))
        if chosen is not None:
            getattr(message, chosen.name).CopyFrom(draw(messages(chosen.message_type)))
            getattr(message, chosen.name).SetInParent()
    return message


def fill(draw, field: FieldDescriptor, message: Message) -> None:
    """Gives one field a value; lists of messages stay empty."""
    kind = field.message_type
    if kind is None:
        fill_plain(draw, field, message)
    elif kind.GetOptions().map_entry:
        getattr(message, field.name).update(draw(st.dictionaries(NAME, LINE, max_size=3)))
    elif kind.name == "Duration":
        getattr(message, field.name).FromNanoseconds(draw(st.integers(0, 3600 * 10**9)))
    elif kind.name == "Struct":
        getattr(message, field.name).update(draw(st.dictionaries(TEXT, JSON, max_size=3)))
        getattr(message, field.name).SetInParent()


def fill_plain(draw, field: FieldDescriptor, message: Message) -> None:
    """Of a field that is no message."""
    if field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(NAME, max_size=3)))
        return
    values = {
        field.TYPE_STRING: TEXT,
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
        field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    }
    if field.enum_type is not None:
        values[field.TYPE_ENUM] = st.sampled_from([value.number for value in field.enum_type.values])
    setattr(message, field.name, draw(values[field.type]))


@pytest.mark.parametrize("kind", MESSAGES)
@given(st.data())
def test_a_form_says_what_its_message_says(kind, data):
    message = data.draw(messages(kind.DESCRIPTOR))
    layout = layout_of(kind.DESCRIPTOR, with_children=False)
    texts = texts_of(layout, message)
    again = kind()
    assert read_into(layout, texts, again) == []
    assert again == message
    # What is there before is replaced, and a form of it is the same form.
    other = data.draw(messages(kind.DESCRIPTOR))
    assert read_into(layout, texts, other) == []
    assert other == message
    assert texts_of(layout, other) == texts


def test_lists_that_the_form_does_not_show_stay():
    stage = pb.Stage(name="one", steps=[pb.Step(name="kept")])
    assert read_into(layout_of(pb.Stage.DESCRIPTOR, with_children=False), {"name": "two"}, stage) == []
    assert (stage.name, stage.steps[0].name) == ("two", "kept")


def test_a_new_pipeline_comes_with_its_first_stage_and_step():
    layout = layout_of(pb.Pipeline.DESCRIPTOR, with_children=True)
    at = "stages[0].steps[0]."
    texts = {"name": "p", "stages[0].name": "s", f"{at}name": "t", f"{at}kind": "tool_call", f"{at}tool_call.tool": "find"}
    pipeline = pb.Pipeline()
    assert read_into(layout, texts, pipeline) == []
    assert pipeline.stages[0].steps[0].tool_call.tool == "find"
    assert texts_of(layout, pipeline).items() >= texts.items()


def test_every_field_has_the_comment_of_the_contract_and_every_kind_is_known():
    for kind in MESSAGES:
        layout = layout_of(kind.DESCRIPTOR, with_children=True)
        assert layout.hint == comment_of(kind.DESCRIPTOR.name) != ""
        for field in layout.every():
            assert field.hint, field.name
            assert field.label
    needed = {field.name for field in layout_of(pb.Step.DESCRIPTOR, with_children=False).every() if field.needed}
    assert needed == {"name", "inference.model", "tool_call.tool", "transform.expression"}
    found = {field.name: (field.kind, field.refers_to) for field in layout_of(pb.Step.DESCRIPTOR, with_children=False).every()}
    assert found["inference.tools"] == ("lines", "tools")
    assert found["inference.model"] == ("choice", "models")
    assert found["inference.prompt"][0] == found["transform.expression"][0] == "code"


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("timeout", "10", 'such as "10s"'),
        ("max_retries", "few", "must be a whole number"),
        ("max_retries", "null", "must be a whole number"),
        ("inference.temperature", "hot", "must be a number"),
        ("inference.response_schema", "a: [", "line"),
        ("inference.response_schema", "just text", "must be a mapping"),
        ("inference.response_schema", "a: 1\na: 2", "is there twice"),
    ],
)
def test_what_cannot_be_read_is_told_at_its_field(field, text, said):
    layout = layout_of(pb.Step.DESCRIPTOR, with_children=False)
    wrong = read_into(layout, {"kind": "inference", field: text}, pb.Step())
    beside, others = by_field(layout, wrong)
    assert said in beside[field]
    assert others == []


@pytest.mark.parametrize(("text", "said"), [("no colon here", "has no colon"), ("A: 1\nA: 2", "A is there twice")])
def test_headers_are_read_line_by_line(text, said):
    layout = layout_of(pb.ModelTarget.DESCRIPTOR, with_children=False)
    assert said in by_field(layout, read_into(layout, {"headers": text}, pb.ModelTarget()))[0]["headers"]


def test_violations_of_parts_stand_at_the_field_and_of_a_missing_kind_at_the_kind():
    layout = layout_of(pb.Step.DESCRIPTOR, with_children=False)
    violations = [Violation("inference.tools[1]", "no such tool"), Violation("", "absent; one of its kinds must be given")]
    beside, others = by_field(layout, [*violations, Violation("elsewhere", "x")])
    assert beside == {"inference.tools": "[1]: no such tool", "kind": "absent; one of its kinds must be given"}
    assert [one.field for one in others] == ["elsewhere"]
