"""What Prometheus reads: true, parseable, and bounded however many labels there are."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from pointsman.metrics import MAX_SERIES, SECONDS, Counts, Durations, Exposition, Gauges
from tests.clients import gateway_client, refused
from tests.eventually import eventually
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane


def samples(page):
    """{(name, labels): value}."""
    families = text_string_to_metric_families(page.decode() if isinstance(page, bytes) else page)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_counts_durations_and_gauges():
    counts, durations, gauges = Counts("c", "Counted.", ["a", "b"]), Durations("d_seconds", "Took.", ["a"]), Gauges()
    gauges.add("g", "Is.", lambda: 7)
    counts.add(("1", "2"))
    counts.add(("1", "2"), 3)
    for seconds in (0.0009, 0.001, 0.002, 100.0):
        durations.add(("x",), seconds)
    found = samples(Exposition(counts, durations, gauges).page())
    assert found["c_total", (("a", "1"), ("b", "2"))] == 4
    assert found["g", ()] == 7
    bucket = {dict(labels)["le"]: value for (name, labels), value in found.items() if name == "d_seconds_bucket"}
    assert (bucket["0.001"], bucket["0.0025"], bucket["60.0"], bucket["+Inf"]) == (2, 3, 3, 4)
    assert len(bucket) == len(SECONDS) + 1
    assert found["d_seconds_count", (("a", "x"),)] == 4
    assert abs(found["d_seconds_sum", (("a", "x"),)] - 100.0039) < 1e-9


def test_series_are_bounded_and_nothing_is_lost():
    counts, durations = Counts("c", "Counted.", ["a"]), Durations("d_seconds", "Took.", ["a"])
    for number in range(3 * MAX_SERIES):
        counts.add((str(number),))
        durations.add((str(number),), 1.0)
    found = samples(Exposition(counts, durations).page())
    counted = {labels: value for (name, labels), value in found.items() if name == "c_total"}
    assert len(counted) == MAX_SERIES + 1
    assert sum(counted.values()) == 3 * MAX_SERIES
    assert counted[(("a", "other"),)] == 2 * MAX_SERIES
    assert found["d_seconds_count", (("a", "other"),)] == 2 * MAX_SERIES


async def test_a_control_plane_tells_of_its_calls_and_of_its_gateways(stack):
    app = await stack.plane.create_app(v1=marked("v1"))
    deployed = await stack.plane.deploy(app, "v1")
    assert (await refused(stack.plane.deploy(app, "v9"))).reason == "RELEASE_NOT_FOUND"

    async with httpx2.AsyncClient(base_url=f"http://{stack.control_plane.http}", trust_env=False) as http:

        async def told():
            found = samples((await http.get("/metrics")).text)
            assert found["pointsman_calls_total", (("method", "Deploy"), ("outcome", "OK"))] >= 1
            assert found["pointsman_calls_total", (("method", "Deploy"), ("outcome", "RELEASE_NOT_FOUND"))] >= 1
            assert found["pointsman_call_duration_seconds_count", (("method", "Deploy"),)] >= 2
            assert not [name for name, labels in found if name.startswith("pointsman_call_duration") and ("method", "Sync") in labels]
            assert found["pointsman_revision", ()] >= deployed.binding.revision
            assert found["pointsman_bindings", ()] >= 1
            assert found["pointsman_gateways_connected", ()] >= 1
            assert found["pointsman_gateways_behind", ()] == 0
            return found["pointsman_watchers", ()] >= found["pointsman_gateways_connected", ()]

        await eventually(told)


async def test_a_gateway_tells_of_its_triggers_and_of_itself(tmp_path):
    async with (
        ScriptedControlPlane().running() as plane,
        start_gateway(tmp_path, plane.address) as server,
        gateway_client(server) as gate,
    ):
        await (await plane.stream()).update(7, ("shop", "production", "v1", plane.release(marked("v1"))), synced=True)
        for _ in range(3):
            await gate.trigger("shop")
        await gate.post("shop", "not/../there")
        await gate.post("unknown-app")

        async def found():
            answer = await gate.http.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            return samples(answer.text)

        def triggers(found, **labels):
            wanted = set(labels.items())
            return sum(value for (name, held), value in found.items() if name == "pointsman_triggers_total" and wanted <= set(held))

        async def delivered():
            await eventually(lambda: len(plane.executions) == 5)

        async def counted():
            return triggers(await found()) == 5

        await eventually(counted)
        now = await found()
        assert triggers(now, app="shop", environment="production", endpoint="where", release="v1", outcome="succeeded", reason="") == 3
        # What a caller made up is no label.
        assert triggers(now, app="shop", endpoint="", outcome="refused", reason="ENDPOINT_NOT_FOUND") == 1
        assert triggers(now, app="", outcome="refused", reason="NO_RELEASE_DEPLOYED") == 1
        where = (("app", "shop"), ("endpoint", "where"), ("environment", "production"), ("worker", ""))
        assert now["pointsman_trigger_duration_seconds_count", where] == 3
        step = (("app", "shop"), ("kind", "transform"), ("step", "answer"), ("worker", ""))
        assert now["pointsman_step_duration_seconds_count", step] == 3
        await delivered()
        now = await found()
        for name, value in {
            "ready": 1,
            "connected": 1,
            "revision": 7,
            "bindings": 1,
            "rejected_bindings": 0,
            "triggers_running": 0,
            "triggers_waiting": 0,
            "executions_waiting": 0,
            "executions_waiting_bytes": 0,
            "executions_dropped": 0,
        }.items():
            assert now[f"pointsman_gateway_{name}", ()] == value
        assert 0 <= now["pointsman_gateway_staleness_seconds", ()] < 60
