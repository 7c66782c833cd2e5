"""The clock on the wall of a control plane jumps by years, back and forth: rollouts, streams and history go by revisions, and hold."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

from google.protobuf import json_format

from control_plane.gateways import Gateways
from control_plane.hub import Hub
from control_plane.rpc.gateways import GatewayServicer
from control_plane.service.apps import Apps
from control_plane.service.audit import Audit
from control_plane.service.calls import Call, utc_now
from control_plane.service.deployments import Deployments, Options
from control_plane.service.executions import Executions
from control_plane.service.paging import PageRequest
from control_plane.service.releases import Releases
from control_plane.service.snapshots import snapshot_of
from control_plane.storage import open_executions, open_store
from control_plane.tail import Tail
from pointsman.serving import GrpcServer
from pointsman.settings import Address
from pointsman.v1 import gateways_pb2_grpc
from pointsman.v1.config_pb2 import AppConfig
from tests.sample_apps import marked
from tests.simulated_gateway import SimulatedGateway

ANN = Call(actor="ann")
TAGS = ("v1", "v2", "v3", "v4")
JUMPS = (timedelta(days=400), timedelta(days=-900), timedelta(seconds=-1), timedelta(hours=3), timedelta(days=500))


class JumpingClock:
    """The real one, and a jump."""

    def __init__(self) -> None:
        self.jump = timedelta()

    def __call__(self):
        return utc_now() + self.jump


class Plane:
    """A control plane in this process, by a clock of the test's."""

    def __init__(self, store, kept) -> None:
        self.clock = JumpingClock()
        self.hub = Hub(store)
        self.gateways = Gateways(self.clock, prepare_timeout_seconds=5)
        self.deployments = Deployments(store, self.gateways, self.clock)
        self.releases = Releases(store, self.deployments, self.clock)
        self.apps = Apps(store, self.clock)
        self.tail = Tail(kept)
        executions = Executions(store, kept, self.tail, self.clock)
        self.server = GrpcServer()
        servicer = GatewayServicer(self.gateways, self.hub, self.releases, executions, Audit(store, self.clock), store.store_id)
        gateways_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, self.server.services)

    async def deploy(self, tag):
        return await self.deployments.deploy("shop", "production", tag, Options(), ANN)


@contextlib.asynccontextmanager
async def running_plane(folder):
    url = f"sqlite:///{folder}/pointsman.db"
    store = await open_store(url)
    kept = await asyncio.to_thread(open_executions, url, store.store_id)
    plane = Plane(store, kept)
    await plane.hub.start()
    await plane.server.start(Address("127.0.0.1", 0), ["pointsman.v1.GatewayService"])
    try:
        await plane.apps.create("shop", "", ANN)
        for tag in TAGS:
            config = snapshot_of(json_format.ParseDict(marked(tag), AppConfig()))
            await plane.releases.create(app="shop", tag=tag, description="", config=config, deploy_to="", call=ANN)
        yield plane
    finally:
        await plane.hub.close()
        await plane.server.stop(0)
        plane.tail.close()
        await kept.close()
        await store.close()


async def test_promise_04_and_07_hold_while_the_clock_jumps(tmp_path):
    async with running_plane(tmp_path) as plane, contextlib.AsyncExitStack() as running:
        members = [SimulatedGateway(f"g{number}") for number in range(3)]
        for member in members:
            await running.enter_async_context(member.connected(str(plane.server.address)))
        live, last = [], 0
        for number, jump in enumerate(JUMPS):
            # Also while gateways prepare, who then find another year.
            plane.clock.jump = jump
            deploying = asyncio.create_task(plane.deploy(TAGS[number % len(TAGS)]))
            await asyncio.sleep(0)
            plane.clock.jump = -jump
            deployed = await deploying
            assert (deployed.rollout.total, deployed.rollout.applied) == (3, 3)
            assert deployed.rollout.seconds >= 0
            assert deployed.rollout.revision > last
            last = deployed.rollout.revision
            live.append(TAGS[number % len(TAGS)])
            assert {member.bindings["shop", "production"] for member in members} == {live[-1]}
            # Nobody was taken for silent, and nobody is stale.
            assert all(member.connected_now for member in members)
        history = (await plane.deployments.history("shop", "production", PageRequest())).items
        assert [deployment.release for deployment in history] == live[::-1]
        for wanted in (live[-2], live[-3]):
            plane.clock.jump -= timedelta(days=1000)
            rolled = await plane.deployments.rollback("shop", "production", "", Options(), ANN)
            assert rolled.bindings[0].deployment.release == wanted
            assert rolled.rollout.applied == 3
