"""What every kind of step works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import msgspec

from data_plane.hosts import HostPolicy, PolicedTransport
from data_plane.mcp_sessions import McpSessions
from data_plane.secrets import Secrets
from pointsman.v1.config_pb2 import Model, Tool

Variables = Mapping[str, Any]

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_SHOWN_CHARS = 200
# For each address of a host: the next one shall have its turn within the time of a step.
CONNECT_SECONDS = 5.0
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


class Compiling(msgspec.Struct, frozen=True):
    """What a step may refer to while it is compiled."""

    secrets: Secrets
    tools: Mapping[str, Tool]
    models: Mapping[str, Model]
    shared: dict[str, Any] = {}
    """What the steps of one release have in common, by a key of the kind that made it."""

    def excerpt(self, text: str) -> str:
        """What is shown of what somebody else says: its beginning, without secrets, which some repeat."""
        return self.secrets.excerpt(text, MAX_SHOWN_CHARS)


class Clients(msgspec.Struct, frozen=True):
    """What steps share to reach the outside: made once for the process."""

    http: httpx2.AsyncClient
    mcp: McpSessions

    @classmethod
    def open(cls, policy: HostPolicy | None = None) -> Clients:
        """With a connection pool for everything that the gateway calls; no policy allows what a gateway on loopback may call.

        Timeouts are those of the steps, not of the client; only making a connection has one of its own.
        """
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=200, keepalive_expiry=30)
        transport = PolicedTransport(policy or HostPolicy(loopback=True), limits)
        # Without this httpx2 would ask for encodings that are only unpacked whole.
        headers = {"accept-encoding": "gzip"}
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        # A cookie that one caller's trigger was given would go out with the next one's.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        http = httpx2.AsyncClient(
            transport=transport, timeout=timeout, headers=headers, cookies=no_cookies, follow_redirects=False, trust_env=False
        )
        return cls(http=http, mcp=McpSessions(transport))

    async def aclose(self) -> None:
        """Closes every session and every connection."""
        await self.mcp.aclose()
        await self.http.aclose()


class Usage(msgspec.Struct):
    """What a step used of models and tools, over all its attempts."""

    model: str = ""
    """Name there of the model that answered last."""
    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0


class StepContext(msgspec.Struct):
    """What a running step is given besides its variables, the same for all attempts.

    `deadline` is a time.monotonic(), the step's or the trigger's; `delta`, when somebody listens, takes text as a model writes it;
    `usage` is made by the kinds that use something; `given` is what a kind that asks others asked, for the record.
    """

    clients: Clients
    deadline: float
    delta: Callable[[str], None] | None = None
    usage: Usage | None = None
    given: Any = None


Runner = Callable[[Variables, StepContext], Any | Awaitable[Any]]
