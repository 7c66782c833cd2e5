"""Sessions with MCP servers over streamable HTTP: opened at the first call, kept open, opened anew when they are lost.

The client of the extra `mcp` has to be entered and left by one task, so each session has a task that owns it. The library is imported
at the first session: it takes a second, and most gateways need none.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from data_plane.hosts import HEADER_REFUSED, HostRefusedError
from data_plane.mcp_promises import Promises

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 300.0
MAX_SESSIONS = 200
MAX_BODY_BYTES = 4 * 1024 * 1024
# Of the codes that JSON-RPC reserves and nobody has given a meaning: this transport says that a call has not been carried out.
NOT_RUN = -32768

Key = tuple[str, tuple[tuple[str, str], ...]]


class McpUnavailableError(Exception):
    """There is no session, or it was lost during the call; the message is the cause. `may_have_run`: the call may have been carried out."""

    def __init__(self, message: str, *, may_have_run: bool, retryable: bool = True) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run
        self.retryable = retryable


def is_installed() -> bool:
    """Whether the extra `mcp` is there."""
    return importlib.util.find_spec("mcp") is not None


class McpSessions:
    """All sessions of a process, by URL and headers. For one event loop."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport
        self._sessions: dict[Key, _Session] = {}

    async def call(self, url: str, headers: Mapping[str, str], tool: str, arguments: dict[str, Any]) -> Any:
        """What the tool answers, a CallToolResult of the library. A caller that is cancelled has the call cancelled there too.

        Raises:
            McpUnavailableError: no session can be had, or it was lost.
            mcp.MCPError: the server refuses the call.
            BrokenPromiseError: the answer is not as the tool's output schema has it.
        """
        key = (url, tuple(sorted(headers.items())))
        while True:
            session, is_new = self._session(key)
            try:
                return await session.call(tool, arguments)
            except _SessionLostError as lost:
                self._forget(key, session)
                # One that was opened just now is not lost so easily.
                if lost.may_have_run or is_new:
                    raise McpUnavailableError(str(lost), may_have_run=lost.may_have_run) from None
            except McpUnavailableError:
                self._forget(key, session)
                raise

    def _session(self, key: Key) -> tuple[_Session, bool]:
        session = self._sessions.get(key)
        if session is not None and not session.is_over:
            return session, False
        now = time.monotonic()
        idle = [known for known, other in self._sessions.items() if other.is_over or other.idle_since < now - IDLE_SECONDS]
        for known in idle:
            self._forget(known, self._sessions[known])
        if len(self._sessions) >= MAX_SESSIONS:
            raise McpUnavailableError(f"this gateway has {MAX_SESSIONS} MCP sessions open already", may_have_run=False)
        self._sessions[key] = session = _Session(key, self._transport)
        return session, True

    def _forget(self, key: Key, session: _Session) -> None:
        if self._sessions.get(key) is session:
            del self._sessions[key]
        session.retire()

    async def aclose(self) -> None:
        """Ends every session."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            session.end()
        await asyncio.gather(*(session.ended() for session in sessions))


class _SessionLostError(Exception):
    def __init__(self, message: str, *, may_have_run: bool) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run


class _Session:
    """One session and the task that owns it."""

    def __init__(self, key: Key, transport: httpx2.AsyncBaseTransport) -> None:
        self._url, headers = key
        self._headers = dict(headers)
        self._transport = transport
        self._running = 0
        self._last_used = time.monotonic()
        self._is_retired = False
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(), name="mcp session")

    @property
    def is_over(self) -> bool:
        return self._task.done() or self._stop.is_set()

    @property
    def idle_since(self) -> float:
        """A time.monotonic(), infinity while a call runs."""
        return float("inf") if self._running else self._last_used

    def end(self) -> None:
        """No more calls; those that run are cut off."""
        self._stop.set()

    def retire(self) -> None:
        """No more calls; those that run may go on, since what one of them met need not be the end of all."""
        self._is_retired = True
        if not self._running:
            self.end()

    async def ended(self) -> None:
        await asyncio.wait({self._task})

    async def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        from mcp import MCPError

        self._running += 1
        try:
            await asyncio.wait({self._ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
            client = self._client()
            try:
                return await client.call_tool(tool, arguments)
            except MCPError as error:
                raise _lost(error) or error from None
        finally:
            self._running -= 1
            self._last_used = time.monotonic()
            if self._is_retired:
                self.retire()

    def _client(self) -> Any:
        """Raises McpUnavailableError."""
        if not self._ready.done():
            raise McpUnavailableError("the session was closed", may_have_run=False)
        cause = self._ready.exception()
        if cause is not None:
            raise McpUnavailableError(str(cause), may_have_run=False, retryable=not isinstance(cause, HostRefusedError))
        return self._ready.result()

    async def _live(self) -> None:
        """Owns the client from its opening to its end. Never raises but when cancelled."""
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        try:
            http = httpx2.AsyncClient(
                transport=_Contained(self._transport),
                headers={"accept-encoding": "identity", **self._headers},
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                follow_redirects=False,
                trust_env=False,
            )
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(CONNECT_SECONDS):
                    opening = streamable_http_client(self._url, http_client=http, max_sse_event_size=MAX_BODY_BYTES)
                    client = await stack.enter_async_context(Client(opening))
                # The library has no argument for it.
                client.session.validate_tool_result = Promises(client, self._url).check  # type: ignore[method-assign]
                self._ready.set_result(client)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001 -- whatever ends the session is told to who calls
            self._fail(_cause(error))
        except BaseExceptionGroup as group:
            self._fail(_cause(group))
        finally:
            self._fail(ConnectionError("the session was closed"))

    def _fail(self, cause: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(cause)
            # Nobody may be waiting any more.
            self._ready.exception()


def _lost(error: Any) -> _SessionLostError | None:
    """When a refusal says that the session is gone, or the connection of this call."""
    from mcp_types import CONNECTION_CLOSED

    if error.code == CONNECTION_CLOSED:
        return _SessionLostError(f"the call was sent, and its answer lost: {error}", may_have_run=True)
    return _SessionLostError(str(error), may_have_run=False) if error.code == NOT_RUN else None


def _cause(error: BaseException) -> Exception:
    """The innermost first cause, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, HostRefusedError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return ConnectionError(HEADER_REFUSED)
    if isinstance(error, TimeoutError):
        return ConnectionError(f"it did not answer within {CONNECT_SECONDS:g} s")
    return ConnectionError(str(error) or type(error).__name__)


