"""What keeps a short expression or template from growing without end: estimates made once, when it is compiled.

The libraries bound how long they work, and not how large a text becomes that is doubled again and again, or how deep they recurse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pointsman import syntax

# Five replacements upon one another that escape HTML are 2,880.
MAX_GROWTH = 200_000
# minijinja 3 follows a chain of operators by recursion, and overruns a stack of 8 MiB at some 16,000 of one or two bytes each.
MAX_TAG_BYTES = 8 * 1024
MAX_ELIFS = 500

# Each writes what it is called on twice into the syntax tree, so 31 upon one another take hours to compile.
MAX_OPTIONAL_MAPS = 6

_OPTIONAL_MAP = re.compile(r"\bopt(?:Flat)?Map\b")
_OPENING = re.compile(r"\{[{%#]")
_IN_TAG = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[}%]\}|[][(){}]""", re.DOTALL)
_CLOSING = {"{{": "}}", "{%": "%}"}
# Whatever they are given, the answer is as short as a number.
_SHORT = frozenset(
    [
        "_==_",
        "_!=_",
        "_<_",
        "_<=_",
        "_>_",
        "_>=_",
        "_&&_",
        "_||_",
        "!_",
        "@in",
        "size",
        "matches",
        "contains",
        "startsWith",
        "endsWith",
        "int",
        "uint",
        "double",
        "bool",
        "timestamp",
        "duration",
        "type",
        "indexOf",
        "lastIndexOf",
        "hasValue",
    ]
)


class _Size(msgspec.Struct, frozen=True):
    """So many characters or elements; of elements, the largest. What comes from a variable counts as one."""

    count: float
    of: _Size | None = None
    known: float | None = None
    """Of all elements, where that is known better."""

    @property
    def total(self) -> float:
        within = self.count * self.of.total if self.of is not None else 0.0
        return self.count + (within if self.known is None else self.known)


_NOTHING, _ONE = _Size(0.0), _Size(1.0)


def expression_problem(source: str) -> str:
    """Why it would take the library too long to compile: words that follow its name; empty when it would not."""
    found = len(_OPTIONAL_MAP.findall(source))
    return f"has {found} of optMap and optFlatMap; at most {MAX_OPTIONAL_MAPS} are allowed" if found > MAX_OPTIONAL_MAPS else ""


def growth_of(expr: Any) -> float:
    """How many times larger than what it is given the value of a CEL expression (the tree of syntax.parse) can become; inf when endless."""
    try:
        return _size(expr, {}).total
    except OverflowError:
        return math.inf


def _size(expr: Any, names: Mapping[str, _Size]) -> _Size:
    kind = expr.WhichOneof("expr_kind")
    if kind == "const_expr":
        constant = expr.const_expr.WhichOneof("constant_kind")
        return _Size(float(len(getattr(expr.const_expr, constant)))) if constant in ("string_value", "bytes_value") else _ONE
    if kind == "ident_expr":
        return names.get(expr.ident_expr.name, _ONE)
    if kind == "select_expr":
        found = _size(expr.select_expr.operand, names)
        return _ONE if expr.select_expr.test_only else found.of or found
    if kind == "list_expr":
        return _held([_size(element, names) for element in expr.list_expr.elements])
    if kind == "struct_expr":
        parts = [part for entry in expr.struct_expr.entries for part in (entry.map_key, entry.value)]
        return _held([_size(part, names) for part in parts])
    if kind == "comprehension_expr":
        return _loop(expr.comprehension_expr, names)
    return _call(expr.call_expr, names) if kind == "call_expr" else _ONE


def _call(call: Any, names: Mapping[str, _Size]) -> _Size:
    function = call.function
    of = [_size(part, names) for part in ([call.target] if call.HasField("target") else []) + list(call.args)]
    if function in _SHORT or not of:
        return _ONE
    if function == "_?_:_":
        return _larger(of[1], of[2])
    if function in ("_[_]", "_[?_]", "_?._"):
        return of[0].of or of[0]
    if function == "replace" and len(of) > 2:
        # Nothing stands between all characters.
        times = of[2].total / of[1].total if of[1].total else 1 + of[2].total
        return _Size(of[0].total * max(1.0, times))
    if function == "join":
        return _Size(of[0].total * (1 + (of[1].total if len(of) > 1 else 0)))
    if function == "strings.quote":
        return _Size(2 * of[0].total + 2)
    if function == "split":
        return _Size(of[0].total, _ONE)
    whole = of[0]
    for part in of[1:]:
        whole = _joined(whole, part)
    return whole


