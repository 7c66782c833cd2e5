"""Executions that are written straight onto the wire are those that messages would be."""

from __future__ import annotations

import random
from types import SimpleNamespace

from data_plane.executions import Capture, Sealer
from data_plane.lookup import Asked
from data_plane.pipeline import SKIPPED, SUCCEEDED, StepRecord
from data_plane.record import SUCCEEDED as WELL
from data_plane.record import Record
from data_plane.steps.base import Usage
from data_plane.tracing import trace_of
from data_plane.wire import entry, varint
from pointsman.ids import new_id
from pointsman.v1.executions_pb2 import Execution, ReportExecutionsRequest

SECONDS = (0.0, 1e-10, 1e-9, 0.000123456, 0.999999999, 1.0, 59.5, 4_000.25, 3e8)
MOMENTS = (0.0, 1.5, 1_767_225_600.0, 1_767_225_600.999999, 2**31 + 0.25, 2**33 + 0.125)


def one(chance):
    """A record of any names and times, well-ended, of a trigger that may be part of a trace."""
    traced = trace_of(f"00-{chance.getrandbits(128) | 1:032x}-00f067aa0ba902b7-01") if chance.random() < 0.5 else None
    place = {name: "x" * chance.choice((1, 20, 63)) + "é" * chance.randrange(2) for name in ("app", "environment", "release")}
    bound = SimpleNamespace(**place, digest="sha256:" + "0" * 64, revision=chance.choice((0, 1, 2**40)))
    steps = []
    for number in range(chance.randrange(6)):
        ran = chance.random() < 0.8
        name = "s" * chance.choice((1, 50, 200)) + str(number)
        record = StepRecord(
            "stage", name, "transform", chance.choice(MOMENTS), SUCCEEDED if ran else SKIPPED, chance.choice((1, 300)) if ran else 0
        )
        record.seconds = chance.choice(SECONDS)
        steps.append(record)
    asked = Asked(endpoint="/" * chance.randrange(2) + "where", input={}, token_id=chance.choice(("", "t1")), trace=traced)
    found = Record(new_id(), asked, chance.choice(MOMENTS), chance.choice(SECONDS), WELL, trace=traced)
    found.active, found.running = SimpleNamespace(bound=bound), SimpleNamespace(steps=steps)
    return found


def test_the_quick_way_and_the_whole_way_say_the_same():
    chance, sealer = random.Random(6), Sealer("gateway-1", Capture.ERRORS, str)
    records = [one(chance) for _ in range(2_000)]
    report = ReportExecutionsRequest.FromString(b"".join(entry(sealer.seal(record)) for record in records))
    assert len(report.executions) == len(records)
    for record, found in zip(records, report.executions, strict=True):
        assert sealer._plain(record) is not None
        assert found == sealer.whole(record)
        # Nothing was written that the contract does not know.
        assert len(Execution.FromString(found.SerializeToString()).SerializeToString()) == len(sealer.whole(record).SerializeToString())


def test_what_has_more_to_it_goes_the_whole_way():
    chance, sealer = random.Random(7), Sealer("gateway-1", Capture.ERRORS, str)
    record = one(chance)
    record.running.steps = [StepRecord("stage", "asks", "inference", 1.0, SUCCEEDED, 1, usage=Usage("small", 3, 5))]
    assert sealer._plain(record) is None
    found = Execution.FromString(sealer.seal(record))
    assert (found.input_tokens, found.output_tokens, found.steps[0].model) == (3, 5, "small")


def test_numbers_of_any_size():
    for number in (0, 1, 127, 128, 300, 2**21 - 1, 2**63 - 1):
        found = Execution.FromString(b"\x38" + varint(number))
        assert (found.revision, Execution.DESCRIPTOR.fields_by_name["revision"].number) == (number, 7)
