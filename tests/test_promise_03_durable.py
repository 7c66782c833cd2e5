"""Durable: what was acknowledged survives kill -9 of the control plane, and the gateways come back to it by themselves."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients import control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked

ROUNDS = 3


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path, end):
    async with start_control_plane(tmp_path) as server, start_gateway(tmp_path, server.grpc) as gateway_server:
        async with control_plane_client(server) as plane:
            app = await plane.create_app(**{f"v{n}": marked(f"v{n}") for n in range(ROUNDS + 1)})
            before = (await plane.deploy(app, "v0")).binding
        for number in range(1, ROUNDS + 1):
            await (server.kill() if end == "kill" else server.stop())
            await server.start()
            async with control_plane_client(server) as plane, gateway_client(gateway_server) as gate:
                assert await plane.binding(app) == before
                await eventually(lambda gate=gate: _connected(gate))
                deployed = await plane.deploy(app, f"v{number}")
                assert deployed.rollout.gateways_applied == deployed.rollout.gateways_total == 1
                assert (await gate.trigger(app)).release == f"v{number}"
                assert deployed.binding.revision > before.revision
                before = deployed.binding


async def test_a_kill_in_the_midst_of_deploys_loses_none_that_was_acknowledged(tmp_path):
    async with start_control_plane(tmp_path) as server:
        acknowledged: list[tuple[str, int]] = []

        async def deploy_on(app):
            async with control_plane_client(server) as plane:
                while True:
                    for tag in ("v1", "v2"):
                        deployed = await plane.deploy(app, tag)
                        acknowledged.append((tag, deployed.binding.revision))

        async with control_plane_client(server) as plane:
            app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        deploying = asyncio.create_task(deploy_on(app))
        await eventually(lambda: len(acknowledged) >= 10)
        await server.kill()
        await asyncio.gather(deploying, return_exceptions=True)
        await server.start()
        async with control_plane_client(server) as plane:
            binding = await plane.binding(app)
            tag, revision = acknowledged[-1]
            # The kill may have come after a commit and before its answer, never between an answer and its commit.
            assert binding.revision in (revision, revision + 1)
            assert binding.revision > revision or binding.release == tag


async def _connected(gate) -> bool:
    return (await gate.status()).connected
