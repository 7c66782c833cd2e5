"""Requests that are known to be sound are no others than those that the rules let through."""

import importlib
from pathlib import Path

import pytest
from google.protobuf.message import Message

from pointsman import sound_requests
from pointsman.rules import check_request
from pointsman.sound_requests import SoundRequests
from pointsman.v1.deployments_pb2 import DeployRequest
from pointsman.v1.releases_pb2 import ListReleasesRequest
from pointsman.v1.trigger_pb2 import TriggerRequest

PROTOS = Path(__file__).parent.parent / "proto" / "pointsman"


def requests():
    """Every request of the contract."""
    for path in sorted(PROTOS.glob("v1/*.proto")):
        module = importlib.import_module(f"pointsman.v1.{path.stem}_pb2")
        for name in module.DESCRIPTOR.message_types_by_name:
            if name.endswith("Request"):
                yield getattr(module, name)


def trigger(**changed):
    return TriggerRequest(**{"app": "shop", "endpoint": "chat", **changed})


def test_a_request_is_no_other_because_of_what_it_brings_along():
    known = SoundRequests()
    one, other = trigger(), trigger()
    other.input["text"] = "another"
    assert known.key_of(one) == known.key_of(other)


@pytest.mark.parametrize(
    "changed", [{"app": "Shop"}, {"endpoint": ""}, {"min_revision": -1}, {"release": "no tag"}, {"environment": "a\0"}]
)
def test_what_is_wrong_is_told_every_time_also_beside_what_is_right(changed):
    for _ in range(3):
        assert check_request(trigger()) == []
        assert len(check_request(trigger(**changed))) >= 1


def test_absent_is_not_the_same_as_nothing():
    known = SoundRequests()
    assert known.key_of(trigger()) != known.key_of(trigger(min_revision=0))


def test_kinds_are_told_apart():
    known, one, other = SoundRequests(), ListReleasesRequest(app="shop"), trigger()
    key = known.key_of(one)
    known.add(one, key)
    assert known.has(one, key)
    assert not known.has(other, key)


def test_what_has_more_than_plain_fields_is_always_looked_at():
    assert SoundRequests().key_of(DeployRequest()) is None


@pytest.mark.parametrize("kind", list(requests()), ids=lambda kind: kind.__name__)
def test_every_field_that_a_rule_sees_is_in_the_key(kind):
    known = SoundRequests()
    empty = kind()
    if known.key_of(empty) is None:
        return
    for field in kind.DESCRIPTOR.fields:
        changed = kind()
        if isinstance(getattr(changed, field.name), Message):
            # A Struct: neither a rule nor the look for NUL goes into it.
            getattr(changed, field.name)["a"] = "\0"
            assert check_request(changed) == check_request(empty)
            continue
        default = getattr(changed, field.name)
        setattr(changed, field.name, "x" if isinstance(default, str) else True if isinstance(default, bool) else 7)
        assert known.key_of(changed) != known.key_of(empty), field.name


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(sound_requests, "MAX_KNOWN_OF_A_KIND", 3)
    known = SoundRequests()
    for number in range(10):
        one = trigger(min_revision=number)
        known.add(one, known.key_of(one))
        assert known.has(one, known.key_of(one))
        assert len(known._known[TriggerRequest.DESCRIPTOR]) <= 3
