"""Secrets that releases refer to: resolved on the gateway when a release is compiled, never stored, shown or logged."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pointsman.upstreams import SECRET_REFERENCE

VARIABLE_PREFIX = "POINTSMAN_SECRET_"
SHORTEST_REDACTED = 4
# Of a long text, to find what is shown of it: far more than that, so that no half of a secret is left.
EXCERPT_OF_CHARS = 32 * 1024


class SecretMissingError(Exception):
    """A secret is not there; the message names it and says where it was looked for."""


class Secrets:
    """Looks secrets up in the environment variables POINTSMAN_SECRET_<NAME>, then in files <NAME> of a folder."""

    def __init__(self, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environment = os.environ if environment is None else environment
        self._shown_as: dict[str, str] = {}
        self._pattern: tuple[int, re.Pattern[str]] | None = None

    def resolve(self, text: str) -> str:
        """The text with every `${secret:NAME}` replaced. Raises SecretMissingError."""
        return SECRET_REFERENCE.sub(lambda match: self._find(match[1]), text)

    def redact(self, text: str) -> str:
        """The text without the values of the secrets that were resolved so far, also as JSON writes them."""
        known = self._shown_as
        if not known:
            return text
        if self._pattern is None or self._pattern[0] != len(known):
            longest_first = sorted(known, key=len, reverse=True)
            self._pattern = len(longest_first), re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern[1].sub(lambda match: known[match[0]], text)

    def excerpt(self, text: str, chars: int) -> str:
        """The beginning of what redact gives."""
        return self.redact(text[:EXCERPT_OF_CHARS])[:chars]

    def _find(self, name: str) -> str:
        value = self._look_up(name)
        # A new dictionary, since this runs on the compiler's thread and redact on the event loop. Shorter ones would shred every text.
        if len(value) >= SHORTEST_REDACTED:
            in_json = msgspec.json.encode(value).decode()[1:-1]
            self._shown_as = self._shown_as | dict.fromkeys((value, in_json), f"[secret {name}]")
        return value

    def _look_up(self, name: str) -> str:
        value = self._environment.get(VARIABLE_PREFIX + name)
        if value is not None:
            return value
        if self._folder is not None:
            path = self._folder / name
            if path.is_file():
                return path.read_text().removesuffix("\n")
        where = f" or the file {name} in --secrets-dir" if self._folder is not None else ""
        raise SecretMissingError(f"secret {name} is missing: set the environment variable {VARIABLE_PREFIX}{name}{where}")
