"""A gateway's end of the Sync protocol, against a control plane that says what a test tells it to. Real connections, no real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime

import grpc
import pytest

from data_plane import sync_stream
from data_plane.holder import Holder
from data_plane.loading import Compiler
from data_plane.secrets import Secrets
from data_plane.sync import BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, Sync, backoff_seconds
from data_plane.sync_stream import Me
from pointsman.settings import Address
from tests.eventually import eventually
from tests.proxy import Proxy
from tests.sample_apps import marked
from tests.scripted_control_plane import Ended, ScriptedControlPlane, chunks

SHOP = ("shop", "production")
UNAVAILABLE = Ended(grpc.StatusCode.UNAVAILABLE, "try later")


class Gateway:
    """What of a gateway speaks with the control plane. Its secrets can be changed while it runs; it never waits between attempts."""

    def __init__(self, *addresses: str, apps: tuple[str, ...] = ()) -> None:
        self.secrets: dict[str, str] = {}
        self.pauses: list[float] = []
        self.revisions: list[int] = []
        self.holder = Holder(lambda: datetime.now(UTC))
        self.me = Me(gateway_id="g1", instance_id="018f2b1e-0000-7000-8000-000000000000", version="1", apps=apps)
        self.compiler = Compiler(Secrets(environment=self.secrets))
        self.sync = Sync(
            self.holder,
            self.me,
            [Address.parse(address) for address in addresses],
            self.compiler,
            on_flip=lambda: self.revisions.append(self.holder.table.revision),
            jitter=lambda low, _high: low,
            pause=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        # Long enough that a failure that comes at once does not keep the loop busy.
        await asyncio.sleep(min(seconds, 0.01))

    @contextlib.asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.sync.run())
        try:
            yield self
            assert not task.done(), "the gateway gave up on its control plane"
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.compiler.close()

    def serves(self) -> dict[tuple[str, str], str]:
        return {key: active.bound.release for key, active in self.holder.table.active.items()}


@pytest.fixture
async def plane():
    async with ScriptedControlPlane().running() as plane:
        yield plane


@pytest.fixture
async def gateway(plane):
    async with Gateway(plane.address).running() as gateway:
        yield gateway


def needs_secret(name="KEY"):
    config = marked("v9", "http://127.0.0.1:1/")
    config["tools"][0]["http"]["headers"] = {"Authorization": f"Bearer ${{secret:{name}}}"}
    return config


async def test_the_first_sync(plane, gateway):
    v1 = plane.release(marked("v1"))
    stream = await plane.stream()
    hello = stream.hello
    assert (hello.gateway_id, hello.revision, hello.store_id, list(hello.held_digests)) == ("g1", 0, "", [])
    assert not gateway.holder.table.synced
    applied = await stream.update(7, (*SHOP, "v1", v1), ("shop", "staging", "v1", v1), ("forum", "staging", "v1", v1), synced=True)
    assert (applied.revision, list(applied.rejections)) == (7, [])
    assert gateway.serves() == {SHOP: "v1", ("shop", "staging"): "v1", ("forum", "staging"): "v1"}
    assert gateway.holder.table.synced
    # However many bindings share it.
    assert plane.fetches == {v1: 1}
    # What is held is said before what it makes possible.
    assert stream.order[:2] == ["held", "applied"]
    assert list((await stream.heard("held")).added) == [v1]


async def test_a_stream_that_is_cut_is_resumed_from_where_it_was(plane, gateway):
    v1 = plane.release(marked("v1"))
    stream = await plane.stream()
    await stream.update(7, (*SHOP, "v1", v1), synced=True)
    stream.end(grpc.StatusCode.UNAVAILABLE, "going away")
    stream = await plane.stream()
    assert (stream.hello.revision, stream.hello.store_id, list(stream.hello.held_digests)) == (7, "store-1", [v1])
    # An end without an error is an end too.
    stream.end()
    stream = await plane.stream()
    await stream.update(8, ("shop", "staging", "v1", v1), synced=True)
    assert gateway.serves() == {SHOP: "v1", ("shop", "staging"): "v1"}
    assert plane.fetches == {v1: 1}


async def test_promise_05_what_was_prepared_flips_without_a_fetch(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    assert list((await stream.prepare("p1", (*SHOP, "v2", v2), ("shop", "staging", "v2", v2))).rejections) == []
    assert gateway.serves() == {SHOP: "v1"}
    assert stream.order[-2:] == ["held", "prepared"]
    plane.snapshots.clear()
    await stream.update(2, (*SHOP, "v2", v2))
    await stream.update(3, (*SHOP, "v1", v1))
    assert gateway.serves() == {SHOP: "v1"}
    assert plane.fetches == {v1: 1, v2: 1}


async def test_a_flip_to_what_is_held_happens_where_the_message_arrives(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    await stream.update(2, (*SHOP, "v2", v2))
    turns = []
    take = sync_stream.Stream._take

    def taken(self, message) -> None:
        before = gateway.serves()[SHOP]
        take(self, message)
        turns.append((before, gateway.serves()[SHOP]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_stream.Stream, "_take", taken)
        await stream.update(3, (*SHOP, "v1", v1))
    assert turns == [("v2", "v1")]


async def test_promise_02_all_bindings_of_an_update_flip_together(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    apps = [f"app-{n}" for n in range(50)]
    stream = await plane.stream()
    await stream.update(1, *((app, "production", "v1", v1) for app in apps), synced=True)
    tables = []
    flip = gateway.holder.flip
    gateway.holder.flip = lambda change: (
        tables.append(set(gateway.serves().values())),
        flip(change),
        tables.append(set(gateway.serves().values())),
    )
    await stream.update(2, *((app, "production", "v2", v2) for app in apps))
    assert tables == [{"v1"}, {"v2"}]


async def test_a_release_that_cannot_run_here_is_rejected_and_the_one_before_goes_on(plane, gateway):
    v1, v9 = plane.release(marked("v1")), plane.release(needs_secret())
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    prepared = await stream.prepare("p1", (*SHOP, "v9", v9))
    assert [(r.app, r.environment, r.digest) for r in prepared.rejections] == [(*SHOP, v9)]
    assert "secret KEY is missing" in prepared.rejections[0].reason
    applied = await stream.update(2, (*SHOP, "v9", v9), ("forum", "production", "v1", v1))
    assert (applied.revision, [r.digest for r in applied.rejections]) == (2, [v9])
    assert gateway.serves() == {SHOP: "v1", ("forum", "production"): "v1"}
    assert gateway.holder.table.ready
    # It is still told with later ones, and asked for again by the next stream.
    assert [r.digest for r in (await stream.update(3, ("forum", "production", "v1", v1))).rejections] == [v9]
    gateway.secrets["POINTSMAN_SECRET_KEY"] = "there now"
    stream.end()
    stream = await plane.stream()
    assert stream.hello.revision == 1
    stream.tell(2, (*SHOP, "v9", v9))
    assert list((await stream.update(3, ("forum", "production", "v1", v1), synced=True)).rejections) == []
    assert gateway.serves()[SHOP] == "v9"


async def test_nothing_to_go_on_with_is_not_ready(plane, gateway):
    v9 = plane.release(needs_secret())
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v9", v9), synced=True)
    assert gateway.holder.table.synced
    assert not gateway.holder.table.ready


async def test_a_release_that_the_control_plane_does_not_have_is_rejected(plane, gateway):
    stream = await plane.stream()
    for digest in ("sha256:" + "0" * 64, "not a digest"):
        rejected = (await stream.prepare(digest, (*SHOP, "v1", digest))).rejections
        assert "no release with digest" in rejected[0].reason


async def test_a_fetch_that_fails_is_tried_again_on_the_same_stream(plane, gateway):
    v1 = plane.release(marked("v1"))
    plane.faulty_fetch = lambda _digest, count: UNAVAILABLE if count < 4 else None
    stream = await plane.stream()
    assert list((await stream.update(1, (*SHOP, "v1", v1), synced=True)).rejections) == []
    assert plane.fetches == {v1: 4}
    assert len(plane.streams) == 1
    assert gateway.pauses == sorted(gateway.pauses)


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
async def test_promise_01_damaged_bytes_are_fetched_again_and_never_served(plane, gateway, damage):
    config = marked("v1")
    v1 = plane.release(config)
    data = plane.snapshots[v1]
    flipped = bytes([data[0] ^ 1]) + data[1:]
    damaged = {
        "flipped": chunks(flipped),
        "short": chunks(data[:-1], size_bytes=len(data)),
        "long": chunks(data + b"x", size_bytes=len(data)),
        "empty": [],
    }
    plane.faulty_fetch = lambda _digest, count: damaged[damage] if count == 1 else None
    stream = await plane.stream()
    assert list((await stream.update(1, (*SHOP, "v1", v1), synced=True)).rejections) == []
    v2 = plane.release(marked("v2"))
    plane.faulty_fetch = lambda _digest, _count: damaged[damage]
    rejected = (await stream.update(2, (*SHOP, "v2", v2))).rejections
    assert [r.digest for r in rejected] == [v2]
    assert "damaged" in rejected[0].reason
    assert gateway.serves() == {SHOP: "v1"}


async def test_a_fetch_that_hangs_is_overtaken(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    never = asyncio.Event()
    plane.faulty_fetch = lambda _digest, _count: never
    stream.tell(2, (*SHOP, "v2", v2))
    await eventually(lambda: plane.fetches[v2] == 1)
    assert (await stream.update(3, (*SHOP, "v1", v1))).revision == 3
    assert gateway.serves() == {SHOP: "v1"}
    assert not gateway.holder.loading
    never.set()


async def test_what_was_given_up_is_loaded_when_it_is_wanted_again(plane, gateway, monkeypatch):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    never = asyncio.Event()
    plane.faulty_fetch = lambda _digest, count: never if count == 1 else None
    stream.tell(2, (*SHOP, "v2", v2))
    await eventually(lambda: plane.fetches[v2] == 1)
    take, held_back = sync_stream.Stream._take, []

    def both_at_once(self, message) -> None:
        """Before anything that the first of them cancels has had its turn."""
        held_back.append(message)
        if len(held_back) == 2:
            for one in held_back:
                take(self, one)

    monkeypatch.setattr(sync_stream.Stream, "_take", both_at_once)
    stream.tell(3, (*SHOP, "v1", v1))
    stream.tell(4, (*SHOP, "v2", v2))
    await stream.applied(4)
    assert gateway.serves() == {SHOP: "v2"}
    never.set()


async def test_what_waits_for_bytes_that_do_not_come_goes_on_without_them_and_takes_them_when_they_come(plane, gateway, monkeypatch):
    monkeypatch.setattr(sync_stream, "PATIENCE_SECONDS", 0.1)
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    comes = asyncio.Event()
    plane.faulty_fetch = lambda _digest, _count: comes
    applied = await stream.update(2, (*SHOP, "v2", v2), ("forum", "production", "v1", v1))
    assert [(r.digest, "still being fetched" in r.reason) for r in applied.rejections] == [(v2, True)]
    assert gateway.serves() == {SHOP: "v1", ("forum", "production"): "v1"}
    comes.set()
    assert list((await stream.heard("applied")).rejections) == []
    assert gateway.serves() == {SHOP: "v2", ("forum", "production"): "v1"}
    assert plane.fetches[v2] == 1


async def test_two_stores_are_never_mixed(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(7, (*SHOP, "v1", v1), synced=True)
    plane.store_id = "store-2"
    stream.end()
    for _ in range(3):
        stream = await plane.stream()
        assert stream.hello.store_id == "store-1"
        stream.tell(99, (*SHOP, "v2", v2), synced=True)
    assert "store-2" in gateway.sync.problem
    assert not gateway.sync.connected
    plane.store_id = "store-1"
    await eventually(lambda: gateway.sync.connected)
    assert (gateway.serves(), gateway.holder.table.revision) == ({SHOP: "v1"}, 7)
    assert v2 not in plane.fetches


async def test_a_control_plane_that_does_not_welcome_is_not_believed(plane, gateway):
    plane.welcoming = False
    stream = await plane.stream()
    stream.end()
    v1 = plane.release(marked("v1"))
    stream = await plane.stream()
    stream.tell(1, (*SHOP, "v1", v1), synced=True)
    await plane.stream()
    assert not gateway.holder.table.synced


async def test_promise_10_revisions_never_go_back(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(4, (*SHOP, "v1", v1), synced=True)
    await stream.update(7, (*SHOP, "v2", v2))
    stream.tell(5, (*SHOP, "v1", v1))
    await stream.update(8, ("forum", "production", "v1", v1))
    stream.tell(6)
    await stream.update(9)
    assert gateway.serves() == {SHOP: "v2", ("forum", "production"): "v1"}
    assert gateway.revisions == sorted(gateway.revisions)


async def test_a_binding_that_is_gone(plane, gateway):
    v1 = plane.release(marked("v1"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), ("forum", "production", "v1", v1), synced=True)
    await stream.update(2, (*SHOP, "", ""))
    assert gateway.serves() == {("forum", "production"): "v1"}


async def test_a_silent_control_plane_is_left(plane):
    plane.heartbeat_seconds = 0.05
    async with Proxy(plane.address) as proxy, Gateway(proxy.address).running() as gateway:
        stream = await plane.stream()
        v1 = plane.release(marked("v1"))
        await stream.update(1, (*SHOP, "v1", v1), synced=True)
        await stream.heard("heartbeat")
        proxy.deaf = True
        await eventually(lambda: "said nothing" in gateway.sync.problem)
        assert gateway.serves() == {SHOP: "v1"}
        proxy.deaf = False
        proxy.reset_connections()
        while True:
            stream = await plane.stream()
            stream.tell(2, synced=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await stream.heard("applied")
                    break
        assert gateway.holder.table.revision == 2


async def test_a_fetch_does_not_hide_a_silent_control_plane(plane):
    plane.heartbeat_seconds = 0.05
    never = asyncio.Event()
    plane.faulty_fetch = lambda _digest, _count: never
    async with Gateway(plane.address).running() as gateway:
        stream = await plane.stream()
        v1 = plane.release(marked("v1"))
        stream.tell(1, (*SHOP, "v1", v1), synced=True)
        await eventually(lambda: plane.fetches[v1])
        await eventually(lambda: "said nothing" in gateway.sync.problem)
        never.set()


async def test_asked_to_move_it_goes_to_the_next_replica(plane):
    async with ScriptedControlPlane().running() as other, Gateway(plane.address, other.address).running() as gateway:
        v1 = plane.release(marked("v1"))
        stream = await plane.stream()
        await stream.update(3, (*SHOP, "v1", v1), synced=True)
        stream.move(30)
        stream = await other.stream()
        assert stream.hello.revision == 3
        assert gateway.sync.problem == ""
        stream.move(30)
        assert (await plane.stream()).hello.revision == 3


async def test_what_comes_after_move_is_not_missed(plane):
    async with ScriptedControlPlane().running() as other:
        gateway = Gateway(plane.address, other.address)
        gateway.sync.jitter = lambda _low, high: high
        async with gateway.running():
            v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
            stream = await plane.stream()
            await stream.update(3, (*SHOP, "v1", v1), synced=True)
            stream.move(0.5)
            await stream.update(4, (*SHOP, "v2", v2))
            assert not stream.over.is_set()
            # The control plane ends it before the time is over: what is left of it is still waited for.
            stream.end(grpc.StatusCode.UNAVAILABLE, "shutting down")
            assert (await other.stream()).hello.revision == 4
            assert 0 < gateway.pauses[-1] <= 0.5


async def test_a_replica_that_is_gone_is_passed_over_at_once(plane):
    async with Gateway("127.0.0.1:1", plane.address).running() as gateway:
        await plane.stream()
        assert len(gateway.pauses) == 1


async def test_a_control_plane_that_comes_back_is_found(plane):
    async with ScriptedControlPlane().running() as other:
        address = other.address
    async with Gateway(address).running() as gateway:
        await eventually(lambda: len(gateway.pauses) >= 3)
        assert "UNAVAILABLE" in gateway.sync.problem
        async with other.running(address):
            await other.stream()


async def test_a_gateway_that_is_stopped_stops_however_far_it_has_come():
    async with ScriptedControlPlane().running() as gone:
        address = gone.address
    chance = random.Random(7)
    gateways = [Gateway(address) for _ in range(400)]
    for gateway in gateways:
        task = asyncio.create_task(gateway.sync.run())
        # Into the moment in which gRPC starts a call and loses the word that the caller is to end: one of 200.
        await asyncio.sleep(chance.random() * 0.02)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled(), "it goes on"
        gateway.compiler.close()


def test_backoff_is_short_until_all_replicas_were_tried_then_doubles_up_to_a_limit():
    def seconds(failures, addresses):
        return backoff_seconds(failures, addresses, lambda _low, high: high)

    assert [seconds(n, 1) for n in range(1, 5)] == [BACKOFF_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert [seconds(n, 3) for n in (1, 2, 3, 4)] == [BACKOFF_SECONDS] * 3 + [2 * BACKOFF_SECONDS]
    assert seconds(10_000, 1) == MAX_BACKOFF_SECONDS
    assert backoff_seconds(1, 1, lambda low, _high: low) == BACKOFF_SECONDS / 2


async def test_a_defect_ends_a_conversation_and_not_the_gateway(plane, gateway, monkeypatch):
    v1 = plane.release(marked("v1"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)

    def broken(self) -> None:
        raise KeyError("a defect")

    # Once on the way of a message, once in a part that runs beside it.
    for method in ("_flip_or_load", "_say_held"):
        with monkeypatch.context() as patch:
            patch.setattr(sync_stream.Stream, method, broken)
            if method == "_say_held":
                stream.outgoing.put_nowait(sync_stream.pb.SyncResponse(prepare=sync_stream.pb.SyncResponse.Prepare(prepare_id="p")))
            else:
                stream.tell(9, (*SHOP, "v1", v1))
            stream = await plane.stream()
            assert gateway.serves() == {SHOP: "v1"}
    await stream.update(2, ("forum", "production", "v1", v1), synced=True)
    assert gateway.serves() == {SHOP: "v1", ("forum", "production"): "v1"}
