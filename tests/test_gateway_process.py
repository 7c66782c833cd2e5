"""A gateway as a process: how it starts, how it stops, and several of them on one port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data_plane.__main__ import main
from data_plane.config import Settings
from data_plane.workers import worker_environment
from pointsman.v1 import trigger_pb2
from tests.clients import OWN_CONNECTION, gateway_client, grpc
from tests.eventually import eventually
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane
from tests.scripted_upstream import ScriptedUpstream

SHOP = ("shop", "production")


@pytest.fixture
async def plane():
    async with ScriptedControlPlane().running() as plane:
        yield plane


async def health(address):
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status


async def test_health_and_readiness_follow_the_first_sync(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        stream = await plane.stream()
        assert (await gate.http.get("/readyz")).status_code == 503
        assert await health(server.grpc) == health_pb2.HealthCheckResponse.NOT_SERVING
        await stream.update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
        assert (await gate.http.get("/readyz")).status_code == 200

        async def serving():
            return await health(server.grpc) == health_pb2.HealthCheckResponse.SERVING

        await eventually(serving)


async def test_a_drain_is_told_at_once_serves_on_and_finishes_what_runs(plane, tmp_path):
    async with ScriptedUpstream().running() as upstream, start_gateway(tmp_path, plane.address, "--drain-delay-seconds", "1") as server:
        stream = await plane.stream()
        await stream.update(1, (*SHOP, "v1", plane.release(marked("v1", upstream.url + "/hang"))), synced=True)
        async with gateway_client(server) as gate:
            over_http = asyncio.create_task(gate.post("shop"))
            over_grpc = asyncio.create_task(gate.trigger("shop"))
            await eventually(lambda: upstream.hanging == 2)
            os.kill(server.pid, signal.SIGTERM)

            async def unready():
                answer = await gate.http.get("/readyz")
                return answer.status_code == 503 and answer.json()["error"] == "SHUTTING_DOWN"

            await eventually(unready)
            assert await health(server.grpc) == health_pb2.HealthCheckResponse.NOT_SERVING
            # Unready, and still serving.
            late = asyncio.create_task(gate.post("shop"))
            await eventually(lambda: upstream.hanging == 3)

            async def closed():
                try:
                    async with httpx2.AsyncClient(trust_env=False) as other:
                        await other.get(f"http://{server.http}/livez")
                except httpx2.ConnectError:
                    return True
                except httpx2.ReadError:  # Accepted by the kernel just before the listener closed.
                    return False
                return False

            await eventually(closed)
            upstream.release.set()
            assert [(await over_http).status_code, (await late).status_code] == [200, 200]
            assert (await over_grpc).release == "v1"
        assert await server._process.wait() == 0


async def test_what_does_not_end_is_cut_off(plane, tmp_path):
    async with ScriptedUpstream().running() as upstream, start_gateway(tmp_path, plane.address, "--drain-seconds", "1") as server:
        stream = await plane.stream()
        await stream.update(1, (*SHOP, "v1", plane.release(marked("v1", upstream.url + "/hang"))), synced=True)
        async with gateway_client(server) as gate:
            running = asyncio.create_task(gate.trigger("shop"))
            await eventually(lambda: upstream.hanging == 1)
            assert await server.stop() == 0
            with pytest.raises(grpc.aio.AioRpcError):
                await running
        upstream.release.set()


@contextlib.asynccontextmanager
async def silent_tool():
    """(url, open connections): it takes requests and answers none."""
    connections = set()

    async def take(reader, writer):
        connections.add(writer)
        while await reader.read(1000):
            pass
        connections.discard(writer)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", connections


async def test_who_hangs_up_is_not_worked_for(plane, tmp_path):
    async with silent_tool() as (url, connections), start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        stream = await plane.stream()
        await stream.update(1, (*SHOP, "v1", plane.release(marked("v1", url))), synced=True)
        for call in (gate.post("shop"), gate.trigger("shop")):
            running = asyncio.ensure_future(call)
            await eventually(lambda: len(connections) == 1)
            running.cancel()
            await eventually(lambda: not connections)
        # A body that does not come whole runs nothing.
        _, writer = await asyncio.open_connection(*server.http.split(":"))
        writer.write(b"POST /v1/trigger/where HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await gate.http.get("/livez")).status_code == 200
        assert not connections
        assert await server.stop() == 0
        assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gateway-id", "not one"], "--gateway-id"),
        (["--app", "No_Good"], "--app"),
        (["--default-environment", "Pro duction"], "--default-environment"),
        (["--control-plane", "here:1,there"], "'there' is not host:port"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_the_start(flags, says):
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 2
    assert says in done.output


async def test_workers_share_the_ports_and_come_back_when_they_die(plane, tmp_path):
    v1 = plane.release(marked("v1"))

    async def serve(count):
        for _ in range(count):
            await (await plane.stream()).update(1, (*SHOP, "v1", v1), synced=True)

    async with start_gateway(tmp_path, plane.address, "--workers", "2") as server:
        await serve(2)
        first, second = plane.streams
        assert first.hello.gateway_id == second.hello.gateway_id
        assert first.hello.instance_id != second.hello.instance_id
        async with gateway_client(server) as gate:
            assert (await gate.trigger("shop")).release == "v1"
        children = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        await serve(1)
        assert len({stream.hello.instance_id for stream in plane.streams}) == 3
        # The one that was started again began from its own disk.
        assert plane.streams[-1].hello.revision == 1
        assert await server.stop() == 0
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


async def test_an_outage_is_simulated_by_all_workers(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address, "--workers", "3") as server, gateway_client(server) as gate:
        streams = [await plane.stream() for _ in range(3)]

        async def simulate(seconds: int) -> trigger_pb2.SimulateOutageResponse:
            request = trigger_pb2.SimulateOutageRequest()
            request.duration.FromSeconds(seconds)
            return await gate.statuses.SimulateOutage(request)

        assert (await simulate(600)).HasField("end_time")
        await eventually(lambda: all(stream.over.is_set() for stream in streams))
        assert not (await simulate(0)).HasField("end_time")
        for _ in range(3):
            await plane.stream()


async def test_workers_end_with_their_parent(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address, "--workers", "2") as server:
        await plane.stream()
        await plane.stream()
        children = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        await server.kill()
        await eventually(lambda: not [pid for pid in children if Path(f"/proc/{pid}/cmdline").exists()])


def test_a_worker_is_given_what_its_parent_was(tmp_path):
    settings = Settings(app=("a", "b"), state_dir=tmp_path, workers=3)
    parents = {"PATH": "/bin", "POINTSMAN_APP": "other", "POINTSMAN_SECRET_KEY": "s", "POINTSMAN_SECRETS_DIR": "/gone"}
    found = worker_environment(parents, settings, 1)
    assert found["PATH"] == "/bin"
    assert found["POINTSMAN_SECRET_KEY"] == "s"
    assert "POINTSMAN_SECRETS_DIR" not in found
    assert (found["POINTSMAN_APP"], found["POINTSMAN_WORKERS"], found["POINTSMAN_LISTEN"]) == ("a b", "1", "127.0.0.1:7500")
    assert found["POINTSMAN_STATE_DIR"] == str(tmp_path / "worker-1")
