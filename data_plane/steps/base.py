"""What every kind of step works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from data_plane.secrets import Secrets
from pointsman.v1.config_pb2 import Model, Tool

Variables = Mapping[str, Any]


class CannotCompileError(Exception):
    """A step cannot be compiled here; the message says why."""


class StepError(Exception):
    """A step failed; the message is the cause, for a person, without secrets.

    `retryable` says that the cause may pass; `retry_after_seconds` is what the other side asked for, if it did.
    """

    def __init__(self, message: str, *, retryable: bool = False, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Compiling:
    """What a step may refer to while it is compiled."""

    secrets: Secrets
    tools: Mapping[str, Tool]
    models: Mapping[str, Model]


@dataclass(frozen=True, slots=True)
class Clients:
    """What steps share to reach the outside: made once for the process."""

    http: httpx2.AsyncClient

    @classmethod
    def open(cls) -> Clients:
        """With a connection pool for everything that the gateway calls. Timeouts are those of the steps, not of the client."""
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=200, keepalive_expiry=30)
        return cls(http=httpx2.AsyncClient(timeout=None, limits=limits, follow_redirects=False, trust_env=False))

    async def aclose(self) -> None:
        """Closes every connection."""
        await self.http.aclose()


Runner = Callable[[Variables, Clients], Any | Awaitable[Any]]
