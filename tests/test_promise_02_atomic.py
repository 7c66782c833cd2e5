"""Atomic: one trigger runs on exactly one release, from the first step to the last, whatever is deployed meanwhile."""

from __future__ import annotations

import asyncio
import itertools

from tests.clients import value
from tests.eventually import eventually
from tests.sample_apps import marked
from tests.tool_server import tool_server

DEPLOYS = 20


async def test_a_trigger_that_a_deploy_overtakes_ends_on_the_release_it_began_with(stack):
    gate = stack.gates[0]
    async with tool_server() as tool:
        app = await stack.plane.create_app(v1=marked("v1", tool.url), v2=marked("v2"))
        await stack.plane.deploy(app, "v1")
        tool.open.clear()
        held = [asyncio.create_task(gate.post(app)), asyncio.create_task(gate.trigger(app))]
        await eventually(lambda: tool.waiting == 2)

        deployed = await stack.plane.deploy(app, "v2")
        assert deployed.rollout.gateways_applied == 2
        assert (await gate.post(app)).json()["release"] == "v2"

        tool.open.set()
        over_http, over_grpc = await held[0], await held[1]
        assert over_http.headers["X-Release"] == "v1"
        assert (over_http.json()["first"], over_http.json()["last"], over_http.json()["release"]) == ("v1", "v1", "v1")
        answer = value(over_grpc.output)
        assert (over_grpc.release, answer["first"], answer["last"], answer["release"]) == ("v1", "v1", "v1", "v1")


async def test_twenty_deploys_under_load_fail_no_trigger_and_mix_no_answer(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1")
    done = asyncio.Event()
    seen: list[tuple[str, ...]] = []

    async def trigger_on(gate, over_http):
        last_revision = 0
        while not done.is_set():
            if over_http:
                response = await gate.post(app)
                assert response.status_code == 200, response.text
                answer, release, revision = response.json(), response.headers["X-Release"], int(response.headers["X-Revision"])
            else:
                response = await gate.trigger(app)
                answer, release, revision = value(response.output), response.release, response.revision
            seen.append((release, answer["first"], answer["last"], answer["release"]))
            assert revision >= last_revision
            last_revision = revision

    loops = [asyncio.create_task(trigger_on(gate, over_http)) for gate in stack.gates for over_http in (True, False)]
    for tag in itertools.islice(itertools.cycle(["v2", "v1"]), DEPLOYS):
        deployed = await stack.plane.deploy(app, tag)
        assert deployed.rollout.gateways_applied == deployed.rollout.gateways_total == 2
        # The very next trigger on either gateway runs the new release.
        for gate in stack.gates:
            assert (await gate.trigger(app)).release == tag
    done.set()
    await asyncio.gather(*loops)
    assert [answer for answer in seen if len(set(answer)) != 1] == []
    assert {answer[0] for answer in seen} == {"v1", "v2"}
