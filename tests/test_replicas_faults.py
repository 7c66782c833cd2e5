"""Replicas are killed and come back while all of them deploy: what was acknowledged stands, and every gateway ends on it."""

import asyncio
import contextlib
import random

import grpc

from tests.clients import apps_pb2, control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked

KILLS = 2
APPS = 4


class Caller:
    """Deploys v1 and v2 of its app in turn, through any replica; `acknowledged` is the newest revision that it was told."""

    def __init__(self, app, planes, chance):
        self.app = app
        self.acknowledged = 0
        self.count = 0
        self.refused = []
        self._planes = planes
        self._chance = chance

    async def deploy(self):
        try:
            deployed = await self._chance.choice(self._planes).deploy(self.app, self._chance.choice(["v1", "v2"]))
        except grpc.aio.AioRpcError as error:
            # A channel to a replica that is down backs off by itself; the next choice may be another.
            self.refused.append(error.code())
            return
        assert deployed.binding.revision >= self.acknowledged
        self.acknowledged = deployed.binding.revision
        rollout = deployed.rollout
        assert rollout.gateways_applied == rollout.gateways_total - len(rollout.gateways_pending)
        self.count += 1

    async def until(self, stop):
        while not stop.is_set():
            await self.deploy()


async def test_promise_05_replicas_that_are_killed_and_return_leave_every_gateway_on_what_was_acknowledged(tmp_path, postgres_server):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    url = postgres_server.url(postgres_server.new_database())
    async with contextlib.AsyncExitStack() as running:
        servers = [await running.enter_async_context(start_control_plane(tmp_path, "--store", url)) for _ in range(3)]
        planes = [await running.enter_async_context(control_plane_client(server)) for server in servers]
        gateways = [
            await running.enter_async_context(start_gateway(tmp_path, server.grpc, gateway_id=f"at-{number}"))
            for number, server in enumerate(servers)
        ]
        gates = [await running.enter_async_context(gateway_client(gateway)) for gateway in gateways]
        apps = [await planes[0].create_app(v1=marked("v1"), v2=marked("v2")) for _ in range(APPS)]
        callers = [Caller(app, planes, chance) for app in apps]
        stop = asyncio.Event()
        tasks = [asyncio.create_task(caller.until(stop)) for caller in callers]
        for _ in range(KILLS):
            before = [caller.count for caller in callers]
            await eventually(lambda before=before: all(caller.count > count for caller, count in zip(callers, before, strict=True)), 30)
            victim = chance.choice(servers)
            await victim.kill()
            await victim.start()
        stop.set()
        await asyncio.gather(*tasks)

        async def all_connected():
            return all([(await gate.status()).connected for gate in gates])

        await eventually(all_connected, 30)
        # A channel that has just lost its server tries again after a second or so.
        for plane in planes:
            await plane.apps.ListApps(apps_pb2.ListAppsRequest(), wait_for_ready=True, timeout=30)
        last = [await chance.choice(planes).deploy(app, "v1") for app in apps]
        for caller, deployed in zip(callers, last, strict=True):
            assert deployed.binding.revision >= caller.acknowledged
            for gate in gates:

                async def serves(gate=gate, deployed=deployed):
                    ran = await gate.trigger(deployed.binding.app)
                    return (ran.release, ran.revision) == ("v1", deployed.binding.revision)

                await eventually(serves)
        assert {code for caller in callers for code in caller.refused} <= {grpc.StatusCode.UNAVAILABLE}
        rollout = (await planes[0].deploy(apps[0], "v2")).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (3, 3)
        print(f"{sum(caller.count for caller in callers)} deploys, {sum(len(caller.refused) for caller in callers)} refused")
