"""One process of watchers, for the fan-out benchmark: opens COUNT streams, each on its own connection, and notes every receipt.

    python -m tests.bench.fanout_client pointsman|etcd|bare|gateway|fetching|returning ADDRESS COUNT FIRST

Prints `open` when every stream is in sync. Then, for each round, reads one line `<rounds seen so far + 1>` from stdin, waits until
every stream has had that many events and prints the receipts of the last as seconds of the system's monotonic clock.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable

import grpc
import uvloop

from pointsman.v1 import deployments_pb2, deployments_pb2_grpc
from tests.bench import etcd
from tests.simulated_gateway import SimulatedGateway

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
BARE_METHOD = "/bench.Bare/Watch"


class Receipts:
    """When each stream got its n-th event."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.synced = 0
        self.rounds: list[list[float]] = []
        self.progress = asyncio.Event()

    def stream_synced(self) -> None:
        self.synced += 1
        self.progress.set()

    def event(self, number: int) -> None:
        while len(self.rounds) < number:
            self.rounds.append([])
        self.rounds[number - 1].append(time.monotonic())
        if len(self.rounds[number - 1]) == self.count:
            self.progress.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self.progress.clear()
            await self.progress.wait()


async def watch_pointsman(channel: grpc.aio.Channel, _index: int) -> AsyncIterator[bool]:
    """False for the first bookmark, then True for each binding."""
    stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
    async for message in stub.WatchBindings(deployments_pb2.WatchBindingsRequest(app="bench", environment="staging")):
        if message.WhichOneof("kind") == "binding":
            yield True
        elif message.bookmark.synced:
            yield False


async def watch_etcd(channel: grpc.aio.Channel, _index: int) -> AsyncIterator[bool]:
    """False when the watch is created, then True for each response with events."""
    call = channel.stream_stream(etcd.WATCH, response_deserializer=etcd.WatchResponse.FromString)()
    await call.write(etcd.watch_request(b"bench"))
    async for message in call:
        yield not message.created


async def watch_bare(channel: grpc.aio.Channel, _index: int) -> AsyncIterator[bool]:
    """False for the empty first message, then True for each."""
    async for message in channel.unary_stream(BARE_METHOD)(b""):
        yield bool(message)


async def watch_gateway(channel: grpc.aio.Channel, index: int, *, fetch: bool = False) -> AsyncIterator[bool]:
    """A simulated gateway: False for the first Update, then True for each that binds something."""
    gateway = SimulatedGateway(f"bench-{index}", fetch=fetch)
    queue: asyncio.Queue[bool] = asyncio.Queue()
    gateway.on_update = lambda update: queue.put_nowait(not update.synced) if update.synced or update.bindings else None
    task = asyncio.create_task(gateway.run(channel))
    task.add_done_callback(lambda done: done.result())
    while True:
        yield await queue.get()


def watch_fetching(channel: grpc.aio.Channel, index: int) -> AsyncIterator[bool]:
    """The same, and it fetches what it prepares."""
    return watch_gateway(channel, index, fetch=True)


KINDS = {"pointsman": watch_pointsman, "etcd": watch_etcd, "bare": watch_bare, "gateway": watch_gateway, "fetching": watch_fetching}


async def returning(address: str, index: int) -> AsyncIterator[bool]:
    """A simulated gateway that comes back whenever its stream ends: False for the first time that it is in sync, then True for each."""
    gateway = SimulatedGateway(f"bench-{index}")
    queue: asyncio.Queue[bool] = asyncio.Queue()
    times = itertools.count()
    gateway.on_update = lambda update: queue.put_nowait(next(times) > 0) if update.synced else None
    task = asyncio.create_task(gateway.run_on(address))
    task.add_done_callback(lambda done: done.result())
    while True:
        yield await queue.get()


async def connected(kind: str, address: str, index: int) -> AsyncIterator[bool]:
    """A stream of one of KINDS over a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        async for is_event in KINDS[kind](channel, index):
            yield is_event


async def main(kind: str, address: str, count: int, first: int) -> None:
    """Serves rounds until stdin ends."""
    receipts = Receipts(count)

    async def one(index: int) -> None:
        events = -1
        async for is_event in returning(address, index) if kind == "returning" else connected(kind, address, index):
            events += 1
            if is_event and events > 0:
                receipts.event(events)
            elif events == 0:
                receipts.stream_synced()

    tasks = [asyncio.create_task(one(first + index)) for index in range(count)]
    await receipts.until(lambda: receipts.synced >= count or any(task.done() for task in tasks))
    for task in tasks:
        if task.done():
            task.result()
    print("open", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        number = int(line)
        await receipts.until(lambda number=number: len(receipts.rounds) >= number and len(receipts.rounds[number - 1]) >= count)
        print(" ".join(f"{moment:.6f}" for moment in receipts.rounds[number - 1]), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
