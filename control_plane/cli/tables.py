"""Tables: whole on a terminal of any width, where no name is ever cut off; plain aligned columns where there is no terminal."""

from __future__ import annotations

import math
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TextIO

import click

from control_plane.cli.output import harmless

GAP, NARROW_GAP, INDENT = 2, 1, 2
# A last column that has so much room, and is a text, is folded there; with less it gets lines of its own.
MIN_FOLDED_CHARS = 20
Columns = list[int]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """The rows under headings, which are bold on a terminal; the sentence `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    told = fitted([headings, *rows], terminal_width())
    for line in next(told):
        click.echo(click.style(line, bold=True) if is_terminal(sys.stdout) else line)
    for row in told:
        click.echo("\n".join(row))


def fitted(rows: Sequence[Sequence[str]], room: float) -> Iterator[list[str]]:
    """The lines of each row, in columns, none of them longer than `room` characters.

    What is too wide gets closer columns, then a last column in several lines, then rows of several lines, each with some columns.
    """
    cells = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    gap, lines = _layout(widths, room)
    for row in cells:
        yield list(_drawn(row, widths, lines, gap, room))


def room_beside(rows: Sequence[Sequence[str]]) -> float:
    """How wide one more column may be that stands in the same line; without end where there is no terminal."""
    return terminal_width() - sum(max(map(_width, column)) + GAP for column in zip(*rows, strict=True))


def is_terminal(stream: TextIO | None) -> bool:
    """A stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def terminal_width() -> float:
    """In characters; without end where there is no terminal."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else math.inf


def _layout(widths: list[int], room: float) -> tuple[int, list[Columns]]:
    """How far columns are apart, and which of them stand in each line of a row."""
    every = list(range(len(widths)))
    for gap in (GAP, NARROW_GAP):
        if sum(widths) + gap * (len(widths) - 1) <= room:
            return gap, [every]
    if len(widths) > 1 and room - sum(widths[:-1]) - NARROW_GAP * (len(widths) - 1) >= MIN_FOLDED_CHARS:
        return NARROW_GAP, [every]
    lines: list[Columns] = [[]]
    used = 0
    for column, width in enumerate(widths):
        if lines[-1] and used + GAP + width > room:
            lines.append([])
            used = INDENT - GAP
        used += width + (GAP if lines[-1] or len(lines) > 1 else 0)
        lines[-1].append(column)
    return GAP, lines


def _drawn(row: list[str], widths: list[int], lines: list[Columns], gap: int, room: float) -> Iterator[str]:
    """The lines of one row, those left out that say nothing."""
    for number, columns in enumerate(lines):
        start = INDENT if number else 0
        before = (" " * gap).join([_padded(row[column], widths[column]) for column in columns[:-1]] + [""])
        before = " " * start + before
        first, *rest = _folded(row[columns[-1]], room - len(before)) if _width(before) < room else [row[columns[-1]]]
        if number == 0 or any(row[column] for column in columns):
            yield (before + first).rstrip()
        yield from (" " * _width(before) + text for text in rest)


def _folded(text: str, room: float) -> list[str]:
    """In lines that fit, broken between words, or within one that is too long."""
    if _width(text) <= room:
        return [text]
    found, line = [], ""
    for word in text.split():
        if line and _width(line) + 1 + _width(word) > room:
            found.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
        while _width(line) > room:
            fits = max(count for count in range(1, len(line) + 1) if count == 1 or _width(line[:count]) <= room)
            found.append(line[:fits])
            line = line[fits:]
    return [*found, line]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """In columns of a terminal: letters of East Asia take two, marks that stand on others none (Unicode, UAX 11)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
