"""An OpenAI-compatible upstream that costs next to nothing, for the benchmark of inference.

    python -m tests.bench.model_server

Prints its port. A chat is answered at once; below `/slow/` after `SLOW_SECONDS`. With `stream` it writes `TOKENS` tokens, `PER_SECOND` a
second: each is the moment at which it was due, in nanoseconds of the machine's monotonic clock, so that any reader can tell how late it is.
"""

from __future__ import annotations

import asyncio
import json
import time

import uvloop

SLOW_SECONDS = 8.0
TOKENS = 250
PER_SECOND = 50
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_ANSWER = json.dumps(
    {
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "It is on its way."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 6},
    }
).encode()
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN = (
    '{"id":"c","object":"chat.completion.chunk","model":"bench","choices":[{"index":0,"delta":{"content":"%d "},"finish_reason":null}]}'
)
_END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class _Connection(asyncio.Protocol):
    """One request after the other."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._given = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._given += data
        head, found, body = self._given.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        self._given = b""
        if b'"stream":true' in body:
            self.transport.write(_HEAD)
            self._write_token(TOKENS, time.monotonic_ns())
        elif head.startswith(b"POST /slow/"):
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        self.transport.write(_JSON % (len(_ANSWER), _ANSWER))

    def _write_token(self, left: int, due: int) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(_END), _END))
            return
        event = b"data: %s\n\n" % (_TOKEN % due).encode()
        self.transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        due += 1_000_000_000 // PER_SECOND
        asyncio.get_running_loop().call_later((due - time.monotonic_ns()) / 1e9, self._write_token, left - 1, due)


async def main() -> None:
    """Serves until killed."""
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
