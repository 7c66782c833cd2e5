"""Several control planes on one PostgreSQL act as one: each deploy asks, and counts, the gateways of all."""

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from pointsman.v1 import gateways_pb2
from tests.clients import control_plane_client, gateway_client, refused
from tests.eventually import eventually
from tests.postgres_server import MISSING, available, running_postgres
from tests.processes import start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.sample_apps import marked
from tests.simulated_gateway import SimulatedGateway
from tests.test_promise_10_never_start_over import next_binding, until_synced, watching


@pytest.fixture
def database(postgres_server):
    return postgres_server.new_database()


@pytest.fixture
def url(postgres_server, database):
    return postgres_server.url(database)


class Replica:
    """One control plane: its process and its stubs."""

    def __init__(self, server, plane):
        self.server = server
        self.plane = plane

    async def processes(self):
        """All that it lists, over all pages."""
        found, token = [], ""
        while True:
            page = await self.plane.gateways.ListGateways(gateways_pb2.ListGatewaysRequest(page_size=2, page_token=token))
            found += page.gateways
            token = page.next_page_token
            if not token:
                return found

    async def listed(self):
        """Gateway id -> Gateway."""
        return {gateway.gateway_id: gateway for gateway in await self.processes()}

    async def sees(self, *gateway_ids):
        """Waits until it lists these as connected, and no others."""

        async def so():
            return {name for name, gateway in (await self.listed()).items() if gateway.connected} == set(gateway_ids)

        await eventually(so)


@contextlib.asynccontextmanager
async def running_replica(folder, url, *flags):
    async with start_control_plane(folder, "--store", url, *flags) as server, control_plane_client(server) as plane:
        yield Replica(server, plane)


@pytest.fixture
async def replicas(tmp_path, url):
    """Two replicas that a test may kill."""
    async with running_replica(tmp_path, url) as a, running_replica(tmp_path, url) as b:
        yield a, b


@pytest.fixture(scope="session")
async def pair(postgres_server, tmp_path_factory):
    """Two replicas and their database for tests that leave them as they are: each brings its own apps and gateways."""
    database, folder = postgres_server.new_database(), tmp_path_factory.mktemp("replicas")
    url = postgres_server.url(database)
    async with running_replica(folder, url) as a, running_replica(folder, url) as b:
        yield a, b, database


@contextlib.asynccontextmanager
async def connected(replica, gateway_id, *, kind=SimulatedGateway, **more):
    async with kind(gateway_id, **more).connected(replica.server.grpc) as gateway:
        yield gateway


class SilentGateway(SimulatedGateway):
    """Never says whether it is prepared."""

    def _prepare(self, prepare):
        self.prepared += [target.digest for target in prepare.targets]
        return []


async def test_promise_04_a_deploy_through_one_replica_counts_the_gateways_of_all(tmp_path, url):
    async with contextlib.AsyncExitStack() as running:
        planes = [await running.enter_async_context(running_replica(tmp_path, url)) for _ in range(3)]
        gates = [
            await running.enter_async_context(connected(replica, f"g{number}{letter}"))
            for number, replica in enumerate(planes)
            for letter in "xy"
        ]
        real = await running.enter_async_context(start_gateway(tmp_path, planes[1].server.grpc, gateway_id="real"))
        gate = await running.enter_async_context(gateway_client(real))
        everyone = [gateway.gateway_id for gateway in gates] + ["real"]
        for replica in planes:
            await replica.sees(*everyone)
        app = await planes[0].plane.create_app(v1=marked("v1"), v2=marked("v2"))
        for tag, replica in (("v1", planes[0]), ("v2", planes[2]), ("v1", planes[1])):
            deployed = await replica.plane.deploy(app, tag)
            rollout = deployed.rollout
            assert (rollout.gateways_total, rollout.gateways_applied) == (7, 7)
            assert (list(rollout.gateways_pending), list(rollout.gateways_rejected)) == ([], [])
            assert {gateway.bindings[app, "production"] for gateway in gates} == {tag}
            assert (await gate.trigger(app)).release == tag
            for other in planes:
                listed = await other.listed()
                assert {gateway.revision for gateway in listed.values()} == {rollout.revision}
                assert {gateway.bindings[0].release for gateway in listed.values()} == {tag}


