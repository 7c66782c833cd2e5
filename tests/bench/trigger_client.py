"""A steady load of HTTP triggers from a process of its own, for the benchmark of triggers under deploys.

    python -m tests.bench.trigger_client HTTP_ADDRESS APP PER_SECOND [INPUT]

Prints `open`. Then, for each line `SECONDS` on stdin, sends triggers evenly for so long, whether or not earlier ones are answered,
and prints their latencies in seconds, from when each was due. An answer that is no 200 ends it. Without an input it is the endpoint
`where` of tests.sample_apps, and an answer that is mixed from two releases ends it; with one, the endpoint `bench`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

import uvloop

BODY = '{"message": "hello"}'
CONNECTIONS = 16


class Connection:
    """One HTTP connection that is kept alive."""

    def __init__(self, address: str, app: str, given: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._marked = not given
        path, body = ("bench", given) if given else ("where", BODY)
        head = f"POST /v1/trigger/{path} HTTP/1.1\r\nHost: {address}\r\nX-App: {app}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    async def open(self) -> None:
        """Connects."""
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))

    async def trigger(self) -> None:
        """One trigger. Raises RuntimeError when it fails, or its answer is mixed."""
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await self._reader.readexactly(int(headers["content-length"]))
        if not head.startswith("http/1.1 200"):
            raise RuntimeError(f"a trigger failed: {body.decode()}")
        answer = json.loads(body) if self._marked else None
        if answer and len({headers["x-release"], answer["first"], answer["last"], answer["release"]}) != 1:
            raise RuntimeError(f"an answer of {headers['x-release']} is mixed: {answer}")


async def load(free: asyncio.Queue[Connection], per_second: float, seconds: float) -> list[float]:
    """Latencies of a load; one that finds no free connection waits, and its time counts."""
    latencies: list[float] = []

    async def one(due: float) -> None:
        connection = await free.get()
        await connection.trigger()
        latencies.append(time.monotonic() - due)
        free.put_nowait(connection)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(round(per_second * seconds)):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    return latencies


async def main(address: str, app: str, per_second: float, given: str = "") -> None:
    """Serves phases until stdin ends."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        connection = Connection(address, app, given)
        await connection.open()
        free.put_nowait(connection)
    print("open", flush=True)
    loop = asyncio.get_running_loop()
    # Its own pauses are not the gateway's.
    gc.disable()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        latencies = await load(free, per_second, float(line))
        print(" ".join(f"{seconds:.6f}" for seconds in latencies), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:]))
