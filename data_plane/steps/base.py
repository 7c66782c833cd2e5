"""What every kind of step works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from data_plane.secrets import Secrets
from pointsman.v1.config_pb2 import Model, Tool

Variables = Mapping[str, Any]

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_SHOWN_CHARS = 200
# Answers that say that the cause may pass.
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})


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


@dataclass(slots=True)
class StepContext:
    """What a running step is given besides its variables. `delta`, when somebody listens, takes text as a model writes it."""

    clients: Clients
    delta: Callable[[str], None] | None = None


Runner = Callable[[Variables, StepContext], Any | Awaitable[Any]]


async def read_body(response: httpx2.Response, who: str, *, retryable: bool) -> bytes:
    """The whole body, decoded, up to MAX_ANSWER_BYTES. Raises StepError; `retryable` is for an answer that was cut."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise StepError(f"{who} answered more than {MAX_ANSWER_BYTES} bytes")
    except httpx2.TransportError as error:
        raise StepError(f"{who}: the answer was cut: {cause_of(error)}", retryable=retryable) from None
    except httpx2.DecodingError as error:
        raise StepError(f"{who} answered an encoding that is broken: {error}") from None
    return bytes(body)


def cause_of(error: Exception) -> str:
    """What went wrong; some of httpx2's errors say nothing but their name."""
    return str(error) or type(error).__name__


def retry_after(response: httpx2.Response) -> float | None:
    """The seconds of Retry-After; its other form, a date, is not used by APIs and gives None."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None
