"""What a gateway does in an environment that is stale, on both doors, against a control plane that goes silent when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data_plane.disk import TABLE
from data_plane.saved import seal, unseal
from pointsman.v1 import trigger_pb2
from pointsman.v1.environments_pb2 import Environment
from tests.clients import OWN_CONNECTION, Gateway, cli_done, control_plane_client, gateway_client, refused
from tests.eventually import eventually
from tests.processes import Server, start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane, ScriptedStream

ENVIRONMENTS = ("production", "staging", "development", "canary")
# The shortest limit there is; a control plane that talks does so much oftener.
LIMIT_SECONDS = 1.0
TALK_SECONDS = 0.1
SHORT = {
    "production": (LIMIT_SECONDS, "REFUSE"),
    "staging": (LIMIT_SECONDS, "FLAG"),
    "development": (LIMIT_SECONDS, "UNREADY"),
    "canary": (LIMIT_SECONDS, "SERVE"),
}


@dataclass
class Scene:
    plane: ScriptedControlPlane
    stream: ScriptedStream
    server: Server
    gate: Gateway
    bindings: tuple

    @contextlib.asynccontextmanager
    async def talking(self, stream: ScriptedStream | None = None):
        """The control plane gives signs of life."""

        async def talk() -> None:
            while True:
                (stream or self.stream).tell(1)
                await asyncio.sleep(TALK_SECONDS)

        task = asyncio.create_task(talk())
        yield
        task.cancel()

    async def health(self) -> str:
        async with grpc.aio.insecure_channel(self.server.grpc, OWN_CONNECTION) as channel:
            found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))

    async def stale(self) -> list[str]:
        return [one.environment for one in (await self.gate.status()).environments if one.stale]

    async def becomes_stale(self, *environments: str) -> None:
        async def so() -> bool:
            return await self.stale() == sorted(environments)

        await eventually(so)


@pytest.fixture
async def scene(tmp_path):
    async with ScriptedControlPlane().running() as plane, start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        v1 = plane.release(marked("v1"))
        bindings = tuple(("shop", environment, "v1", v1) for environment in ENVIRONMENTS)
        stream = await plane.stream()
        await stream.update(1, *bindings, synced=True)
        yield Scene(plane, stream, server, gate, bindings)


def asked(environment: str) -> trigger_pb2.TriggerRequest:
    request = trigger_pb2.TriggerRequest(app="shop", endpoint="where", environment=environment)
    request.input.update({"message": "hello"})
    return request


async def flag_of(call) -> str | None:
    return dict(await call.initial_metadata()).get("x-stale")


async def test_without_a_limit_nothing_is_ever_stale(scene):
    assert await scene.stale() == []
    assert list((await scene.gate.status()).environments) == []
    response = await scene.gate.post("shop")
    assert (response.status_code, "x-stale" in response.headers) == (200, False)


async def test_while_the_control_plane_talks_nobody_notices_a_limit(scene):
    async with scene.talking():
        await scene.stream.update(2, policies=SHORT)

        async def all_is_fresh() -> bool:
            for environment in ENVIRONMENTS:
                response = await scene.gate.post("shop", X_Environment=environment)
                assert (response.status_code, "x-stale" in response.headers) == (200, False)
            assert (await scene.gate.http.get("/readyz")).status_code == 200
            assert await scene.health() == "SERVING"
            status = await scene.gate.status()
            assert status.ready
            assert {
                one.environment: (one.max_staleness.seconds, Environment.StaleAction.Name(one.stale_action)) for one in status.environments
            } == SHORT
            return not await scene.stale()

        await eventually(all_is_fresh)


async def test_refuse_answers_behind_and_says_how_long_ago_and_the_limit(scene):
    await scene.stream.update(2, policies={"production": (LIMIT_SECONDS, "REFUSE")})
    await scene.becomes_stale("production")
    response = await scene.gate.post("shop")
    body = response.json()
    assert (response.status_code, body["error"], response.headers["retry-after"]) == (503, "BEHIND", "1")
    assert "last heard of the control plane" in body["message"]
    details = body["details"]
    assert (details["environment"], details["max_staleness_seconds"]) == ("production", "1")
    assert int(details["staleness_seconds"]) >= LIMIT_SECONDS
    for call in (scene.gate.triggers.Trigger(asked("production")), anext(aiter(scene.gate.triggers.TriggerStream(asked("production"))))):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason, refusal.metadata["environment"]) == ("UNAVAILABLE", "BEHIND", "production")
    # Also of what was never bound there as far as is known here, and of a release by name.
    for app, headers in (("unknown", {}), ("shop", {"X_Release": "v1"})):
        assert (await scene.gate.post(app, **headers)).json()["error"] == "BEHIND"
    # Others are served, and the gateway stays ready for them.
    assert (await scene.gate.post("shop", X_Environment="staging")).status_code == 200
    assert (await scene.gate.http.get("/readyz")).status_code == 200


async def test_flag_says_how_stale_each_answer_is(scene):
    await scene.stream.update(2, policies={"staging": (LIMIT_SECONDS, "FLAG")})
    await scene.becomes_stale("staging")
    response = await scene.gate.post("shop", X_Environment="staging")
    assert (response.status_code, response.json()) == (200, (await scene.gate.post("shop")).json() | {"environment": "staging"})
    assert int(response.headers["x-stale"]) >= LIMIT_SECONDS
    call = scene.gate.triggers.Trigger(asked("staging"))
    assert int(await flag_of(call)) >= LIMIT_SECONDS
    assert (await call).release == "v1"
    streamed = await scene.gate.post("shop", X_Environment="staging", Accept="text/event-stream")
    assert (streamed.status_code, int(streamed.headers["x-stale"]) >= LIMIT_SECONDS) == (200, True)
    stream = scene.gate.triggers.TriggerStream(asked("staging"))
    assert [event.WhichOneof("event") async for event in stream][-1] == "execution_completed"
    assert int(await flag_of(stream)) >= LIMIT_SECONDS
    # A refusal that names what ran says so too, another environment's answer does not.
    wrong = await scene.gate.post("shop", "nowhere", X_Environment="staging")
    assert (wrong.status_code, int(wrong.headers["x-stale"]) >= LIMIT_SECONDS) == (404, True)
    assert "x-stale" not in (await scene.gate.post("shop")).headers
    assert await flag_of(scene.gate.triggers.Trigger(asked("production"))) is None


async def test_unready_serves_on_and_is_ready_again_at_the_next_word(scene):
    async with scene.talking():
        await scene.stream.update(2, policies={"development": (LIMIT_SECONDS, "UNREADY"), "elsewhere": (LIMIT_SECONDS, "UNREADY")})
    await scene.becomes_stale("development", "elsewhere")
    ready = await scene.gate.http.get("/readyz")
    assert (ready.status_code, ready.json()["error"], ready.json()["details"]["environments"]) == (503, "BEHIND", "development")
    assert not (await scene.gate.status()).ready

    async def not_serving() -> bool:
        return await scene.health() == "NOT_SERVING"

    await eventually(not_serving)
    response = await scene.gate.post("shop", X_Environment="development")
    assert (response.status_code, "x-stale" in response.headers) == (200, False)

    async def ready_again() -> bool:
        return (await scene.gate.http.get("/readyz")).status_code == 200 and await scene.health() == "SERVING"

    async with scene.talking():
        await eventually(ready_again)
    # Where nothing is bound, nobody is made unready.
    await scene.stream.update(3, ("shop", "development", "", ""))
    await scene.becomes_stale("development", "elsewhere")
    await eventually(ready_again)


async def test_a_policy_that_changes_while_connected_counts_at_once(scene):
    await scene.stream.update(2, policies={"production": (LIMIT_SECONDS, "REFUSE"), "staging": (LIMIT_SECONDS, "REFUSE")})
    await scene.becomes_stale("production", "staging")
    assert (await scene.gate.post("shop")).status_code == 503
    # The word itself makes all fresh; what is stale next is what the new policies say.
    await scene.stream.update(3, policies={"production": (600, "REFUSE"), "staging": (LIMIT_SECONDS, "FLAG")})
    assert (await scene.gate.post("shop")).status_code == 200
    await scene.becomes_stale("staging")
    assert "x-stale" in (await scene.gate.post("shop", X_Environment="staging")).headers
    await scene.stream.update(4, policies={"staging": (0, "FLAG")})
    assert [one.environment for one in (await scene.gate.status()).environments] == ["production"]


async def test_a_deleted_environment_leaves_no_limit_behind(scene):
    await scene.stream.update(2, policies={"canary": (LIMIT_SECONDS, "UNREADY")})
    await scene.becomes_stale("canary")
    await scene.stream.update(3, ("shop", "canary", "", ""), policies={"canary": (0, "SERVE")})
    status = await scene.gate.status()
    assert (status.ready, list(status.environments)) == (True, [])
    await scene.stream.update(4, scene.bindings[3])
    assert (await scene.gate.post("shop", X_Environment="canary")).status_code == 200


async def test_a_network_that_swallows_everything_makes_stale_before_the_stream_is_given_up(tmp_path):
    async with ScriptedControlPlane().running() as plane, Proxy(plane.address) as proxy, start_gateway(tmp_path, proxy.address) as server:
        v1 = plane.release(marked("v1"))
        stream = await plane.stream()
        await stream.update(1, ("shop", "production", "v1", v1), synced=True, policies={"production": (2, "REFUSE")})
        async with gateway_client(server) as gate:
            scene = Scene(plane, stream, server, gate, ())
            proxy.deaf = True
            async with scene.talking():
                await scene.becomes_stale("production")
                assert (await gate.status()).connected
                assert (await gate.post("shop")).status_code == 503


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_restart_from_disk_does_not_make_a_stale_state_fresh(tmp_path, end):
    plane = ScriptedControlPlane()
    async with plane.running(), start_gateway(tmp_path, plane.address) as server:
        v1 = plane.release(marked("v1"))
        stream = await plane.stream()
        policies = {"production": (LIMIT_SECONDS, "REFUSE"), "staging": (600, "REFUSE")}
        bindings = [("shop", environment, "v1", v1) for environment in ("production", "staging")]
        await stream.update(1, *bindings, synced=True, policies=policies)
        async with gateway_client(server) as gate:
            await Scene(plane, stream, server, gate, ()).becomes_stale("production")
            before = (await gate.status()).staleness.ToTimedelta()
        plane.welcoming = False
        await (server.kill() if end == "kill" else server.stop())
        await server.start()
        async with gateway_client(server) as gate:
            # From its first answer on.
            assert (await gate.post("shop")).json()["error"] == "BEHIND"
            assert (await gate.post("shop", X_Environment="staging")).status_code == 200
            status = await gate.status()
            assert not status.connected
            assert status.staleness.ToTimedelta() > before
            assert (await gate.http.get("/readyz")).status_code == 200
            # Back again with the first word.
            plane.welcoming = True
            (await plane.stream()).end()
            scene = Scene(plane, await plane.stream(), server, gate, ())
            async with scene.talking():

                async def served() -> bool:
                    return (await gate.post("shop")).status_code == 200

                await eventually(served)


async def test_promise_09_an_outage_of_the_real_control_plane_from_the_limit_on_and_back(tmp_path):
    async with (
        start_control_plane(tmp_path) as server,
        start_gateway(tmp_path, server.grpc) as gateway_server,
        control_plane_client(server) as plane,
        gateway_client(gateway_server) as gate,
    ):
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        await plane.deploy(app, "v1")
        await cli_done("environment", "update", "production", "--max-staleness", "2s", "--stale-action", "refuse", control_plane=server)

        async def known() -> bool:
            return bool((await gate.status()).environments)

        async def refused_as_stale() -> bool:
            return (await gate.post(app)).status_code == 503

        async def served() -> bool:
            return (await gate.post(app)).status_code == 200

        await eventually(known)
        await eventually(served)
        for cut, mend in ((server.kill, server.start), (drill(gateway_server, "5m"), drill(gateway_server, "0"))):
            await cut()
            await eventually(refused_as_stale)
            await mend()
            await eventually(served)
        assert (await plane.deploy(app, "v2")).rollout.gateways_applied == 1
        assert (await gate.trigger(app)).release == "v2"


def drill(gateway: Server, seconds: str) -> Callable[[], Awaitable[str]]:
    return lambda: cli_done("drill", "outage", "--for", seconds, gateway=gateway)


async def test_the_word_of_another_store_is_none(tmp_path):
    plane = ScriptedControlPlane()
    async with plane.running(), start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        v1 = plane.release(marked("v1"))
        stream = await plane.stream()
        await stream.update(1, ("shop", "production", "v1", v1), synced=True, policies={"production": (LIMIT_SECONDS, "REFUSE")})
        plane.store_id = "another"
        stream.end()
        scene = Scene(plane, stream, server, gate, ())
        await scene.becomes_stale("production")
        for _ in range(3):
            await plane.stream()
            assert await scene.stale() == ["production"]


async def test_a_state_directory_from_before_there_were_limits_is_served(tmp_path):
    plane = ScriptedControlPlane()
    async with plane.running(), start_gateway(tmp_path, plane.address) as server:
        v1 = plane.release(marked("v1"))
        await (await plane.stream()).update(1, ("shop", "production", "v1", v1), synced=True, policies={"production": (600, "REFUSE")})
        assert await server.stop() == 0
        folder = tmp_path / "gateway-1"
        saved = json.loads(unseal((folder / TABLE).read_bytes()))
        assert [policy["environment"] for policy in saved.pop("policies")] == ["production"]
        (folder / TABLE).write_bytes(seal(json.dumps(saved).encode()))
        (folder / "heard.json").unlink()
        plane.welcoming = False
        await server.start()
        async with gateway_client(server) as gate:
            assert (await gate.post("shop")).headers["X-Release"] == "v1"
            assert list((await gate.status()).environments) == []