async def test_a_share_of_the_gateways_moves_to_another_replica_and_misses_nothing(tmp_path, url):
    async with contextlib.AsyncExitStack() as running:
        a, b = [await running.enter_async_context(running_replica(tmp_path, url)) for _ in range(2)]
        both = f"{a.server.grpc},{b.server.grpc}"
        names = ["one", "two", "three"]
        started = [await running.enter_async_context(start_gateway(tmp_path, both, gateway_id=name)) for name in names]
        gates = [await running.enter_async_context(gateway_client(gateway)) for gateway in started]
        await a.sees(*names)
        since = {name: gateway.connect_time.ToDatetime() for name, gateway in (await a.listed()).items()}
        app = await a.plane.create_app(v1=marked("v1"), v2=marked("v2"))
        await a.plane.deploy(app, "v1")
        request = gateways_pb2.RebalanceGatewaysRequest(percent=50, within=Duration(nanos=200_000_000))
        moved = await a.plane.gateways.RebalanceGateways(request)
        assert (moved.gateways_connected, len(moved.gateways_moving)) == (3, 2)
        tags = itertools.cycle(("v2", "v1"))

        async def gone():
            """Deploys go on meanwhile; who has moved is connected still, since a later moment, and was at no time asked twice."""
            tag = next(tags)
            rollout = (await b.plane.deploy(app, tag)).rollout
            assert (rollout.gateways_pending, rollout.gateways_rejected) == ([], [])
            assert {(await gate.trigger(app)).release for gate in gates} <= {"v1", "v2"}
            listed = await b.listed()
            later = {name for name, gateway in listed.items() if gateway.connected and gateway.connect_time.ToDatetime() > since[name]}
            return later == set(moved.gateways_moving)

        await eventually(gone)
        rollout = (await a.plane.deploy(app, next(tags))).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (3, 3)
        # A second call finds only those that stayed.
        assert (await a.plane.gateways.RebalanceGateways(request)).gateways_connected == 1


async def test_a_rebalance_takes_a_share_and_a_time_that_make_sense(pair):
    a, _, _ = pair
    for wrong in ({}, {"percent": 101}, {"percent": 10, "within": Duration(seconds=301)}, {"percent": 10, "within": Duration(seconds=-1)}):
        refusal = await refused(a.plane.gateways.RebalanceGateways(gateways_pb2.RebalanceGatewaysRequest(**wrong)))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_promise_05_a_gateway_at_another_replica_can_veto(pair):
    a, b, _ = pair
    refuse = set()
    async with connected(a, "at-a") as here, connected(b, "at-b", refuse=lambda digest: "no secret KEY" if digest in refuse else ""):
        await a.sees("at-a", "at-b")
        app = await a.plane.create_app(v1=marked("v1"))
        before = (await a.plane.deploy(app, "v1")).binding
        bad = await a.plane.create_release(app, "v2", marked("v2"))
        refuse.add(bad.digest)
        refusal = await refused(a.plane.deploy(app, "v2"))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "RELEASE_REJECTED")
        assert refusal.metadata["gateways"] == "at-b"
        assert "no secret KEY" in refusal.metadata["causes"]
        assert await a.plane.binding(app) == await b.plane.binding(app) == before
        assert here.bindings[app, "production"] == "v1"
        assert here.history[-1] == before.revision


async def test_promise_04_a_stuck_gateway_at_another_replica_is_pending(pair):
    a, b, _ = pair
    async with connected(a, "at-a"), connected(b, "at-b"), connected(b, "stuck", apply=False):
        await a.sees("at-a", "at-b", "stuck")
        app = await a.plane.create_app(v1=marked("v1"))
        started = time.monotonic()
        rollout = (await a.plane.deploy(app, "v1", wait=Duration(seconds=1))).rollout
        assert 0.9 < time.monotonic() - started < 3
        assert (rollout.gateways_total, rollout.gateways_applied, list(rollout.gateways_pending)) == (3, 2, ["stuck"])
        unwaited = (await b.plane.deploy(app, "v1", wait=Duration())).rollout
        assert (unwaited.gateways_total, unwaited.gateways_applied, list(unwaited.gateways_pending)) == (3, 2, ["stuck"])


