"""The network between a gateway and its control plane fails in every way a proxy can; the gateway serves on, and catches up by itself."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.clients import control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.sample_apps import marked

# More than a chunk of a snapshot, so that a cut comes in the midst of one.
PADDING_BYTES = 1_500_000
# Longer than a gateway's longest backoff, and than the silence after which it counts a connection as dead.
RECOVERY_SECONDS = 45


def large(mark):
    """A config of more than a megabyte."""
    config = marked(mark)
    config["pipelines"] += [
        {"name": f"padding-{n}", "stages": [{"name": "s", "steps": [{"name": "t", "transform": {"expression": f"'{'x' * 7000}'"}}]}]}
        for n in range(PADDING_BYTES // 7000 // 2)
    ]
    config["pipelines"] = config["pipelines"][:200]
    config["pipelines"][0]["description"] = "y" * 4000
    return config


@pytest.fixture
async def behind_proxy(tmp_path):
    """(plane, proxy, gate): the gateway's only way to the control plane is the proxy."""
    async with contextlib.AsyncExitStack() as running:
        server = await running.enter_async_context(start_control_plane(tmp_path))
        proxy = await running.enter_async_context(Proxy(server.grpc))
        gateway = await running.enter_async_context(start_gateway(tmp_path, proxy.address))
        plane = await running.enter_async_context(control_plane_client(server))
        yield plane, proxy, await running.enter_async_context(gateway_client(gateway))


async def serves(gate, app, tag):
    """Waits until it serves the release."""

    async def does():
        return (await gate.trigger(app)).release == tag

    await eventually(does, RECOVERY_SECONDS)


async def test_a_connection_that_is_refused_then_comes_back(behind_proxy):
    plane, proxy, gate = behind_proxy
    app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
    assert (await plane.deploy(app, "v1")).rollout.gateways_applied == 1
    await proxy.stop()

    async def disconnected():
        return not (await gate.status()).connected

    await eventually(disconnected)
    await plane.deploy(app, "v2")
    assert (await gate.trigger(app)).release == "v1"
    await proxy.restart()
    await serves(gate, app, "v2")


async def test_a_snapshot_that_is_cut_off_is_fetched_again(behind_proxy):
    plane, proxy, gate = behind_proxy
    app = await plane.create_app(v1=marked("v1"), v2=large("v2"))
    await plane.deploy(app, "v1")
    proxy.cut_after_bytes = 200_000
    deployed = await plane.deploy(app, "v2", wait=Duration(seconds=1))
    assert deployed.rollout.gateways_applied == 0
    assert deployed.binding.release == "v2"
    assert (await gate.trigger(app)).release == "v1"
    seen = proxy.connections
    await eventually(lambda: proxy.connections > seen)
    proxy.cut_after_bytes = None
    await serves(gate, app, "v2")


async def test_a_slow_network_is_waited_for(behind_proxy):
    plane, proxy, gate = behind_proxy
    app = await plane.create_app(v1=large("v1"))
    proxy.delay_seconds = 0.05
    deployed = await plane.deploy(app, "v1", wait=Duration(seconds=30))
    assert (deployed.rollout.gateways_total, deployed.rollout.gateways_applied) == (1, 1)
    assert (await gate.trigger(app)).release == "v1"


async def test_connections_that_are_reset_again_and_again(behind_proxy):
    plane, proxy, gate = behind_proxy
    tags = [f"v{n}" for n in range(5)]
    app = await plane.create_app(**{tag: marked(tag) for tag in tags})
    assert (await plane.deploy(app, tags[0])).rollout.gateways_applied == 1
    for tag in tags[1:]:
        await plane.deploy(app, tag, wait=Duration())
        proxy.reset_connections()
    await serves(gate, app, tags[-1])
