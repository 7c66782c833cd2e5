"""The way from the console to a gateway's HTTP port: a trigger whose events come as they happen. The browser knows the console alone."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_SECONDS = 120.0
CONNECT_SECONDS = 5.0
# A page waits no longer than this for one of them.
MAX_AT_ONCE = 20
QUEUE_SECONDS = 2.0


class NoAnswerError(Exception):
    """There is no answer, or not all of it; the message says why, for a person."""


class Asked(msgspec.Struct, frozen=True):
    """A trigger. `given` is the input; `authorization` is passed on, empty: none; `bounds` as headers_of takes them."""

    app: str
    environment: str
    endpoint: str
    method: str
    given: dict[str, Any]
    authorization: str
    bounds: Mapping[str, str]


class Event(msgspec.Struct, frozen=True):
    """As the gateway tells it, such as `step.finished`; `refused` with an error of the one shape when nothing was begun."""

    name: str
    data: dict[str, Any]


class GatewayDoor:
    """A gateway, or the load balancer before some."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        """`url` is empty where none is set.

        Raises:
            ValueError: it is no address of HTTP.
        """
        found = urlsplit(url)
        if url and (found.scheme not in ("http", "https") or not found.hostname or found.query or found.fragment):
            raise ValueError(f"{url!r} is no address such as http://127.0.0.1:7580")
        self.url = url.rstrip("/")
        self._client = httpx2.AsyncClient(
            # The files of public authorities are read for nothing where there is no TLS.
            verify=tls if tls is not None else url.startswith("https:"),
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=MAX_AT_ONCE),
            timeout=httpx2.Timeout(MAX_SECONDS, connect=CONNECT_SECONDS, pool=QUEUE_SECONDS),
        )

    @property
    def is_known(self) -> bool:
        """Whether there is one to send to."""
        return bool(self.url)

    async def trigger(self, asked: Asked) -> AsyncGenerator[Event]:
        """The events of the execution as they come. Leaving the iteration hangs up, which cancels the execution.

        Raises:
            NoAnswerError: nobody answers, not in time, too much, or not as a gateway does.
        """
        headers = headers_of(asked.app, asked.environment, asked.bounds) | {"Accept": "text/event-stream"}
        if asked.authorization:
            headers["authorization"] = asked.authorization
        where = f"{self.url}/v1/trigger/{quote(asked.endpoint)}"
        body: dict[str, Any] = {"params": asked.given} if asked.method == "GET" else {"json": asked.given}
        try:
            async with asyncio.timeout(MAX_SECONDS), self._client.stream(asked.method, where, headers=headers, **body) as response:
                if response.headers.get("content-type", "").partition(";")[0] == "text/event-stream":
                    async for event in _events(response):
                        yield event
                else:
                    yield Event("refused", _refusal(await _whole(response), response.status_code, dict(response.headers)))
        except TimeoutError:
            raise NoAnswerError(f"It took more than {MAX_SECONDS:g} s, which is as long as the console waits; it was cancelled.") from None
        except httpx2.PoolTimeout:
            raise NoAnswerError(f"{MAX_AT_ONCE} triggers from this console run already; try again in a moment.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise NoAnswerError(f"The gateway at {self.url} does not answer: {why}. Is it running, and is --gateway-url right?") from None

    async def close(self) -> None:
        """Hangs up on everybody."""
        await self._client.aclose()


def headers_of(app: str, environment: str, bounds: Mapping[str, str]) -> dict[str, str]:
    """Where it runs. Bounds: `release`, exactly this one, and `min_revision`, nothing older; empty: none."""
    found = {"X-App": app, "X-Environment": environment, "X-Release": bounds["release"], "X-Min-Revision": bounds["min_revision"]}
    return {name: value for name, value in found.items() if value}


async def _events(response: httpx2.Response) -> AsyncIterator[Event]:
    waiting, size = b"", 0
    async with contextlib.aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise NoAnswerError(f"The answer has more than {MAX_ANSWER_BYTES:,} bytes, which is as much as the console takes.")
            *whole, waiting = (waiting + piece).split(b"\n\n")
            for block in whole:
                fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
                if b"event" in fields:
                    yield Event(fields[b"event"].decode(), _decoded(fields.get(b"data", b"")))


async def _whole(response: httpx2.Response) -> bytes:
    found = bytearray()
    async for piece in response.aiter_bytes():
        found += piece
        if len(found) > MAX_ANSWER_BYTES:
            raise NoAnswerError(f"The answer has more than {MAX_ANSWER_BYTES:,} bytes, which is as much as the console takes.")
    return bytes(found)


def _refusal(body: bytes, status: int, headers: dict[str, str]) -> dict[str, Any]:
    """An error of the one shape, and what the head names."""
    found = _decoded(body)
    if "error" not in found or "message" not in found:
        raise NoAnswerError(f"What answers there, with status {status}, is no gateway: set --gateway-url to the HTTP port of one.")
    return found | {"headers": headers}


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}