async def test_a_gateway_that_went_is_listed_as_such_by_every_replica_and_one_that_moved_only_once(pair):
    a, b, _ = pair
    moving = SimulatedGateway("moving")
    async with connected(b, "leaving"), moving.connected(b.server.grpc):
        await a.sees("leaving", "moving")
    async with moving.connected(a.server.grpc):
        for replica in (a, b):
            await replica.sees("moving")
            listed = [(gateway.gateway_id, gateway.connected) for gateway in await replica.processes()]
            assert [one for one in listed if one[0] in ("leaving", "moving")] == [("leaving", False), ("moving", True)]


async def test_a_stream_that_its_gateway_has_left_without_a_word_ends_when_it_comes_to_another_replica(pair):
    a, b, _ = pair
    before, after = SimulatedGateway("moving"), SimulatedGateway("moving")
    after.instance_id = before.instance_id
    async with Proxy(a.server.grpc) as proxy, connected(a, "at-a"), connected(b, "at-b"):
        await a.sees("at-a", "at-b")
        app = await a.plane.create_app(v1=marked("v1"))
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with before.connected(proxy.address):
                await b.sees("at-a", "at-b", "moving")
                proxy.deaf = True
                async with after.connected(b.server.grpc):
                    started = time.monotonic()
                    rollout = (await a.plane.deploy(app, "v1")).rollout
                    assert (rollout.gateways_total, rollout.gateways_applied) == (3, 3)
                    assert time.monotonic() - started < 2


async def test_a_gateway_that_was_started_anew_at_another_replica_is_listed_once(pair):
    a, b, _ = pair
    async with connected(a, "at-a"), connected(b, "restarted"):
        await a.sees("at-a", "restarted")
        old = (await a.listed())["restarted"].instance_id
    async with connected(a, "restarted"):
        for replica in (a, b):
            await replica.sees("restarted")

            async def forgotten(replica=replica):
                found = [gateway for gateway in await replica.processes() if gateway.gateway_id == "restarted"]
                return len(found) == 1 and found[0].instance_id != old

            await eventually(forgotten)


async def test_a_replica_killed_while_it_prepares_is_soon_not_waited_for(replicas):
    a, b = replicas
    async with connected(a, "at-a"):
        silent = SilentGateway("silent")
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with silent.connected(b.server.grpc):
                await a.sees("at-a", "silent")
                app = await a.plane.create_app(v1=marked("v1"))
                deploying = asyncio.create_task(a.plane.deploy(app, "v1", wait=Duration(seconds=30)))
                await eventually(lambda: silent.prepared)
                await b.server.kill()
                killed = time.monotonic()
        rollout = (await deploying).rollout
        assert time.monotonic() - killed < 6
        assert (rollout.gateways_total, rollout.gateways_applied) == (1, 1)
        await a.sees("at-a")


