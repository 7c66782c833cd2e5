"""Acknowledged: the answer of a deploy says which gateways serve the change, and which do not yet."""

from __future__ import annotations

import time

from google.protobuf.duration_pb2 import Duration

from pointsman.v1 import gateways_pb2
from tests.clients import control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.sample_apps import marked


async def test_every_connected_gateway_serves_what_was_acknowledged(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    for tag in ("v1", "v2"):
        rollout = (await stack.plane.deploy(app, tag)).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (2, 2)
        assert (list(rollout.gateways_pending), list(rollout.gateways_rejected)) == ([], [])
        for gate in stack.gates:
            assert (await gate.trigger(app)).release == tag
    for gate in stack.gates:
        assert (await gate.status()).revision >= rollout.revision


async def test_a_deaf_gateway_is_named_as_pending_within_the_wait(tmp_path):
    async with start_control_plane(tmp_path) as server, Proxy(server.grpc) as proxy:
        async with start_gateway(tmp_path, proxy.address, gateway_id="deaf") as gateway_server:
            async with control_plane_client(server) as plane, gateway_client(gateway_server) as gate:
                app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
                assert (await plane.deploy(app, "v1")).rollout.gateways_applied == 1
                proxy.deaf = True
                started = time.monotonic()
                deployed = await plane.deploy(app, "v2", wait=Duration(nanos=300_000_000))
                # The prepare phase waits for the silent gateway too, for 5 s at most.
                assert time.monotonic() - started < 10
                assert list(deployed.rollout.gateways_pending) in (["deaf"], [])
                assert deployed.rollout.gateways_applied == 0
                assert deployed.binding.release == "v2"
                # It goes on with what it has.
                assert (await gate.trigger(app)).release == "v1"

                proxy.deaf = False
                proxy.reset_connections()

                async def caught_up():
                    return (await gate.trigger(app)).release == "v2"

                await eventually(caught_up, timeout_seconds=40)


async def test_the_list_of_gateways_says_what_each_has_applied(stack):
    app = await stack.plane.create_app(v1=marked("v1"))
    revision = (await stack.plane.deploy(app, "v1")).binding.revision
    listed = (await stack.plane.gateways.ListGateways(gateways_pb2.ListGatewaysRequest())).gateways
    connected = [gateway for gateway in listed if gateway.connected]
    assert {gateway.gateway_id for gateway in connected} == {"east", "west"}
    assert all(gateway.revision >= revision for gateway in connected)
    # Each says since when its process runs, which is before its stream was opened.
    assert all(0 < gateway.start_time.ToMicroseconds() <= gateway.connect_time.ToMicroseconds() for gateway in connected)