def _loop(loop: Any, names: Mapping[str, _Size]) -> _Size:
    """Every macro gathers in an accumulator what one turn after the other gives."""
    through = _size(loop.iter_range, names)
    turn = _size(loop.loop_step, {**names, loop.iter_var: through.of or _ONE, loop.accu_var: _NOTHING})
    turns = _Size(turn.count * through.count, turn.of, None if turn.known is None else turn.known * through.count)
    gathered = _joined(_size(loop.accu_init, names), turns)
    return _size(loop.result, {**names, loop.accu_var: gathered})


def _held(parts: list[_Size]) -> _Size:
    largest = _NOTHING
    for part in parts:
        largest = _larger(largest, part)
    return _Size(float(len(parts)), largest, sum(part.total for part in parts))


def _larger(left: _Size, right: _Size) -> _Size:
    of = _larger(left.of, right.of) if left.of and right.of else left.of or right.of
    return _Size(max(left.count, right.count), of)


def _joined(left: _Size, right: _Size) -> _Size:
    known = left.total - left.count + right.total - right.count
    return msgspec.structs.replace(_larger(left, right), count=left.count + right.count, known=known)


def has_optional(expr: Any) -> bool:
    """Whether the expression makes an optional anywhere."""
    call = expr.call_expr
    named = call.function.startswith("opt") or call.function in ("_?._", "_[?_]", "first", "last")
    return named or any(map(has_optional, syntax.parts(expr)))


def multiplies(expr: Any, inside: frozenset[str] | None = None) -> bool:
    """Whether a loop takes in, at each turn, what does not come from its own element: a large value may then be in the result many times.

    `inside` are the names of the loop that the expression is the turn of.
    """
    kind = expr.WhichOneof("expr_kind")
    if kind == "ident_expr":
        return inside is not None and expr.ident_expr.name not in inside
    if kind == "comprehension_expr":
        loop = expr.comprehension_expr
        turn = multiplies(loop.loop_step, frozenset({loop.iter_var, loop.accu_var}))
        return turn or any(multiplies(part, inside) for part in (loop.iter_range, loop.accu_init))
    return any(multiplies(part, inside) for part in syntax.parts(expr))


def template_problem(source: str) -> str:
    """Why the template is too much for the library: words that follow its name; empty when it is not."""
    if source.count("elif") > MAX_ELIFS:
        return f"has {source.count('elif')} branches; at most {MAX_ELIFS} are allowed"
    longest = _longest_tag(source) if len(source) > MAX_TAG_BYTES else 0
    if longest > MAX_TAG_BYTES:
        return f"has {longest} characters between the brackets of one tag; at most {MAX_TAG_BYTES} are allowed"
    return ""


def _longest_tag(source: str) -> int:
    """In characters; a tag without an end goes on to the end of the source."""
    longest = position = 0
    while opening := _OPENING.search(source, position):
        if opening[0] == "{#":
            position = source.find("#}", opening.end())
            position = len(source) if position < 0 else position
            continue
        position = _end_of_tag(source, opening)
        longest = max(longest, position - opening.start())
    return longest


def _end_of_tag(source: str, opening: re.Match[str]) -> int:
    """As the library finds it: brackets inside must be closed before, and what stands in quotes does not count."""
    position, depth = opening.end(), 0
    while found := _IN_TAG.search(source, position):
        position = found.end()
        if found[0] in "([{":
            depth += 1
        elif found[0] == _CLOSING[opening[0]] and depth == 0:
            return position
        elif found[0][0] in ")]}":
            # Of two brackets the first alone: the second may begin the end of the tag.
            depth, position = depth - 1, found.start() + 1
        elif found[0] == "%}":
            position = found.start() + 1
    return len(source)
