"""Deploys, cuts, failing fetches and kills in a random order: the gateway ends on the store's state, having never gone back on the way.

A run that fails prints its seed; put it into SEEDS to see it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime

import grpc
import pytest

from data_plane.disk import Disk
from data_plane.holder import Holder
from data_plane.loading import Compiler
from data_plane.secrets import Secrets
from data_plane.sync import Sync
from data_plane.sync_stream import Me
from pointsman.settings import Address
from tests.eventually import eventually
from tests.sample_apps import marked
from tests.scripted_control_plane import Ended, ScriptedControlPlane, ScriptedStream, chunks, snapshot_of
from tests.seeds import seeds

SEEDS = seeds(8)
STEPS = 60
KEYS = [(app, environment) for app in ("shop", "blog") for environment in ("staging", "production")]
GOOD = [snapshot_of(marked(f"v{n}")) for n in range(6)]
BAD_CONFIG = marked("bad", "http://127.0.0.1:1/")
BAD_CONFIG["tools"][0]["http"]["headers"] = {"Key": "${secret:NOT_HERE}"}
BAD = snapshot_of(BAD_CONFIG)


class Store:
    """The truth, and what a control plane tells of it. Each release is tagged with its digest."""

    def __init__(self, plane: ScriptedControlPlane) -> None:
        self.plane = plane
        self.revision = 0
        self.bindings: dict[tuple[str, str], tuple[int, str]] = {}
        self.limits: dict[str, float] = {}
        self.live: ScriptedStream | None = None
        self._task = asyncio.create_task(self._greet())

    async def _greet(self) -> None:
        while True:
            stream = await self.plane._new.get()
            newer = [(r, key, digest) for key, (r, digest) in self.bindings.items() if r > stream.hello.revision]
            self._tell(
                stream, [(r, key, digest) for r, key, digest in sorted(newer) if digest or stream.hello.revision], self.limits, synced=True
            )
            self.live = stream

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _tell(self, stream: ScriptedStream, changes, limits, *, synced: bool = False) -> None:
        policies = {environment: (seconds, "REFUSE") for environment, seconds in limits.items()}
        stream.tell(self.revision, *((*key, digest[7:19], digest) for _, key, digest in changes), synced=synced, policies=policies)
        update = stream.outgoing._queue[-1].update
        for binding, (revision, _, _) in zip(update.bindings, changes, strict=True):
            binding.revision = revision

    def commit(self, changes: dict[tuple[str, str], str], **limits: float) -> None:
        """One transaction, told to whoever is connected."""
        self.limits |= limits
        self.revision += 1
        for key, digest in changes.items():
            self.bindings[key] = (self.revision, digest)
        if self.live is not None and not self.live.over.is_set():
            self._tell(self.live, [(self.revision, key, digest) for key, digest in changes.items()], limits)

    def state(self) -> dict[tuple[str, str], str]:
        return {key: digest for key, (_, digest) in self.bindings.items() if digest}


class Process:
    """One life of the gateway, with a disk that outlives it."""

    def __init__(self, folder, address: str, seed: int) -> None:
        chance = random.Random(seed)
        self.seen: list[int] = []
        self.disk = Disk(folder, lambda: datetime.now(UTC))
        self.holder = Holder(lambda: datetime.now(UTC))
        self.compiler = Compiler(Secrets(environment={}))
        self.me = Me(gateway_id="g1", instance_id="018f2b1e-0000-7000-8000-000000000000", version="1")
        self.sync = Sync(
            self.holder,
            self.me,
            [Address.parse(address)],
            self.compiler,
            blobs=self.disk,
            on_flip=self._flipped,
            jitter=chance.uniform,
            pause=lambda seconds: asyncio.sleep(min(seconds, 0.002)),
        )

    async def start(self) -> None:
        await self.disk.load(self.holder, self.compiler)
        self.seen.append(self.holder.table.revision)
        self._tasks = [asyncio.create_task(self.disk.keep(self.holder)), asyncio.create_task(self.sync.run())]

    def _flipped(self) -> None:
        self.seen.append(self.holder.table.revision)
        assert BAD[0] not in {active.bound.digest for active in self.holder.table.active.values()}
        self.disk.changed()

    async def kill(self) -> None:
        """As SIGKILL would, as far as that can be played: what is dirty is not written."""
        self.disk._dirty.clear()
        for task in self._tasks:
            assert not task.done() or task.cancelled(), task
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.compiler.close()
        await self.disk.close()
        assert self.seen == sorted(self.seen), "went back"


def faults(chance: random.Random):
    def fault(digest: str, _count: int):
        data = dict([*GOOD, BAD])[digest]
        return chance.choice(
            [
                None,
                None,
                Ended(grpc.StatusCode.UNAVAILABLE, "try later"),
                Ended(grpc.StatusCode.INTERNAL, "a defect"),
                chunks(data[: len(data) // 2], size_bytes=len(data)),
            ]
        )

    return fault


async def prepare(chance: random.Random, live: ScriptedStream, prepare_id: str) -> None:
    """Asked for, and sometimes cut off amid it."""
    target = (*chance.choice(KEYS), "v", chance.choice([*GOOD, BAD])[0])
    preparing = asyncio.ensure_future(live.prepare(prepare_id, target))
    if chance.random() < 0.5:
        live.end(grpc.StatusCode.UNAVAILABLE, "cut in between")
        preparing.cancel()
    await asyncio.wait({preparing}, timeout=0.05)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)


async def step(chance: random.Random, store: Store, process: Process) -> str:
    """One thing happens; its name."""
    live = store.live
    match chance.choices(["deploy", "remove", "limit", "prepare", "end", "move", "outage", "kill", "wait"], [8, 1, 2, 4, 3, 1, 1, 1, 3])[0]:
        case "deploy":
            keys = chance.sample(KEYS, chance.randint(1, 3))
            # A bad one gets bound by force: the gateway may not serve it.
            store.commit({key: chance.choice([*GOOD, *GOOD, BAD])[0] for key in keys})
        case "remove":
            store.commit({chance.choice(KEYS): ""})
        case "limit":
            # A limit, another one, or none any more.
            store.commit({}, **{chance.choice(["staging", "production"]): chance.choice([0, 1, 30, 600])})
        case "outage":
            process.sync.outage.simulate(chance.choice([0, 0.005]))
        case "prepare" if live is not None:
            await prepare(chance, live, str(store.revision))
        case "end" if live is not None:
            live.end(chance.choice([None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]), "cut")
        case "move" if live is not None:
            live.move(0.001)
        case "kill":
            return "kill"
        case "wait":
            await asyncio.sleep(chance.random() / 100)
    return ""


@pytest.mark.parametrize("seed", SEEDS)
async def test_promise_10_whatever_happens_the_gateway_ends_on_the_stores_state(tmp_path, seed):
    chance = random.Random(seed)
    plane = ScriptedControlPlane()
    plane.snapshots = dict([*GOOD, BAD])
    plane.faulty_fetch = faults(chance)
    async with plane.running():
        store = Store(plane)
        process = Process(tmp_path / "state", plane.address, seed)
        await process.start()
        for _ in range(STEPS):
            if await step(chance, store, process) == "kill":
                await process.kill()
                process = Process(tmp_path / "state", plane.address, seed)
                await process.start()
                assert process.holder.table.revision <= store.revision
        plane.faulty_fetch = lambda _digest, _count: None
        store.commit({KEYS[0]: GOOD[0][0]})

        def table():
            return process.holder.table

        await eventually(lambda: table().revision == store.revision)
        wanted = store.state()
        # Bytes that did not come in time are refused until they come.
        await eventually(lambda: {key for key, found in wanted.items() if found == BAD[0]} == set(table().rejected), 30)
        assert {k: a.bound.digest for k, a in table().active.items() if k not in table().rejected} == {
            key: found for key, found in wanted.items() if found != BAD[0]
        }
        assert set(table().active) <= set(wanted)
        limits = {environment: policy.max_staleness_seconds for environment, policy in table().policies.items()}
        assert limits == {environment: seconds for environment, seconds in store.limits.items() if seconds}
        await process.kill()
        await store.close()
