"""Small charts as SVG: where lines, dots and bars are. Colours and strokes are classes of the stylesheet; nothing is drawn by a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

WIDTH, HEIGHT = 300.0, 84.0
PAD = 5.0
BAR_HEIGHT = 11.0

Shown = Callable[[float], str]


class Line(msgspec.Struct, frozen=True):
    """The course of one release: pieces of a polyline, and dots where it has a value and neither neighbour has."""

    label: str
    kind: str
    values: Sequence[float | None]
    segments: list[str]
    dots: list[tuple[float, float]]


class Course(msgspec.Struct, frozen=True):
    """Values over time; `highest` is that of the upper edge, as text."""

    title: str
    lines: list[Line]
    highest: str
    shown: Shown


class Bar(msgspec.Struct, frozen=True):
    """One of the bars of a comparison."""

    label: str
    kind: str
    y: float
    width: float
    text: str


class Bars(msgspec.Struct, frozen=True):
    """The same quantities of two releases, beneath each other."""

    title: str
    height: float
    groups: list[tuple[str, float, list[Bar]]]


def course(title: str, series: Sequence[tuple[str, str, Sequence[float | None]]], shown: Shown) -> Course:
    """From (label, kind, values); each series has a value, or None, for each piece of the time."""
    highest = max((value for _, _, values in series for value in values if value is not None), default=0.0)
    lines = [_line(label, kind, values, highest) for label, kind, values in series]
    return Course(title, lines, shown(highest), shown)


def _line(label: str, kind: str, values: Sequence[float | None], highest: float) -> Line:
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            runs.append([])
            continue
        x = PAD + (WIDTH - 2 * PAD) * (at + 0.5) / len(values)
        y = HEIGHT - PAD - (HEIGHT - 2 * PAD) * (value / highest if highest else 0.0)
        runs[-1].append((round(x, 1), round(y, 1)))
    segments = [" ".join(f"{x:g},{y:g}" for x, y in run) for run in runs if len(run) > 1]
    return Line(label, kind, values, segments, [run[0] for run in runs if len(run) == 1])


def bars(title: str, names: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], shown: Shown) -> Bars:
    """From (label, kind, values), with a value for each name."""
    highest = max((value for _, _, values in series for value in values), default=0.0) or 1.0
    groups = []
    y = 0.0
    for at, name in enumerate(names):
        first = y
        group = []
        for label, kind, values in series:
            # A bar that is there is seen; the text of the longest one still fits beside it.
            group.append(Bar(label, kind, y, round(max(values[at] / highest * 55, 0.5), 2), shown(values[at])))
            y += BAR_HEIGHT + 2
        groups.append((name, (first + y) / 2, group))
        y += 6
    return Bars(title, y, groups)
