"""One process of watchers, for the fan-out benchmark: opens COUNT streams, each on its own connection, and notes every receipt.

    python -m tests.bench.fanout_client pointsman|etcd|bare|answering|gateway|fetching|revoked|returning ADDRESS COUNT FIRST [TOKEN]

Prints `open` when every stream is in sync. Then, for each round, reads one line `<rounds seen so far + 1>` from stdin, waits until
every stream has had that many events and prints the receipts of the last as seconds of the system's monotonic clock.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial

import grpc
import uvloop

from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, gateways_pb2
from tests.bench import etcd
from tests.simulated_gateway import SimulatedGateway

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
BARE_METHOD = "/bench.Bare/Watch"
ANSWERED_METHOD = "/bench.Bare/Answered"
# As long as an acknowledgement.
ANSWER = b"x" * 6


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


Told = Callable[[bool], None]
"""Called with False once the stream is in sync, then with True for each event."""


async def watch_pointsman(channel: grpc.aio.Channel, _index: int, told: Told) -> None:
    """Events are bindings."""
    stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
    async for message in stub.WatchBindings(deployments_pb2.WatchBindingsRequest(app="bench", environment="staging")):
        if message.WhichOneof("kind") == "binding":
            told(True)
        elif message.bookmark.synced:
            told(False)


async def watch_etcd(channel: grpc.aio.Channel, _index: int, told: Told) -> None:
    """Events are responses with changes."""
    call = channel.stream_stream(etcd.WATCH, response_deserializer=etcd.WatchResponse.FromString)()
    await call.write(etcd.watch_request(b"bench"))
    async for message in call:
        told(len(message.events) > 0)


async def watch_bare(channel: grpc.aio.Channel, _index: int, told: Told) -> None:
    """Events are all messages after the first, which is empty."""
    async for message in channel.unary_stream(BARE_METHOD)(b""):
        told(bool(message))


async def watch_answering(channel: grpc.aio.Channel, _index: int, told: Told) -> None:
    """The same, and each is answered, as gateways do."""
    call = channel.stream_stream(ANSWERED_METHOD)()
    async for message in call:
        told(bool(message))
        await call.write(ANSWER)


async def watch_gateway(channel: grpc.aio.Channel, index: int, told: Told, *, fetch: bool = False) -> None:
    """A simulated gateway; events are Updates that bind something."""
    gateway = SimulatedGateway(f"bench-{index}", fetch=fetch)
    gateway.on_update = lambda update: told(not update.synced) if update.synced or update.bindings else None
    await gateway.run(channel)


async def watch_fetching(channel: grpc.aio.Channel, index: int, told: Told) -> None:
    """The same, and it fetches what it prepares."""
    await watch_gateway(channel, index, told, fetch=True)


async def watch_revoked(channel: grpc.aio.Channel, index: int, told: Told, *, token: str) -> None:
    """The same with a token of its own; events are Updates by which it drops another's."""
    gateway = SimulatedGateway(f"bench-{index}", token=token)

    def updated(update: gateways_pb2.SyncResponse.Update) -> None:
        if update.synced or any(not known.secret_hash for known in update.tokens):
            told(not update.synced)

    gateway.on_update = updated
    await gateway.run(channel)


async def returning(address: str, index: int, told: Told) -> None:
    """A simulated gateway that comes back whenever its stream ends; events are that it is in sync again."""
    gateway = SimulatedGateway(f"bench-{index}")
    times = itertools.count()
    gateway.on_update = lambda update: told(next(times) > 0) if update.synced else None
    await gateway.run_on(address)


KINDS = {
    "pointsman": watch_pointsman,
    "etcd": watch_etcd,
    "bare": watch_bare,
    "answering": watch_answering,
    "gateway": watch_gateway,
    "fetching": watch_fetching,
}


async def main(kind: str, address: str, count: int, first: int, token: str = "") -> None:
    """Serves rounds until stdin ends."""
    receipts = Receipts(count)
    watch = partial(watch_revoked, token=token) if kind == "revoked" else KINDS.get(kind)

    async def one(index: int) -> None:
        events = 0

        def told(is_event: bool) -> None:
            nonlocal events
            if is_event:
                events += 1
                receipts.event(events)
            else:
                receipts.stream_synced()

        if kind == "returning":
            await returning(address, index, told)
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            assert watch is not None, kind
            await watch(channel, index, told)

    tasks = [asyncio.create_task(one(first + index)) for index in range(count)]
    for task in tasks:
        task.add_done_callback(lambda _: receipts.progress.set())
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
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:]))
