"""Durations on the command line."""

from __future__ import annotations

import re

import click
from google.protobuf.duration_pb2 import Duration

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")

DURATION_TEXT = re.compile(f"({_PART.pattern})+")


class DurationType(click.ParamType[float]):
    """`500ms`, `10s`, `1m30s`, or a number of seconds; the value is in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Takes text, or seconds."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            return float(text)
        if not text or _PART.sub("", text):
            self.fail(f"{text!r} is not a duration such as 10s, 500ms or 1m30s", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


DURATION = DurationType()


def briefly(duration: Duration) -> str:
    """In a unit that fits: `850 us`, `12.3 ms`, `1.25 s`, `3.1 min`."""
    micros = duration.ToMicroseconds()
    for size, unit, digits in ((60_000_000, "min", 1), (1_000_000, "s", 2), (1_000, "ms", 1)):
        if micros >= size:
            return f"{micros / size:.{digits}f} {unit}"
    return f"{micros} us"
