"""A rollout that is broken at its worst moments: cut between any two messages, a plane killed between prepare and commit or after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid

import grpc
import pytest

from pointsman.v1 import deployments_pb2, gateways_pb2
from tests.clients import control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.relay import Relay
from tests.sample_apps import marked
from tests.simulated_gateway import SimulatedGateway

# What a half-open connection may take to be noticed, of which the contract says 20 s, and some for a busy machine to tell.
DEAF_SECONDS = 20
# What goes over the stream for the deploy of a release that is new; there may be more.
MESSAGES = ["prepare", "held", "prepared", "update", "applied"]


class HoldingGateway(SimulatedGateway):
    """Keeps its answer to a Prepare back until it is let go."""

    def __init__(self, gateway_id):
        super().__init__(gateway_id)
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def _before_answering(self):
        self.asked.set()
        await self.go.wait()


async def serves(gate, app, tag):
    async def does():
        try:
            return (await gate.trigger(app)).release == tag
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False

    await eventually(does, 30)


async def listed(plane):
    found = await plane.gateways.ListGateways(gateways_pb2.ListGatewaysRequest())
    return {gateway.gateway_id: gateway for gateway in found.gateways}


async def test_promise_05_the_stream_is_cut_at_every_message_boundary_of_a_rollout(tmp_path):
    async with (
        start_control_plane(tmp_path) as server,
        control_plane_client(server) as plane,
        Relay(server.grpc).running() as relay,
        start_gateway(tmp_path, relay.address) as gateway,
        gateway_client(gateway) as gate,
    ):
        app = await plane.create_app(v0=marked("v0"))
        last = (await plane.deploy(app, "v0")).binding.revision
        for boundary in itertools.count():
            tag = f"v{boundary + 1}"
            await plane.create_release(app, tag, marked(tag))
            relay.passed.clear()
            relay.cut_after = boundary
            started = time.monotonic()
            deployed = await plane.deploy(app, tag)
            # A gateway that is gone is not waited for; one that has come back has applied it.
            assert time.monotonic() - started < 5
            assert deployed.rollout.gateways_applied == deployed.rollout.gateways_total <= 1
            await serves(gate, app, tag)
            assert (await gate.status()).revision == deployed.binding.revision > last
            last = deployed.binding.revision
            # In step again before the next one.
            await eventually(lambda revision=last: _at(plane, revision))
            if relay.cut_after is not None:
                # There was no message more to cut before.
                break
            assert relay.passed.index("hello") == boundary
        assert boundary >= len(MESSAGES)
        assert set(MESSAGES) <= set(relay.passed)


async def _at(plane, revision):
    gateway = (await listed(plane))["gateway-1"]
    return gateway.connected and gateway.revision == revision


async def test_promise_04_a_gateway_that_is_killed_between_prepared_and_commit_is_not_waited_for_and_catches_up(tmp_path):
    holding = HoldingGateway("holding")
    async with (
        start_control_plane(tmp_path) as server,
        control_plane_client(server) as plane,
        Relay(server.grpc).running() as relay,
        start_gateway(tmp_path, relay.address) as gateway,
        holding.connected(server.grpc),
    ):
        app = await plane.create_app(v1=marked("v1"))
        deploying = asyncio.create_task(plane.deploy(app, "v1"))
        await holding.asked.wait()
        await eventually(lambda: "prepared" in relay.passed)
        await gateway.kill()

        async def gone():
            return not (await listed(plane))["gateway-1"].connected

        await eventually(gone)
        assert not deploying.done()
        released = time.monotonic()
        holding.go.set()
        rollout = (await deploying).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (1, 1)
        assert time.monotonic() - released < 3
        await gateway.start()
        async with gateway_client(gateway) as gate:
            await serves(gate, app, "v1")


async def test_promise_03_a_control_plane_that_is_killed_after_its_commit_and_before_a_word_of_it_got_out(tmp_path):
    async with (
        start_control_plane(tmp_path) as server,
        control_plane_client(server) as plane,
        Relay(server.grpc).running() as relay,
        start_gateway(tmp_path, relay.address) as gateway,
        gateway_client(gateway) as gate,
    ):
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        first = await plane.deploy(app, "v1")
        relay.held = {"update"}
        request = deployments_pb2.DeployRequest(app=app, environment="production", release="v2", request_id=str(uuid.uuid4()))
        deploying = asyncio.ensure_future(plane.deployments.Deploy(request))
        await relay.holding.wait()
        await server.kill()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await deploying
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await gate.trigger(app)).release == "v1"
        relay.held = set()
        await server.start()
        # It was committed, so it takes effect, and the same request again tells that it had.
        await serves(gate, app, "v2")
        again = await plane.deployments.Deploy(request, wait_for_ready=True, timeout=20)
        assert again.binding.revision == (await gate.status()).revision > first.binding.revision
        history = await plane.deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(app=app, environment="production"))
        assert [deployment.release for deployment in history.deployments] == ["v2", "v1"]


async def test_a_half_open_connection_is_noticed_by_both_within_20_seconds(tmp_path):
    async with (
        start_control_plane(tmp_path) as server,
        control_plane_client(server) as plane,
        Proxy(server.grpc) as proxy,
        start_gateway(tmp_path, proxy.address) as gateway,
        gateway_client(gateway) as gate,
    ):
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        assert (await plane.deploy(app, "v1")).rollout.gateways_applied == 1
        proxy.deaf = True
        began = time.monotonic()

        async def gateway_noticed():
            return not (await gate.status()).connected

        async def control_plane_noticed():
            return not (await listed(plane))["gateway-1"].connected

        await asyncio.gather(eventually(gateway_noticed, DEAF_SECONDS), eventually(control_plane_noticed, DEAF_SECONDS))
        assert time.monotonic() - began < DEAF_SECONDS
        # From now on nobody waits for it.
        deployed = await plane.deploy(app, "v2")
        assert deployed.rollout.gateways_total == 0
        proxy.deaf = False
        proxy.reset_connections()
        await serves(gate, app, "v2")


async def test_two_control_planes_with_different_stores_behind_one_address_are_told_apart(tmp_path):
    (tmp_path / "other").mkdir()
    async with contextlib.AsyncExitStack() as running:
        enter = running.enter_async_context
        ours, theirs = await enter(start_control_plane(tmp_path)), await enter(start_control_plane(tmp_path / "other"))
        plane, other = await enter(control_plane_client(ours)), await enter(control_plane_client(theirs))
        proxy = await enter(Proxy(ours.grpc))
        gateway = await enter(start_gateway(tmp_path, proxy.address))
        gate = await enter(gateway_client(gateway))
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        await plane.deploy(app, "v1")
        # The same names and more changes there: nothing but the identity of the store tells it apart.
        for tag in ("v1", "v2", "v3", "v4"):
            their_app = await other.create_app(**{tag: marked(tag)})
            await other.deploy(their_app, tag)
        proxy.forward_to(theirs.grpc)

        async def refused():
            return not (await gate.status()).connected and proxy.connections >= 3

        await eventually(refused, 20)
        status = await gate.status()
        assert {(bound.app, bound.release) for bound in status.bindings} == {(app, "v1")}
        assert "store" in "\n".join(gateway.stderr)
        assert not any(known.connected for known in (await listed(other)).values())
        deployed = await plane.deploy(app, "v2")
        assert (await gate.trigger(app)).release == "v1"
        proxy.forward_to(ours.grpc)
        await serves(gate, app, "v2")
        assert (await gate.status()).revision == deployed.binding.revision
