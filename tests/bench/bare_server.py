"""The floor of a fan-out: a grpc.aio server that, told by one call, writes the same bytes to every open stream.

    python -m tests.bench.bare_server PAYLOAD_BYTES

Prints its port. `/bench.Bare/Watch` is the stream, `/bench.Bare/Answered` one whose messages clients answer, `/bench.Bare/Fire` starts a round, `/bench.Bare/Echo` answers what it gets.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

MAX_PENDING = 20_000


async def main(payload_bytes: int) -> None:
    """Serves until killed."""
    payload, state = b"x" * payload_bytes, {"event": asyncio.Event()}

    async def watch(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b""
        while True:
            await state["event"].wait()
            yield payload

    async def answered(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async def read() -> None:
            async for _ in requests:
                pass

        reader = asyncio.create_task(read())
        try:
            async for message in watch(b"", context):
                yield message
        finally:
            reader.cancel()

    async def fire(_request: bytes, _context: Any) -> bytes:
        state["event"].set()
        state["event"] = asyncio.Event()
        return b""

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    options = [("grpc.server.max_pending_requests", MAX_PENDING), ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING)]
    server = grpc.aio.server(options=options)
    handlers = {
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
        "Answered": grpc.stream_stream_rpc_method_handler(answered),
        "Fire": grpc.unary_unary_rpc_method_handler(fire),
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
