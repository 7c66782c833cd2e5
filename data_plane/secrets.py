"""Secrets that releases refer to: resolved on the gateway when a release is compiled, never stored, shown or logged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pointsman.upstreams import SECRET_REFERENCE

VARIABLE_PREFIX = "POINTSMAN_SECRET_"


class SecretMissingError(Exception):
    """A secret is not there; the message names it and says where it was looked for."""


class Secrets:
    """Looks secrets up in the environment variables POINTSMAN_SECRET_<NAME>, then in files <NAME> of a folder."""

    def __init__(self, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environment = os.environ if environment is None else environment

    def resolve(self, text: str) -> str:
        """The text with every `${secret:NAME}` replaced. Raises SecretMissingError."""
        return SECRET_REFERENCE.sub(lambda match: self._find(match[1]), text)

    def _find(self, name: str) -> str:
        value = self._environment.get(VARIABLE_PREFIX + name)
        if value is not None:
            return value
        if self._folder is not None:
            path = self._folder / name
            if path.is_file():
                return path.read_text().removesuffix("\n")
        where = f" or the file {name} in --secrets-dir" if self._folder is not None else ""
        raise SecretMissingError(f"secret {name} is missing: set the environment variable {VARIABLE_PREFIX}{name}{where}")
