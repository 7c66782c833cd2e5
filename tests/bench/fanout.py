"""From one change to the last of N streams, each on its own connection, from other processes: beside etcd and a bare grpc.aio fan-out."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc

from tests.bench import etcd
from tests.bench.children import bare_server, child, line
from tests.bench.deploys import alternating, prepared
from tests.bench.table import Row, milliseconds, spread
from tests.processes import start_control_plane

ROUNDS = {1: 200, 10: 200, 100: 60, 1000: 20}
CLIENT_PROCESSES = 2
PAYLOAD_BYTES = 250


class Streams:
    """N open streams, spread over client processes."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self._round = 0

    async def measure(self, fire: Callable[[], Awaitable[object]]) -> tuple[float, float]:
        """Seconds from the call to the last receipt, and from the first receipt to the last."""
        started = time.monotonic()
        moments = await self.receipts(fire)
        return max(moments) - started, max(moments) - min(moments)

    async def receipts(self, fire: Callable[[], Awaitable[object]]) -> list[float]:
        """When each stream had the event that the call causes, as time.monotonic()."""
        self._round += 1
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{self._round}\n".encode())
            await process.stdin.drain()
        firing = asyncio.ensure_future(fire())
        lines = await asyncio.gather(*(line(process) for process in self._processes))
        await firing
        return [float(text) for found in lines for text in found.split()]


Peer = tuple[Streams, Callable[[], Awaitable[object]]]
"""What waits, and the call that it waits for."""


@asynccontextmanager
async def streams(kind: str, address: str, count: int, *more: str) -> AsyncIterator[Streams]:
    """Opens them, and waits until all are in sync; `more` as fanout_client takes it."""
    async with AsyncExitStack() as stack:
        processes = []
        each = max(1, count // CLIENT_PROCESSES)
        for first in range(0, count, each):
            numbers = (str(min(each, count - first)), str(first))
            command = (sys.executable, "-m", "tests.bench.fanout_client", kind, address, *numbers, *more)
            processes.append(await stack.enter_async_context(child(*command)))
        await asyncio.gather(*(line(process) for process in processes))
        yield Streams(processes)


@asynccontextmanager
async def etcd_server(folder: Path) -> AsyncIterator[str]:
    """A single etcd on loopback."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    flags = ("--data-dir", str(folder / "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client)
    more = (
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
        "--initial-cluster",
        f"default={peer}",
        "--log-level",
        "error",
    )
    async with child("etcd", *flags, *more):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
        yield f"127.0.0.1:{ports[0]}"


async def rows() -> list[Row]:
    """Each count: ours and the peers, in alternating rounds."""
    found: list[Row] = []
    flips: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in ROUNDS:
            rows_of, flips[count] = await _rows_of(count, Path(name) / str(count))
            found += rows_of
    for fewer, more in itertools.pairwise(ROUNDS):
        what = f"growth of the last flip from {fewer} to {more} gateways"
        found.append(Row(what, f"{flips[more] / flips[fewer]:.1f} times", bound=f"at most {more // fewer}"))
    return found


async def _rows_of(count: int, folder: Path) -> tuple[list[Row], float]:
    """The rows, and the median seconds to the last flip."""
    folder.mkdir()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        plane = await enter(start_control_plane(folder))
        stub = await enter(prepared(plane.grpc))
        bare, answered = await enter(bare_server(PAYLOAD_BYTES)), await enter(bare_server(PAYLOAD_BYTES))
        fire, fire_answered = [(await enter(grpc.aio.insecure_channel(at))).unary_unary("/bench.Bare/Fire") for at in (bare, answered)]
        deploys = itertools.count()
        peers: dict[str, Peer] = {}
        peers["bare"] = await enter(streams("bare", bare, count)), lambda: fire(b"")
        if shutil.which("etcd"):
            address = await enter(etcd_server(folder))
            put = (await enter(grpc.aio.insecure_channel(address))).unary_unary(etcd.PUT)
            value = b"x" * PAYLOAD_BYTES
            peers["etcd"] = await enter(streams("etcd", address, count)), lambda: put(etcd.put_request(b"bench", value))
        async with streams("pointsman", plane.grpc, count) as watchers:
            peers["watch"] = watchers, lambda: stub.Deploy(alternating(next(deploys)))
            seconds = await _alternate(peers, ROUNDS[count])
        del peers["watch"]
        peers.pop("etcd", None)
        async with streams("gateway", plane.grpc, count) as gateways:
            peers["answering"] = await enter(streams("answering", answered, count)), lambda: fire_answered(b"")
            peers["gateway"] = gateways, lambda: stub.Deploy(alternating(next(deploys)))
            seconds_gateways = await _alternate(peers, ROUNDS[count])
    return _told(count, seconds, seconds_gateways), statistics.median(last for last, _ in seconds_gateways["gateway"])


async def _alternate(peers: dict[str, Peer], rounds: int) -> dict[str, list[tuple[float, float]]]:
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in peers}
    for _ in range(rounds + 2):
        for kind, (open_streams, fire) in peers.items():
            seconds[kind].append(await open_streams.measure(fire))
    # The first two warm connections, caches and, with gateways, what they hold.
    return {kind: measured[2:] for kind, measured in seconds.items()}


def _told(count: int, watch: dict[str, list[tuple[float, float]]], gateway: dict[str, list[tuple[float, float]]]) -> list[Row]:
    def last(measured: list[tuple[float, float]]) -> float:
        return statistics.median(seconds for seconds, _ in measured)

    def row(what: str, ours: list[tuple[float, float]], peer: str, theirs: list[tuple[float, float]], bound: str) -> Row:
        ratio = last(ours) / last(theirs)
        return Row(
            f"{count} {what}",
            milliseconds(last(ours)),
            f"{peer} {milliseconds(last(theirs))}",
            f"{ratio:.2f}",
            bound,
        )

    found = []
    if "etcd" in watch:
        found.append(row("watchers: Deploy to the last receipt", watch["watch"], "etcd put", watch["etcd"], "at most 1.3"))
    found.append(row("watchers: Deploy to the last receipt", watch["watch"], "bare fan-out", watch["bare"], ""))
    found.append(row("gateways: Deploy to the last flip", gateway["gateway"], "bare fan-out", gateway["bare"], "at most 2.0"))
    found.append(row("gateways: Deploy to the last flip", gateway["gateway"], "bare, answered", gateway["answering"], ""))
    found.append(Row(f"{count} gateways: Deploy to the last flip", spread([last for last, _ in gateway["gateway"]])))
    found.append(Row(f"{count} gateways: first flip to the last", spread([skew for _, skew in gateway["gateway"]])))
    return found
