"""Fenced: a trigger that names a minimum revision never runs on anything older."""

from __future__ import annotations

import pytest

from tests.clients import control_plane_client, gateway_client, refused
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked


async def test_a_deploys_revision_is_reached_by_the_very_next_trigger(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    for tag in ("v1", "v2"):
        revision = (await stack.plane.deploy(app, tag)).binding.revision
        for gate in stack.gates:
            assert (await gate.trigger(app, min_revision=revision)).release == tag
            response = await gate.post(app, X_Min_Revision=str(revision))
            assert (response.status_code, response.headers["X-Release"]) == (200, tag)


async def test_a_gateway_that_is_behind_refuses(tmp_path):
    async with start_control_plane(tmp_path) as server, start_gateway(tmp_path, server.grpc) as gateway_server:
        async with control_plane_client(server) as plane, gateway_client(gateway_server) as gate:
            app = await plane.create_app(v1=marked("v1"))
            revision = (await plane.deploy(app, "v1")).binding.revision
            await server.kill()
            refusal = await refused(gate.trigger(app, min_revision=revision + 1))
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "BEHIND")
            assert refusal.metadata["asked"] == str(revision + 1)
            assert "RetryInfo" in refusal.kinds
            response = await gate.post(app, X_Min_Revision=str(revision + 1))
            assert (response.status_code, response.json()["error"]) == (503, "BEHIND")
            assert (await gate.trigger(app, min_revision=revision)).release == "v1"


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5"])
async def test_a_minimum_that_is_no_revision_is_refused(stack, wrong):
    app = await stack.plane.create_app(v1=marked("v1"))
    await stack.plane.deploy(app, "v1")
    response = await stack.gates[0].post(app, X_Min_Revision=wrong)
    assert (response.status_code, response.json()["error"]) == (400, "INVALID_FIELD")
