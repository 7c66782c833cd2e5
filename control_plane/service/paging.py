"""Pages of lists: sizes are clamped, tokens are opaque and belong to the filters that they were made for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from pointsman.errors import InvalidField, Violation

T = TypeVar("T")
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MIN_KEY, MAX_KEY = -(2**63), 2**63 - 1

Key = str | int
"""A part of the key by which a list is ordered."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some items of a list, and the token of the next page, empty at the end."""

    items: list[T]
    next_page_token: str


class _Token(msgspec.Struct, array_like=True):
    filters: tuple[str, ...]
    last: tuple[Key, ...]


class PageRequest(msgspec.Struct, frozen=True):
    """What the caller asked for: 0 is the default size, an empty token the first page."""

    size: int = 0
    token: str = ""

    @property
    def limit(self) -> int:
        """How many items the page has at most."""
        return min(self.size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)

    def after(self, *filters: str, kinds: Sequence[type[Key]] = (str,)) -> tuple[Any, ...]:
        """The key of the last item of the page before, each part of its kind; empty for the first page.

        Raises:
            InvalidField: when the token is not one of ours, or was made for other filters.
        """
        if not self.token:
            return ()
        try:
            token = msgspec.msgpack.decode(base64.urlsafe_b64decode(self.token.encode()), type=_Token)
        except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
            raise foreign_token() from error
        if token.filters != filters:
            raise _refused("was made for a list with other filters; start again with an empty one")
        if [type(part) for part in token.last] != list(kinds) or not all(map(_fits, token.last)):
            raise foreign_token()
        return token.last

    def page(self, items: Sequence[T], key: Callable[[T], tuple[Key, ...]], *filters: str) -> Page[T]:
        """The page, from up to limit + 1 items: one more than the page has means that there is a next one."""
        shown = list(items[: self.limit])
        if len(items) <= self.limit:
            return Page(shown, "")
        token = msgspec.msgpack.encode(_Token(filters, key(shown[-1])))
        return Page(shown, base64.urlsafe_b64encode(token).decode())


def foreign_token() -> InvalidField:
    """What is said of a token that no list has answered."""
    return _refused("is not a token that a list answered; leave it empty for the first page")


def _fits(part: Key) -> bool:
    """Whether a store takes it: PostgreSQL has no character NUL, and no store integers of more than 64 bits."""
    return MIN_KEY <= part <= MAX_KEY if isinstance(part, int) else "\0" not in part


def _refused(why: str) -> InvalidField:
    return InvalidField([Violation("page_token", why)])