async def test_a_replica_that_hangs_is_soon_not_waited_for_and_catches_up_when_it_goes_on(replicas):
    a, b = replicas
    async with connected(a, "at-a"), connected(b, "at-b") as there:
        await a.sees("at-a", "at-b")
        app = await a.plane.create_app(v1=marked("v1"))
        os.kill(b.server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            rollout = (await a.plane.deploy(app, "v1", wait=Duration(seconds=30))).rollout
            assert time.monotonic() - started < 6
            assert (rollout.gateways_total, rollout.gateways_applied) == (1, 1)
        finally:
            os.kill(b.server.pid, signal.SIGCONT)
        await eventually(lambda: there.bindings.get((app, "production")) == "v1")
        await a.sees("at-a", "at-b")


async def test_force_asks_no_replica_and_the_rollout_counts_all_the_same(pair):
    a, b, _ = pair
    asked = []

    def refuse(digest):
        asked.append(digest)
        return "no"

    async with connected(b, "at-b", refuse=refuse):
        await a.sees("at-b")
        app = await a.plane.create_app(v1=marked("v1"))
        assert (await refused(a.plane.deploy(app, "v1", validate_only=True))).reason == "RELEASE_REJECTED"
        assert asked
        asked.clear()
        rollout = (await a.plane.deploy(app, "v1", force=True)).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (1, 1)
        assert asked == []


async def test_a_replica_that_stops_leaves_and_is_not_waited_for_at_all(replicas, postgres_server, database):
    a, b = replicas
    async with connected(a, "at-a"):
        async with connected(b, "at-b"):
            await a.sees("at-a", "at-b")
        await b.server.stop()
        assert len(postgres_server.execute("SELECT address FROM replicas", database)) == 1
        app = await a.plane.create_app(v1=marked("v1"))
        started = time.monotonic()
        rollout = (await a.plane.deploy(app, "v1")).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (1, 1)
        assert time.monotonic() - started < 1


async def test_a_watcher_at_another_replica_sees_a_deploy(pair):
    a, b, _ = pair
    app = await a.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await a.plane.deploy(app, "v1")
    async with watching(b.plane, app=app) as call:
        assert (await until_synced(call))[0] == {"production": "v1"}
        deployed = await a.plane.deploy(app, "v2")
        seen = await next_binding(call)
        assert (seen.release, seen.revision) == ("v2", deployed.binding.revision)


async def test_replicas_that_start_together_on_an_empty_database_know_each_other(tmp_path, url):
    async with contextlib.AsyncExitStack() as running:
        servers = await asyncio.gather(*(running.enter_async_context(start_control_plane(tmp_path, "--store", url)) for _ in range(3)))
        planes = [Replica(server, await running.enter_async_context(control_plane_client(server))) for server in servers]
        for number, replica in enumerate(planes):
            await running.enter_async_context(connected(replica, f"g{number}"))
        for replica in planes:
            await replica.sees("g0", "g1", "g2")


@pytest.mark.skipif(not available(), reason=MISSING)
async def test_the_database_goes_and_comes_back(tmp_path):
    with running_postgres("fsync=off") as postgres:
        async with running_replica(tmp_path, postgres.url()) as a, running_replica(tmp_path, postgres.url()) as b:
            async with connected(a, "at-a"), connected(b, "at-b"):
                await a.sees("at-a", "at-b")
                app = await a.plane.create_app(v1=marked("v1"), v2=marked("v2"))
                await a.plane.deploy(app, "v1")
                postgres.kill()
                for replica in (a, b):
                    refusal = await refused(replica.plane.deploy(app, "v2"))
                    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
                postgres.start()

                async def whole_again():
                    listed = await a.listed(), await b.listed()
                    return all(set(found) == {"at-a", "at-b"} for found in listed)

                await eventually(whole_again, 30)
                rollout = (await a.plane.deploy(app, "v2")).rollout
                assert (rollout.gateways_total, rollout.gateways_applied) == (2, 2)


async def test_what_does_not_fit_into_a_notification_is_said_all_the_same(pair, postgres_server):
    a, b, database = pair
    reason = "a long story, \0 ünd ✓: " * 100
    async with contextlib.AsyncExitStack() as running:
        for number in range(10):
            await running.enter_async_context(connected(b, f"g{number}", refuse=lambda _digest: reason))
        await a.sees(*(f"g{number}" for number in range(10)))
        app = await a.plane.create_app(v1=marked("v1"))
        refusal = await refused(a.plane.deploy(app, "v1"))
        assert refusal.reason == "RELEASE_REJECTED"
        assert refusal.metadata["gateways"] == ", ".join(f"g{number}" for number in range(10))
        assert "g4: a long story, \0 ünd ✓" in refusal.metadata["causes"]
        assert refusal.metadata["causes"].endswith("and 5 more gateways")
        kept = postgres_server.execute("SELECT max(length(message)) FROM replica_messages", database)
        assert kept[0][0] > 8000


async def test_replicas_that_were_held_up_together_do_not_take_each_other_for_dead(replicas, postgres_server, database):
    a, b = replicas
    rows = "SELECT count(*) FROM replicas WHERE beat_time {} now() - interval '3 seconds'"

    async def count(comparison, wanted):
        return postgres_server.execute(rows.format(comparison), database)[0][0] == wanted

    async with connected(b, "at-b"):
        await a.sees("at-b")
        app = await a.plane.create_app(v1=marked("v1"))
        for replica in replicas:
            os.kill(replica.server.pid, signal.SIGSTOP)
        try:
            await eventually(functools.partial(count, "<", 2))
            os.kill(a.server.pid, signal.SIGCONT)
            # From now on a knows that nothing was heard of b for as long as one who is dead is not heard of.
            await eventually(functools.partial(count, ">", 1))
        finally:
            for replica in replicas:
                os.kill(replica.server.pid, signal.SIGCONT)
        deployed = await a.plane.deploy(app, "v1")
        assert (deployed.rollout.gateways_total, deployed.rollout.gateways_applied) == (1, 1)
