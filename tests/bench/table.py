"""Rows of the benchmark tables."""

from __future__ import annotations

import statistics
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


def spread(seconds: Sequence[float]) -> str:
    """Median, p99 and maximum."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"p50 {milliseconds(statistics.median(ordered))}, p99 {milliseconds(p99)}, max {milliseconds(ordered[-1])}"
