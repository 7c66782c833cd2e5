"""Executions written straight onto the wire, which is most of what a record costs: a message object for each, for each of its steps and
for each time takes twice as long. For those that have no more to them than names and times, as most do.

Numbers of fields are read from the descriptor. Times take the same room whatever they are, so that lengths are known before.
"""

from __future__ import annotations

import functools
from typing import Any

from pointsman.v1.executions_pb2 import Execution, ReportExecutionsRequest

NANOS = 1_000_000_000
MICROS = 1_000_000
# Two groups of seven bits, with the sign that more follow.
_PAIRS = [bytes((number & 127 | 128, number >> 7 | 128)) for number in range(1 << 14)]
_LAST = [bytes((number,)) for number in range(4)]
TIMES_BYTES = 28


def varint(number: int) -> bytes:
    """Not negative."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _tag(message: Any, field: str) -> bytes:
    """Of a field that has a length."""
    return varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_EXECUTION = _tag(ReportExecutionsRequest, "executions")
# A UUID has 36 characters.
_ID, _STEP = _tag(Execution, "execution_id") + varint(36), _tag(Execution, "steps")
_OF_EXECUTION = _tag(Execution, "start_time"), _tag(Execution, "duration")
_OF_STEP = _tag(Execution.StepExecution, "start_time"), _tag(Execution.StepExecution, "duration")
_length = functools.lru_cache(maxsize=4096)(varint)


def entry(execution: bytes) -> bytes:
    """An execution as one of a report's."""
    return b"".join((_EXECUTION, _length(len(execution)), execution))


def execution(execution_id: str, head: bytes, start_time: float, seconds: float, steps: list[bytes]) -> bytes:
    """`head`: its other fields, serialised; `steps` are made by step()."""
    return b"".join((_ID, execution_id.encode(), head, _times(_OF_EXECUTION, start_time, seconds), *steps))


def step(head: bytes, start_time: float, seconds: float) -> bytes:
    """As execution(); `head` is made by step_head()."""
    return head + _times(_OF_STEP, start_time, seconds)


def step_head(fields: bytes, *, times: bool = True) -> bytes:
    """One of an execution's steps, up to its times, if it has any."""
    return _STEP + varint(len(fields) + (TIMES_BYTES if times else 0)) + fields


def microseconds(seconds: float) -> int:
    """A duration as it is put on record: at least one, so that even the quickest has some."""
    return int(seconds * MICROS) or 1


def _times(tags: tuple[bytes, bytes], start_time: float, seconds: float) -> bytes:
    whole = int(start_time)
    begun = int((start_time - whole) * NANOS)
    return b"".join(
        (
            _second(tags[0], whole),
            _PAIRS[begun & 16383],
            _PAIRS[begun >> 14 & 16383],
            _LAST[begun >> 28],
            _duration(tags[1], microseconds(seconds)),
        )
    )


@functools.lru_cache(maxsize=16384)
def _duration(tag: bytes, micros: int) -> bytes:
    """A Duration; most of them are one of a few thousand."""
    full, rest = divmod(micros, MICROS)
    took = rest * (NANOS // MICROS)
    return b"".join((_second(tag, full), _PAIRS[took & 16383], _PAIRS[took >> 14 & 16383], _LAST[took >> 28]))


@functools.lru_cache(maxsize=256)
def _second(tag: bytes, seconds: int) -> bytes:
    """A Timestamp or Duration up to its nanoseconds. Five bytes a number: leading zeros change nothing."""
    padded = _PAIRS[seconds & 16383] + _PAIRS[seconds >> 14 & 16383] + bytes((seconds >> 28,))
    return tag + b"\x0c\x08" + padded + b"\x10"