class _Contained(httpx2.AsyncBaseTransport):
    """The shared transport, which outlives the session. What goes wrong with one message is told as its answer.

    The library would end the session at an error, and with it the calls of others.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        from mcp_types import CONNECTION_CLOSED

        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.LocalProtocolError) as error:
            return _refusal(NOT_RUN, f"it cannot be reached: {_cause(error)}")
        except httpx2.TransportError as error:
            return _refusal(CONNECTION_CLOSED, str(_cause(error)))
        if response.status_code == 404 and "mcp-session-id" in request.headers:
            await response.aclose()
            return _refusal(NOT_RUN, "it does not know the session any more")
        problem, content = "", b""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            problem = "it packs its answers, though asked not to"
        elif "event-stream" in response.headers.get("content-type", ""):
            # Of these the library reads one event at a time, and knows how large one may be.
            return response
        try:
            content = b"" if problem else await _read(response)
        except httpx2.TransportError as error:
            problem = f"its answer was cut: {_cause(error)}"
        finally:
            await response.aclose()
        if len(content) > MAX_BODY_BYTES:
            problem = f"it answered more than {MAX_BODY_BYTES} bytes"
        if problem:
            return _refusal(CONNECTION_CLOSED, problem)
        return httpx2.Response(response.status_code, headers=response.headers, content=content)

    async def aclose(self) -> None:
        """The shared one stays open."""


async def _read(response: httpx2.Response) -> bytes:
    """The body, or so much of it that it is too much."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


def _refusal(code: int, message: str) -> httpx2.Response:
    """An answer that the library hands to the one call that it belongs to."""
    return httpx2.Response(502, json={"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
