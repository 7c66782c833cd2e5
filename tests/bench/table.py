"""Rows of the benchmark tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One figure. `bound` is what was asked for, as text; the verdict is for the reader."""

    what: str
    ours: str
    peer: str = ""
    ratio: str = ""
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.what:<62} {self.ours:>14} {self.peer:>32} {self.ratio:>8}  {self.bound}"


def milliseconds(seconds: float) -> str:
    """E.g. `12.3 ms`."""
    return f"{seconds * 1000:.2f} ms"


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Of the figures; the maximum when there are few."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def spread(seconds: Sequence[float]) -> str:
    """Median, p99 and maximum."""
    return f"p50 {milliseconds(percentile(seconds, 50))}, p99 {milliseconds(percentile(seconds, 99))}, max {milliseconds(max(seconds))}"
