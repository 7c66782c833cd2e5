"""A drill: gateways that behave as if the control plane were gone, for a time, and then come back by themselves."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest

from data_plane.outage import Outage, SimulatedOutageError
from pointsman.v1 import trigger_pb2
from tests.clients import cli, cli_done, control_plane_client, documents, gateway_client, refused
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane
from tests.test_sync import SHOP, Gateway


@pytest.fixture
async def plane():
    async with ScriptedControlPlane().running() as plane:
        yield plane


@pytest.fixture
async def gateway(plane):
    async with Gateway(plane.address).running() as gateway:
        yield gateway


async def test_the_stream_is_cut_and_what_is_served_stays(plane, gateway):
    v1, v2 = plane.release(marked("v1")), plane.release(marked("v2"))
    stream = await plane.stream()
    await stream.update(1, (*SHOP, "v1", v1), synced=True)
    gateway.sync.outage.simulate(600)
    async with asyncio.timeout(10):
        await stream.over.wait()
    await eventually(lambda: not gateway.sync.connected)
    assert gateway.sync.problem == "an outage is simulated"
    assert gateway.serves() == {SHOP: "v1"}
    # Nothing was tried meanwhile: the next stream is the one after the end.
    gateway.sync.outage.simulate(0)
    back = await plane.stream()
    assert (back.hello.revision, len(plane.streams)) == (1, 2)
    await back.update(2, (*SHOP, "v2", v2), synced=True)
    assert gateway.serves() == {SHOP: "v2"}


async def test_it_ends_by_itself(plane, gateway):
    await plane.stream()
    gateway.sync.outage.simulate(0.05)
    await plane.stream()
    assert gateway.sync.outage.seconds_left == 0


async def test_one_that_begins_while_no_stream_is_open_holds_too(plane):
    plane.welcoming = False
    async with Gateway(plane.address).running() as gateway:
        # In the midst of the greeting.
        stream = await plane.stream()
        gateway.sync.outage.simulate(600)
        async with asyncio.timeout(10):
            await stream.over.wait()
        # A longer one, and a shorter one, take its place; the newest counts.
        gateway.sync.outage.simulate(300)
        assert 290 < gateway.sync.outage.seconds_left <= 300
        plane.welcoming = True
        gateway.sync.outage.simulate(0.05)
        await plane.stream()


async def test_only_an_outage_is_told_as_one():
    outage = Outage()
    with pytest.raises(TimeoutError):
        async with outage.cuts():
            raise TimeoutError

    async def cut() -> None:
        async with outage.cuts():
            outage.simulate(600)
            # A second word before the first took effect.
            outage.simulate(500)
            await asyncio.Event().wait()

    with pytest.raises(SimulatedOutageError):
        await cut()
    # Whoever is cancelled is cancelled, also amid an outage.
    waiting = asyncio.create_task(outage.over())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_command_on_real_servers(tmp_path):
    async with (
        start_control_plane(tmp_path) as server,
        start_gateway(tmp_path, server.grpc, gateway_id="east") as east,
        start_gateway(tmp_path, server.grpc, gateway_id="west") as west,
        control_plane_client(server) as plane,
        gateway_client(east) as gate,
        gateway_client(west) as other,
    ):
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))

        async def connected(count: int) -> bool:
            return [(await one.status()).connected for one in (gate, other)].count(True) == count

        await eventually(lambda: connected(2))
        await plane.deploy(app, "v1")
        said = await cli_done("drill", "outage", east.grpc, west.grpc, "--for", "5m")
        until = r"gateway {} does without its control plane until \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n"
        assert re.fullmatch(until.format("east") + until.format("west"), said)
        await eventually(lambda: connected(0))
        status = await gate.status()
        assert status.connection_problem == "an outage is simulated"
        left = status.outage_end_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
        assert timedelta(minutes=4) < left <= timedelta(minutes=5)
        # What is deployed meanwhile reaches nobody, and both serve on.
        assert (await plane.deploy(app, "v2")).rollout.gateways_total == 0
        assert (await gate.trigger(app)).release == "v1"
        (told,) = documents(await cli_done("drill", "outage", "--for", "0", "-o", "json", gateway=east))
        assert told["gateway_id"] == "east"

        async def caught_up() -> bool:
            return (await gate.trigger(app)).release == "v2" and await connected(1)

        await eventually(caught_up)
        assert not (await gate.status()).HasField("outage_end_time")


async def test_what_is_too_long_or_not_said_is_refused(stack):
    refusal = await refused(stack.gates[0].statuses.SimulateOutage(trigger_pb2.SimulateOutageRequest()))
    assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ("duration",))
    done = await cli("drill", "outage", "--for", "11m", gateway=stack.gateways[0])
    assert (done.code, done.stderr.partition(":")[0]) == (1, "INVALID_FIELD")
    assert (await cli("drill", "outage", gateway=stack.gateways[0])).code == 2
    assert (await stack.gates[0].status()).connected
