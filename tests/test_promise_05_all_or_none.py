"""All or none: if a connected gateway cannot run a release, nothing flips anywhere, and the answer says which and why."""

from __future__ import annotations

import contextlib

import pytest

from pointsman.v1 import deployments_pb2
from tests.clients import control_plane_client, gateway_client, refused
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked


def needing_a_secret(mark):
    """A config that only a gateway with the secret KEY can run."""
    config = marked(mark)
    config["pipelines"][0]["stages"][0]["steps"].append({"name": "asked", "when": "false", "tool_call": {"tool": "bank"}})
    config["tools"] = [{"name": "bank", "http": {"url": "http://127.0.0.1:9/", "headers": {"Authorization": "Bearer ${secret:KEY}"}}}]
    return config


@pytest.fixture
async def uneven(tmp_path):
    """A control plane, and two gateways of which only the first has the secret; (plane, gates)."""
    async with contextlib.AsyncExitStack() as running:
        server = await running.enter_async_context(start_control_plane(tmp_path))
        rich = await running.enter_async_context(start_gateway(tmp_path, server.grpc, gateway_id="rich", POINTSMAN_SECRET_KEY="k"))
        poor = await running.enter_async_context(start_gateway(tmp_path, server.grpc, gateway_id="poor"))
        plane = await running.enter_async_context(control_plane_client(server))
        yield plane, [await running.enter_async_context(gateway_client(gateway)) for gateway in (rich, poor)]


async def test_one_gateways_veto_stops_every_gateway(uneven):
    plane, gates = uneven
    app = await plane.create_app(v1=marked("v1"), v2=needing_a_secret("v2"))
    before = (await plane.deploy(app, "v1")).binding
    refusal = await refused(plane.deploy(app, "v2"))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "RELEASE_REJECTED")
    assert refusal.metadata["gateways"] == "poor"
    assert "KEY" in refusal.metadata["causes"]
    assert await plane.binding(app) == before
    history = await plane.deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(app=app))
    assert [entry.release for entry in history.deployments] == ["v1"]
    for gate in gates:
        ran = await gate.trigger(app)
        assert (ran.release, ran.revision) == ("v1", before.revision)


async def test_a_dry_run_asks_the_gateways_too(uneven):
    plane, _ = uneven
    app = await plane.create_app(v1=marked("v1"), v2=needing_a_secret("v2"))
    await plane.deploy(app, "v1", validate_only=True)
    assert (await refused(plane.binding(app))).reason == "NO_RELEASE_DEPLOYED"
    assert (await refused(plane.deploy(app, "v2", validate_only=True))).reason == "RELEASE_REJECTED"


async def test_force_skips_the_veto_and_the_history_says_so(uneven):
    plane, (rich, poor) = uneven
    app = await plane.create_app(v1=marked("v1"), v2=needing_a_secret("v2"))
    await plane.deploy(app, "v1")
    deployed = await plane.deploy(app, "v2", force=True)
    assert deployed.deployment.forced
    assert [rejection.gateway_id for rejection in deployed.rollout.gateways_rejected] == ["poor"]
    # The one that cannot run it goes on with what it has, and says so.
    assert (await rich.trigger(app)).release == "v2"
    assert (await poor.trigger(app)).release == "v1"
    status = next(binding for binding in (await poor.status()).bindings if binding.app == app)
    assert (status.release, status.rejected_release) == ("v1", "v2")
    assert "KEY" in status.rejection
