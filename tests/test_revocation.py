"""A token that was revoked does nothing at any of many gateways, from the answer on: each has dropped it before the answer is given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import grpc
import pytest

from pointsman.tokens import token_id_of
from pointsman.v1 import tokens_pb2, tokens_pb2_grpc, trigger_pb2
from tests.clients import OWN_CONNECTION, cli_done, gateway_client, refusal_of
from tests.eventually import eventually
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.simulated_gateway import SimulatedGateway
from tests.test_promise_11_closed_by_default import closed_control_plane, make, shown

SIMULATED = 100
REAL = ("east", "west")
LOOPS = 2


class Caller:
    """Triggers a gateway without a pause, by both doors in turn; `triggers` has when each began (monotonic) and whether it was served."""

    def __init__(self, gate, secret):
        self._gate, self._secret = gate, secret
        self.triggers: list[tuple[float, bool]] = []

    async def run(self):
        request = trigger_pb2.TriggerRequest(app="shop", endpoint="where")
        request.input.update({"message": "hello"})
        while True:
            began = time.monotonic()
            answer = await self._gate.post("shop", Authorization=f"Bearer {self._secret}")
            assert answer.status_code == 200 or answer.json()["error"] == "UNAUTHENTICATED"
            self.triggers.append((began, answer.status_code == 200))
            began = time.monotonic()
            call = self._gate.triggers.Trigger(request, metadata=shown(self._secret), timeout=20)
            code = await call.code()
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
            self.triggers.append((began, code is grpc.StatusCode.OK))


@contextlib.asynccontextmanager
async def fleet(server, secret, **more):
    """Simulated gateways, in sync."""
    async with contextlib.AsyncExitStack() as stack:
        gateways = [SimulatedGateway(f"gateway-{number}", token=secret, **more) for number in range(SIMULATED)]
        await asyncio.gather(*(stack.enter_async_context(gateway.connected(server.grpc)) for gateway in gateways))
        yield gateways


@pytest.fixture
async def scene(tmp_path):
    """(control plane, tokens' stub, admin's secret, gateways' secret); the app `shop` has a release in production."""
    async with closed_control_plane(tmp_path) as (server, admin), grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        app = tmp_path / "app.json"
        app.write_text(json.dumps(marked("v1")))
        ask = {"control_plane": server, "POINTSMAN_TOKEN": admin, "POINTSMAN_APP": "shop"}
        for command in (["app", "push", str(app)], ["release", "create", "v1"], ["deploy", "v1", "--to", "production"]):
            await cli_done(*command, **ask)
        yield server, tokens_pb2_grpc.TokenServiceStub(channel), admin, await make(server, admin, "gateways", "GATEWAY")


async def test_after_the_answer_no_gateway_of_a_hundred_lets_it_in(scene, tmp_path):
    server, tokens, admin, of_gateways = scene
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        real = [await enter(start_gateway(tmp_path, server.grpc, gateway_id=name, POINTSMAN_TOKEN=of_gateways)) for name in REAL]
        simulated = await enter(fleet(server, of_gateways))
        secret, other = [await make(server, admin, name, "TRIGGER", apps=["shop"]) for name in ("leaked", "other")]
        token_id = token_id_of(secret)
        await eventually(lambda: all(token_id in gateway.verifiers for gateway in simulated))
        gates = [await enter(gateway_client(one)) for one in real for _ in range(LOOPS)]
        callers = [Caller(gate, secret) for gate in gates]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        await eventually(lambda: all(any(served for _, served in caller.triggers) for caller in callers))

        revoked = await tokens.RevokeToken(tokens_pb2.RevokeTokenRequest(token_id=token_id), metadata=shown(admin), timeout=20)
        answered = time.monotonic()
        # Whatever the answer was waiting for, these had dropped it before they said so.
        assert [gateway.gateway_id for gateway in simulated if token_id in gateway.verifiers] == []
        rollout = revoked.rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (SIMULATED + len(REAL), SIMULATED + len(REAL))
        assert not rollout.gateways_pending
        assert {gateway.revision for gateway in simulated} == {rollout.revision}

        await eventually(lambda: all(sum(began > answered for began, _ in caller.triggers) >= 10 for caller in callers))
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome
        for caller in callers:
            assert not any(served for began, served in caller.triggers if began > answered)
        # Nobody else is shut out.
        assert {(await gate.post("shop", Authorization=f"Bearer {other}")).status_code for gate in gates} == {200}
        assert all(token_id_of(other) in gateway.verifiers for gateway in simulated)


async def test_gateways_that_do_not_say_so_are_told_as_pending(scene):
    server, tokens, admin, of_gateways = scene
    secret = await make(server, admin, "leaked", "TRIGGER")
    deaf = SimulatedGateway("deaf", token=of_gateways, apply=False)
    async with fleet(server, of_gateways) as simulated, deaf.connected(server.grpc):
        request = tokens_pb2.RevokeTokenRequest(token_id=token_id_of(secret))
        rollout = (await tokens.RevokeToken(request, metadata=shown(admin), timeout=20)).rollout
        assert (rollout.gateways_total, rollout.gateways_applied) == (SIMULATED + 1, SIMULATED)
        assert list(rollout.gateways_pending) == ["deaf"]
        assert not any(token_id_of(secret) in gateway.verifiers for gateway in simulated)
        # Once it has, a repeated call says so.
        deaf.apply = True
        other = await make(server, admin, "other", "TRIGGER")
        await eventually(lambda: token_id_of(other) in deaf.verifiers)
        again = await tokens.RevokeToken(request, metadata=shown(admin), timeout=20)
        assert (again.rollout.gateways_applied, again.rollout.gateways_total) == (SIMULATED + 1, SIMULATED + 1)


async def test_a_token_that_expires_is_refused_by_gateways_that_are_told_nothing(scene, tmp_path):
    server, tokens, admin, of_gateways = scene
    async with (
        start_gateway(tmp_path, server.grpc, gateway_id="east", POINTSMAN_TOKEN=of_gateways) as gateway,
        gateway_client(gateway) as gate,
    ):
        brief = tokens_pb2.CreateTokenRequest(name="brief", role=tokens_pb2.Token.TRIGGER)
        brief.expire_time.FromNanoseconds(time.time_ns() + 4_000_000_000)
        secret = (await tokens.CreateToken(brief, metadata=shown(admin), timeout=5)).secret
        headers = {"Authorization": f"Bearer {secret}"}

        async def answers(status):
            return (await gate.post("shop", **headers)).status_code == status

        await eventually(lambda: answers(200))
        # Nobody is left who could tell it.
        await server.kill()
        await eventually(lambda: answers(401))
        assert time.time() >= brief.expire_time.ToNanoseconds() / 1e9
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gate.triggers.Trigger(trigger_pb2.TriggerRequest(app="shop"), metadata=shown(secret), timeout=5)
        assert refusal_of(refused.value).reason == "UNAUTHENTICATED"
