"""Deploys, rollbacks, cuts and kills in a random order on a real control plane with several gateways, some of which refuse some releases.

After each run: every gateway is where the store is; no gateway ever went back; nothing was ever bound that a connected gateway had refused.
A run that fails prints its seed; put it into SEEDS to see it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from pointsman.v1 import deployments_pb2
from tests.clients import control_plane_client, refusal_of
from tests.eventually import eventually
from tests.processes import start_control_plane
from tests.proxy import Proxy
from tests.sample_apps import marked
from tests.seeds import seeds
from tests.simulated_gateway import SimulatedGateway

SEEDS = seeds(3)
STEPS = 60
GATEWAYS = 5
TAGS = [f"v{number}" for number in range(6)]
ENVIRONMENTS = ("staging", "production")
# Each gateway refuses a release with this chance; v0 is refused by none.
REFUSES = 0.08
ANSWERS = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}


class Member:
    """A gateway that comes back after every failure, behind a network of its own. SimulatedGateway asserts that it never goes back."""

    def __init__(self, name: str, chance: random.Random, digests: dict[str, str]) -> None:
        self.refused = {digest for tag, digest in digests.items() if tag != "v0" and chance.random() < REFUSES}
        self.gateway = SimulatedGateway(name, refuse=lambda digest: "no secret KEY" if digest in self.refused else "")
        self.cuts = 0
        self.proxy: Proxy
        self.task: asyncio.Task[None]

    def cut(self) -> None:
        """Its stream ends, which it and the control plane come to know in their own time."""
        self.cuts += 1
        self.gateway.connected_now = False
        self.proxy.reset_connections()

    @contextlib.asynccontextmanager
    async def running(self, address: str):
        async with Proxy(address) as self.proxy:
            self.task = asyncio.create_task(self.gateway.run_on(self.proxy.address))
            try:
                yield
            finally:
                self.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self.task


class Run:
    """One run: what was asked, what came of it, and who was there."""

    def __init__(self, chance, plane, server, app, digests) -> None:
        self.chance, self.plane, self.server, self.app, self.digests = chance, plane, server, app, digests
        self.members = [Member(f"g{number}", chance, digests) for number in range(GATEWAYS)]
        self.vetoes = self.deploys = self.lost = 0

    def cuts(self) -> int:
        """How often any stream was cut."""
        return sum(member.cuts for member in self.members)

    async def connected(self):
        """Waits until all gateways are there."""
        await eventually(lambda: all(member.gateway.connected_now for member in self.members), 30)

    async def deploy(self) -> None:
        tag, environment = self.chance.choice(TAGS), self.chance.choice(ENVIRONMENTS)
        there, before = all(member.gateway.connected_now for member in self.members), self.cuts()
        refusing = {member.gateway.gateway_id for member in self.members if self.digests[tag] in member.refused}
        already = {member.gateway.bindings.get((self.app, environment)) for member in self.members} == {tag}
        try:
            await self.plane.deploy(self.app, tag, environment, wait=Duration(nanos=300_000_000))
        except grpc.aio.AioRpcError as error:
            if error.code().name in ANSWERS:
                self.lost += 1
                return
            refusal = refusal_of(error)
            assert refusal.reason == "RELEASE_REJECTED", refusal
            assert refusing, "nobody refuses it"
            self.vetoes += 1
        else:
            self.deploys += 1
            # Who was connected throughout had its say. (A release that is bound already is no change, so nobody is asked.)
            assert not (refusing and there and before == self.cuts() and not already), (tag, refusing)

    async def step(self) -> None:
        match self.chance.choices(["deploy", "rollback", "cut", "stop", "kill", "together"], [10, 3, 5, 2, 1, 3])[0]:
            case "deploy":
                await self.deploy()
            case "rollback":
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.plane.rollback(self.app, self.chance.choice(ENVIRONMENTS), wait=Duration())
            case "cut":
                self.chance.choice(self.members).cut()
            case "stop":
                member = self.chance.choice(self.members)
                member.cut()
                await member.proxy.stop()
                await self.deploy()
                await member.proxy.restart()
            case "together":
                # A cut at some moment of a deploy.
                deploying = asyncio.create_task(self.deploy())
                await asyncio.sleep(self.chance.random() / 50)
                self.chance.choice(self.members).cut()
                await deploying
            case "kill":
                deploying = asyncio.create_task(self.deploy())
                await asyncio.sleep(self.chance.random() / 50)
                for member in self.members:
                    member.cuts += 1
                    member.gateway.connected_now = False
                await self.server.kill()
                await deploying
                await self.server.start()

    async def ends_on_the_stores_state(self) -> None:
        """The last deploy is one that nobody refuses."""
        await self.connected()
        for environment in ENVIRONMENTS:
            await self.plane.deployments.Deploy(
                deployments_pb2.DeployRequest(app=self.app, environment=environment, release="v0"), wait_for_ready=True, timeout=30
            )
        bound = {(self.app, environment): await self.plane.binding(self.app, environment) for environment in ENVIRONMENTS}
        revision = max(binding.revision for binding in bound.values())
        await eventually(lambda: all(member.gateway.revision >= revision for member in self.members), 30)
        for member in self.members:
            assert member.gateway.bindings == {key: binding.release for key, binding in bound.items()}
            assert member.gateway.history == sorted(member.gateway.history)
            assert not member.task.done()


@pytest.mark.parametrize("seed", SEEDS)
async def test_promise_05_whatever_happens_nothing_is_bound_that_a_connected_gateway_refuses(tmp_path, seed):
    chance = random.Random(seed)
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane, contextlib.AsyncExitStack() as running:
        app = await plane.create_app()
        digests = {tag: (await plane.create_release(app, tag, marked(tag))).digest for tag in TAGS}
        run = Run(chance, plane, server, app, digests)
        for member in run.members:
            await running.enter_async_context(member.running(server.grpc))
        await run.connected()
        for _ in range(STEPS):
            await run.step()
            if chance.random() < 0.5:
                await run.connected()
        await run.ends_on_the_stores_state()
        assert run.deploys > STEPS / 10
