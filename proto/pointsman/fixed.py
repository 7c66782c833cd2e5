"""Values that a template may look at and not change: minijinja shows it the attributes of Python's own dicts and lists.

One that calls `input.pop('a')` would change what later steps see, `input.l.extend(input.l)` in a loop takes all memory, and
`{{ input.pop }}` tells an address in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

METHODS = frozenset({"get", "items", "keys", "values", "count", "index"})
_NAMES = sorted(name for name in {*dir(dict), *dir(list)} if not name.startswith("_"))
# A name of theirs as it is written, and what looks up a name that is not: `input[input.name]`, filters by attribute.
_LOOKED_UP = re.compile(rf"\[|attr|groupby|\b(?:{'|'.join(_NAMES)})\b")


class NoMethodError(AttributeError):
    """A template asks for what it may not have; the message says what it may."""


class _Method:
    """One that may be called. Printed it is its name."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._call(*arguments, **named)

    def __str__(self) -> str:
        return f"{self._name}()"

    __repr__ = __str__


class _FixedDict(dict[str, Any]):
    def __getattribute__(self, name: str) -> Any:
        return _found(name, super().__getattribute__)


class _FixedList(list[Any]):
    def __getattribute__(self, name: str) -> Any:
        return _found(name, super().__getattribute__)


def needs_fixed(source: str) -> bool:
    """Whether the template could ask for an attribute."""
    return _LOOKED_UP.search(source) is not None


def fixed(value: Any) -> Any:
    """The value, all the way down."""
    if isinstance(value, Mapping):
        return _FixedDict((key, fixed(item)) for key, item in value.items())
    return _FixedList(map(fixed, value)) if isinstance(value, list) else value


def _found(name: str, find: Callable[[str], Any]) -> Any:
    if name.startswith("__"):
        # Asked for by Python; minijinja itself refuses it to templates.
        return find(name)
    if name in METHODS:
        return _Method(name, find(name))
    raise NoMethodError(f"there is no method {name!r}; there are {', '.join(sorted(METHODS))}")
