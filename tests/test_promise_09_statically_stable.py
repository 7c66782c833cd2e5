"""Statically stable: with the control plane gone, gateways go on serving, and start from their own disk."""

from __future__ import annotations

import pytest

from tests.clients import control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked


async def test_a_gateway_serves_and_cold_starts_without_the_control_plane(tmp_path):
    async with start_control_plane(tmp_path) as server, start_gateway(tmp_path, server.grpc) as gateway_server:
        async with control_plane_client(server) as plane, gateway_client(gateway_server) as gate:
            app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
            bound = (await plane.deploy(app, "v1")).binding
            await server.kill()
            for _ in range(3):
                assert (await gate.post(app)).headers["X-Release"] == "v1"

        await gateway_server.kill()
        await gateway_server.start()
        async with gateway_client(gateway_server) as gate:
            ran = await gate.trigger(app)
            assert (ran.release, ran.digest, ran.revision) == ("v1", bound.digest, bound.revision)
            assert (await gate.http.get("/readyz")).status_code == 200
            assert not (await gate.status()).connected

            # When the control plane is back, the gateway finds it by itself.
            await server.start()
            async with control_plane_client(server) as plane:

                async def connected():
                    return (await gate.status()).connected

                await eventually(connected, timeout_seconds=30)
                assert (await plane.deploy(app, "v2")).rollout.gateways_applied == 1
                assert (await gate.trigger(app)).release == "v2"


async def test_a_gateway_that_never_synced_says_so_and_never_404(tmp_path):
    async with start_gateway(tmp_path, "127.0.0.1:1") as gateway_server, gateway_client(gateway_server) as gate:
        response = await gate.post("shop")
        assert (response.status_code, response.json()["error"]) == (503, "NOT_SYNCED")
        assert (await gate.http.get("/readyz")).status_code == 503
        assert (await gate.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_gateway_comes_back_to_what_changed_while_it_was_down(tmp_path, end):
    async with (
        start_control_plane(tmp_path) as server,
        start_gateway(tmp_path, server.grpc) as gateway_server,
        control_plane_client(server) as plane,
    ):
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        await plane.deploy(app, "v1")
        await (gateway_server.kill() if end == "kill" else gateway_server.stop())
        revision = (await plane.deploy(app, "v2")).binding.revision
        await gateway_server.start()
        async with gateway_client(gateway_server) as gate:

            async def caught_up():
                return (await gate.status()).revision >= revision

            await eventually(caught_up)
            assert (await gate.trigger(app)).release == "v2"
