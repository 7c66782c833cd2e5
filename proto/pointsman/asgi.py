"""ASGI apps (Starlette's) behind the HTTP of both servers: https://asgi.readthedocs.io, version 3 of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pointsman.exchange import Exchange, HungUpError, head_of
from pointsman.shared import Handler

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def asgi(app: App) -> Handler:
    """Answers by the app."""

    async def handle(exchange: Exchange) -> None:
        call = _Call(exchange)
        await app(call.scope(), call.receive, call.send)

    return handle


class _Call:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._is_read = False
        self._head: tuple[int, bytes, int | None] | None = None

    def scope(self) -> Message:
        exchange = self._exchange
        transport = exchange.connection.transport
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if exchange.is_old else "1.1",
            "server": _address(transport, "sockname"),
            "client": _address(transport, "peername"),
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "method": exchange.method,
            "root_path": "",
            "path": exchange.path,
            "raw_path": exchange.target.partition(b"?")[0],
            "query_string": exchange.query,
            "headers": exchange.headers,
            "state": {},
        }

    async def receive(self) -> Message:
        if not self._is_read:
            try:
                part = await self._exchange.read()
            except HungUpError:
                return {"type": "http.disconnect"}
            self._is_read = self._exchange.is_whole
            return {"type": "http.request", "body": part, "more_body": not self._is_read}
        await self._exchange.until_gone()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if message["type"] == "http.response.start":
            headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            length = next((int(value) for name, value in headers if name == b"content-length"), None)
            head = head_of([header for header in headers if header[0] != b"content-length"])
            self._head = (message["status"], head, length)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._head is not None:
            (status, head, length), self._head = self._head, None
            if not more:
                exchange.answer(status, head, body, length)
                return
            exchange.start(status, head, length)
        await exchange.write(body)
        if not more:
            exchange.end()


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    """Host and port; None when the connection is closed by now."""
    found = transport.get_extra_info(name)
    return found[:2] if found else None
