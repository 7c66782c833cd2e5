"""What a gateway puts on record of each trigger, and that it arrives: once the control plane is back, after a kill, from a full spool."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.clients import gateway_client, grpc, refused
from tests.eventually import eventually
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import Ended, ScriptedControlPlane
from tests.scripted_upstream import ScriptedUpstream
from tests.test_metrics import samples

SHOP = ("shop", "production")
SECRET = 'planted "canary" 4711'
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def plane():
    async with ScriptedControlPlane().running() as plane:
        yield plane


def leaky(url):
    """A release whose tool shows its secret to an upstream that repeats what it is shown."""
    config = marked("v1", url)
    config["tools"][0]["http"] |= {"method": "POST", "headers": {"x-key": "${secret:CANARY}"}}
    config["pipelines"][0]["stages"][1]["steps"][0]["tool_call"]["arguments"] = "{'said': input.message}"
    return config


async def one(plane, execution_id):
    await eventually(lambda: execution_id in plane.executions)
    return plane.executions[execution_id]


async def test_each_trigger_is_on_record_with_what_ran(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        digest = plane.release(marked("v1"))
        await (await plane.stream()).update(7, (*SHOP, "v1", digest), synced=True)
        over_grpc = await gate.trigger("shop")
        over_http = await gate.post("shop", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        for execution_id in (over_grpc.execution_id, over_http.headers["x-execution-id"]):
            found = await one(plane, execution_id)
            assert (found.app, found.environment, found.endpoint, found.release) == (*SHOP, "where", "v1")
            assert (found.digest, found.revision, found.gateway_id) == (digest, 7, "gateway-1")
            assert (found.Outcome.Name(found.outcome), found.error_reason) == ("SUCCEEDED", "")
            assert [(s.stage, s.name, s.kind, s.Outcome.Name(s.outcome), s.attempts) for s in found.steps] == [
                ("begin", "start", "transform", "SUCCEEDED", 1),
                ("end", "answer", "transform", "SUCCEEDED", 1),
            ]
            spent = found.duration.ToTimedelta()
            assert spent.total_seconds() > 0
            assert all(step.duration.ToTimedelta() <= spent and step.start_time.seconds for step in found.steps)
            # What went well is not captured unless that is asked for.
            assert not found.input
        assert plane.executions[over_http.headers["x-execution-id"]].trace_id == TRACE
        assert plane.reports[-1].gateway_id == "gateway-1"


async def test_what_was_refused_is_on_record_too(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
        headers = {"X-App": "shop"}
        answers = {
            "ENDPOINT_NOT_FOUND": await gate.post("shop", "nowhere"),
            "NO_RELEASE_DEPLOYED": await gate.post("shop", X_Environment="staging"),
            "INVALID_INPUT": await gate.http.post("/v1/trigger/where", content=b"{oops", headers=headers),
            "INVALID_FIELD": await gate.post("shop", X_Min_Revision="soon"),
        }
        for reason, answer in answers.items():
            found = await one(plane, answer.headers["x-execution-id"])
            assert (found.Outcome.Name(found.outcome), found.error_reason) == ("REFUSED", reason)
            assert found.error_message == answer.json()["message"]
            assert (found.app, bool(found.steps)) == ("shop", False)
        no_message = await refused(gate.trigger("shop", given={"n": 1}))
        assert (await one(plane, no_message.metadata["execution_id"])).release == "v1"


async def test_what_failed_shows_its_inputs_and_no_secret(plane, tmp_path):
    async with (
        ScriptedUpstream().running() as upstream,
        start_gateway(tmp_path, plane.address, POINTSMAN_SECRET_CANARY=SECRET) as server,
        gateway_client(server) as gate,
    ):
        stream = await plane.stream()
        await stream.update(1, (*SHOP, "v1", plane.release(leaky(upstream.url + "/echo"))), synced=True)
        # Its answer has what was said, and the pipeline fails after it.
        config = leaky(upstream.url + "/echo")
        config["pipelines"][0]["stages"][2]["steps"][0]["transform"]["expression"] = "input.missing"
        await stream.update(2, (*SHOP, "v2", plane.release(config)))
        answer = await gate.post("shop", json={"message": f"I know {SECRET}"}, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        passed_on = upstream.seen[-1][2]["traceparent"]
        assert passed_on.startswith(f"00-{TRACE}-")
        assert "b7ad6b7169203331" not in passed_on
        assert answer.status_code == 502
        found = await one(plane, answer.headers["x-execution-id"])
        assert (found.Outcome.Name(found.outcome), found.error_reason) == ("FAILED", "STEP_FAILED")
        assert json.loads(found.input) == {"message": "I know [secret CANARY]"}
        asked, failed = found.steps[1], found.steps[2]
        assert json.loads(asked.input) == {"said": "I know [secret CANARY]"}
        assert json.loads(asked.output)["body"] == {"said": "I know [secret CANARY]"}
        assert "missing" in failed.error
        assert not failed.output
        assert "canary" not in str(plane.reports)


@pytest.mark.parametrize("capture", ["none", "all"])
async def test_capture_is_as_asked_for(plane, tmp_path, capture):
    async with start_gateway(tmp_path, plane.address, "--capture", capture) as server, gateway_client(server) as gate:
        await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
        well = await one(plane, (await gate.trigger("shop")).execution_id)
        failed = await one(plane, (await refused(gate.trigger("shop", given={"n": 1}))).metadata["execution_id"])
        if capture == "none":
            assert not any([well.input, well.output, failed.input, *(step.output for step in well.steps)])
            return
        assert json.loads(well.input) == {"message": "hello"}
        assert json.loads(well.output)["first"] == "v1"
        assert next(json.loads(step.output) for step in well.steps) == "v1"
        long = await one(plane, (await gate.trigger("shop", given={"message": "é" * 9000})).execution_id)
        assert len(long.input) <= 8 * 1024
        assert long.input.endswith("characters more)")


async def test_who_went_away_is_on_record(plane, tmp_path):
    async with (
        ScriptedUpstream().running() as upstream,
        start_gateway(tmp_path, plane.address) as server,
        gateway_client(server) as gate,
    ):
        await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1", upstream.url + "/hang"))), synced=True)
        # The upstream does not notice who went away: it hangs on.
        for hanging, call in enumerate((gate.post("shop"), gate.trigger("shop")), 1):
            known = set(plane.executions)
            running = asyncio.ensure_future(call)
            await eventually(lambda hanging=hanging: upstream.hanging == hanging)
            running.cancel()
            await eventually(lambda known=known: len(plane.executions) > len(known))
            (found,) = (plane.executions[key] for key in set(plane.executions) - known)
            assert found.Outcome.Name(found.outcome) == "CANCELLED"
            assert [step.Outcome.Name(step.outcome) for step in found.steps] == ["SUCCEEDED", "CANCELLED"]


async def test_nothing_is_lost_while_the_control_plane_is_away_or_when_the_gateway_is_killed(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server:
        async with gateway_client(server) as gate:
            await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
            plane.faulty_report = lambda _request: Ended(grpc.StatusCode.UNAVAILABLE, "the store is away")
            ran = {(await gate.trigger("shop")).execution_id for _ in range(300)}
            spool = tmp_path / "gateway-1" / "executions"

            def kept():
                return sum(int(path.stem.partition("-")[2]) for path in spool.glob("*.executions"))

            await eventually(lambda: kept() == 300)
        await server.kill()
        assert not plane.executions
        plane.faulty_report = lambda _request: None
        await server.start()
        await eventually(lambda: set(plane.executions) == ran)
        await eventually(lambda: kept() == 0)


async def test_a_gateway_that_stops_delivers_first(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
        ran = {(await gate.trigger("shop")).execution_id for _ in range(20)}
        assert await server.stop() == 0
        assert set(plane.executions) == ran


async def test_one_that_is_refused_holds_up_no_other(plane, tmp_path):
    async with start_gateway(tmp_path, plane.address) as server, gateway_client(server) as gate:
        await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)

        def refuses_one(request):
            bad = any(execution.endpoint == "nowhere" for execution in request.executions)
            return Ended(grpc.StatusCode.INVALID_ARGUMENT, "executions[0].endpoint: no") if bad else None

        plane.faulty_report = refuses_one
        ran = {(await gate.trigger("shop")).execution_id for _ in range(10)}
        await gate.post("shop", "nowhere")
        ran |= {(await gate.trigger("shop")).execution_id for _ in range(10)}
        await eventually(lambda: set(plane.executions) == ran)
        await gate.trigger("shop")
        await eventually(lambda: plane.reports[-1].dropped == 1)
        assert samples((await gate.http.get("/metrics")).text)["pointsman_gateway_executions_dropped", ()] == 1
