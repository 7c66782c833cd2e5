"""A load of unary gRPC calls: `python -m tests.bench.grpc_client ADDRESS METHOD REQUEST_HEX SECONDS [TOKEN]` prints calls a second.

Any failed call ends it with an error: a fast refusal is no throughput.
"""

from __future__ import annotations

import asyncio
import sys
import time

import grpc
import uvloop

CHANNELS = 4
CALLS_EACH = 8


async def main(address: str, method: str, request: bytes, seconds: float, token: str = "") -> None:
    """Runs the load and prints its rate."""
    deadline, done = time.monotonic() + seconds, 0
    metadata = (("authorization", f"Bearer {token}"),) if token else None

    async def calls(channel: grpc.aio.Channel) -> int:
        call, count = channel.unary_unary(method), 0
        while time.monotonic() < deadline:
            await call(request, metadata=metadata)
            count += 1
        return count

    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)]
    done = sum(await asyncio.gather(*(calls(channel) for channel in channels for _ in range(CALLS_EACH))))
    print(done / seconds, flush=True)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:]))
