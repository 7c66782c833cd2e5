"""Reads many token streams of tests.bench.model_server, from the gateway or straight: how late each token is.

    python -m tests.bench.stream_client ADDRESS PATH BODY STREAMS

Streams begin spread over half a second. Prints the delays of all tokens as p50, p99 and maximum in seconds, and how many came.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import time

import uvloop

from tests.bench.model_server import PER_SECOND, TOKENS
from tests.bench.table import percentile

BEGIN_SECONDS = 0.5
LIMIT_SECONDS = 60.0
_SAID = re.compile(rb'"(?:text|content)": ?"([0-9 ]+)"')


class _Reader(asyncio.Protocol):
    """One stream, read to its end."""

    def __init__(self, request: bytes, delays: list[float]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._delays = delays
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        for said in _SAID.findall(whole):
            self._delays.extend((now - int(moment)) / 1e9 for moment in said.split())
        if whole.endswith(b"0\r\n\r") and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionResetError(f"a stream ended early: {self._rest.decode()}"))


async def main(address: str, path: str, body: str, streams: int) -> None:
    """Reads all of them."""
    loop, delays = asyncio.get_running_loop(), list[float]()
    host, _, port = address.rpartition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
    request = f"{head}X-App: bench\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    gc.disable()

    async def one(number: int) -> None:
        await asyncio.sleep(BEGIN_SECONDS * number / streams)
        transport, reader = await loop.create_connection(lambda: _Reader(request, delays), host, int(port))
        await reader.ended
        transport.close()

    async with asyncio.timeout(LIMIT_SECONDS + TOKENS / PER_SECOND), asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(one(number))
    print(percentile(delays, 50), percentile(delays, 99), max(delays), len(delays), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
