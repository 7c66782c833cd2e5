"""OpenTelemetry spans of a real gateway, as an OTLP collector gets them; and the ids that lines of its log have."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog.testing import capture_logs

from data_plane.gateway import Gateway
from data_plane.holder import Holder
from data_plane.lookup import Asked, Here
from data_plane.staleness import Staleness
from data_plane.steps.base import Clients
from data_plane.tracing import name_execution, trace_of
from pointsman.errors import Internal
from tests.clients import gateway_client, refused
from tests.eventually import eventually
from tests.processes import BIN, run, start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane
from tests.scripted_upstream import ScriptedUpstream

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "planted-canary-4711"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2"}


class Collected:
    """What a collector was sent."""

    def __init__(self, upstream):
        self.upstream = upstream

    def resources(self):
        exports = [ExportTraceServiceRequest.FromString(body) for _, path, _, body in self.upstream.seen if path == "/v1/traces"]
        return [resource for export in exports for resource in export.resource_spans]

    def spans(self, execution_id):
        """Those of one trigger, by name, once they are here."""
        every = [span for resource in self.resources() for scope in resource.scope_spans for span in scope.spans]
        traces = {span.trace_id for span in every if attributes(span).get("pointsman.execution_id") == execution_id}
        return {span.name: span for span in every if span.trace_id in traces}


def attributes(thing):
    return {one.key: one.value.string_value or one.value.int_value for one in thing.attributes}


@contextlib.asynccontextmanager
async def exporting(folder, *flags, config=None, **environment):
    """(gateway, its client, its control plane, its upstream, what is collected), `shop` in production with a tool."""
    async with ScriptedUpstream().running() as upstream, ScriptedControlPlane().running() as plane:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": upstream.url, **QUICK, **environment}
        async with start_gateway(folder, plane.address, *flags, **variables) as server, gateway_client(server) as gate:
            digest = plane.release(config(upstream) if config else marked("v1", upstream.url + "/text"))
            await (await plane.stream()).update(7, ("shop", "production", "v1", digest), synced=True)
            yield server, gate, plane, upstream, Collected(upstream)


async def test_a_trigger_its_stages_and_steps_are_one_trace_with_its_caller_and_its_upstream(tmp_path):
    async with exporting(tmp_path) as (_, gate, plane, upstream, collected):
        before = time.time_ns()
        answer = await gate.post("shop", traceparent=f"00-{TRACE}-{CALLER}-01", tracestate="vendor=7")
        execution_id = answer.headers["x-execution-id"]
        await eventually(lambda: len(collected.spans(execution_id)) == 7)
        spans = collected.spans(execution_id)
        trigger = spans["trigger where"]
        assert (trigger.trace_id.hex(), trigger.parent_span_id.hex(), trigger.kind) == (TRACE, CALLER, Span.SPAN_KIND_SERVER)
        assert attributes(trigger) == {
            "pointsman.execution_id": execution_id,
            "pointsman.gateway_id": "gateway-1",
            "pointsman.app": "shop",
            "pointsman.environment": "production",
            "pointsman.endpoint": "where",
            "pointsman.release": "v1",
            "pointsman.digest": answer.headers["x-release-digest"],
            "pointsman.revision": 7,
            "pointsman.outcome": "succeeded",
        }
        for stage, step in (("begin", "start"), ("between", "asked"), ("end", "answer")):
            assert spans[f"stage {stage}"].parent_span_id == trigger.span_id
            assert spans[f"step {step}"].parent_span_id == spans[f"stage {stage}"].span_id
            inside = spans[f"step {step}"]
            assert before <= trigger.start_time_unix_nano <= inside.start_time_unix_nano <= inside.end_time_unix_nano <= time.time_ns()
        assert {span.status.code for span in spans.values()} == {Status.STATUS_CODE_UNSET}
        # The upstream's own span would hang below the step that called it.
        passed_on = next(headers for _, path, headers, _ in upstream.seen if path.startswith("/text"))
        assert passed_on["traceparent"] == f"00-{TRACE}-{spans['step asked'].span_id.hex()}-01"
        assert passed_on["tracestate"] == "vendor=7"
        assert attributes(collected.resources()[0].resource)["service.name"] == "pointsman-gateway"
        await eventually(lambda: plane.executions[execution_id].trace_id == TRACE)


def failing(upstream):
    """Its tool repeats a secret, and the step after it says it in its failure."""
    config = marked("v1", upstream.url + "/echo")
    config["tools"][0]["http"] |= {"method": "POST", "headers": {"x-key": "${secret:CANARY}"}}
    config["pipelines"][0]["stages"][1]["steps"][0]["tool_call"]["arguments"] = "{'said': input.message}"
    config["pipelines"][0]["stages"][2]["steps"][0]["transform"]["expression"] = "{'a': 1}[steps.asked.body.said]"
    return config


async def test_failures_are_errors_and_show_no_secret_through_both_doors(tmp_path):
    async with exporting(tmp_path, config=failing, POINTSMAN_SECRET_CANARY=SECRET) as (_, gate, plane, _, collected):
        over_http = await gate.post("shop", json={"message": SECRET})
        over_grpc = await refused(gate.trigger("shop", given={"message": SECRET}))
        unknown = await gate.post("nobody")
        for execution_id in (over_http.headers["x-execution-id"], over_grpc.metadata["execution_id"]):
            await eventually(lambda id_=execution_id: len(collected.spans(id_)) == 7)
            spans = collected.spans(execution_id)
            wrong = {name for name, span in spans.items() if span.status.code == Status.STATUS_CODE_ERROR}
            assert wrong == {"trigger where", "stage end", "step answer"}
            assert attributes(spans["trigger where"])["error.type"] == "STEP_FAILED"
            assert not spans["trigger where"].parent_span_id
            # A trace that began here is on record too.
            await eventually(lambda id_=execution_id: id_ in plane.executions)
            assert plane.executions[execution_id].trace_id == spans["trigger where"].trace_id.hex()
        await eventually(lambda: collected.spans(unknown.headers["x-execution-id"]))
        (refusal,) = collected.spans(unknown.headers["x-execution-id"]).values()
        assert (refusal.name, refusal.status.code) == ("trigger", Status.STATUS_CODE_UNSET)
        assert attributes(refusal)["error.type"] == "NO_RELEASE_DEPLOYED"
        assert SECRET not in str(collected.resources())


async def test_what_a_caller_does_not_sample_is_not_exported_and_passed_on_as_such(tmp_path):
    async with exporting(tmp_path) as (_, gate, _, upstream, collected):
        unsampled = await gate.post("shop", traceparent=f"00-{TRACE}-{CALLER}-00")
        passed_on = next(headers["traceparent"] for _, path, headers, _ in upstream.seen if path.startswith("/text"))
        assert passed_on.startswith(f"00-{TRACE}-")
        assert passed_on.endswith("-00")
        last = await gate.post("shop")
        await eventually(lambda: collected.spans(last.headers["x-execution-id"]))
        assert not collected.spans(unsampled.headers["x-execution-id"])


async def test_what_is_left_is_exported_at_the_end_and_a_collector_that_is_away_holds_up_nobody(tmp_path):
    async with exporting(tmp_path, OTEL_BSP_SCHEDULE_DELAY="600000") as (server, gate, _, _, collected):
        answer = await gate.post("shop")
        assert await server.stop() == 0
        assert len(collected.spans(answer.headers["x-execution-id"])) == 7
    async with ScriptedControlPlane().running() as plane:
        away = start_gateway(tmp_path, plane.address, "--otel", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
        async with away as server, gateway_client(server) as gate:
            await (await plane.stream()).update(7, ("shop", "production", "v1", plane.release(marked("v1"))), synced=True)
            assert (await gate.post("shop")).status_code == 200
            assert await server.stop() == 0


@pytest.mark.parametrize(
    ("hidden", "variables", "said"),
    [
        ("opentelemetry", {}, "the extra otel is not installed: pip install 'pointsman[otel]'"),
        ("nothing", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
    ],
)
async def test_who_asks_for_spans_and_cannot_have_them_is_told_what_to_do(tmp_path, hidden, variables, said):
    # As an environment without the extra: the package is there, and cannot be imported.
    (tmp_path / hidden).mkdir()
    (tmp_path / hidden / "__init__.py").write_text("raise ModuleNotFoundError('hidden')\n")
    environment = {"PYTHONPATH": str(tmp_path), **variables}
    command = (BIN / "pointsman", "gateway", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--otel")
    ended = await run(*command, environment=environment)
    assert (ended.code, ended.stderr.count("\n")) == (1, 2), ended
    assert said in ended.stderr
    async with ScriptedControlPlane().running() as plane:
        automatic = {**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
        async with start_gateway(tmp_path, plane.address, **automatic) as server:
            assert any("spans are not exported" in line and said in line for line in server.stderr)


async def test_lines_of_the_log_are_objects_with_the_execution_and_its_trace(tmp_path):
    async with ScriptedControlPlane().running() as plane:
        flags = ("--log-format", "json", "--environment", "production")
        async with start_gateway(tmp_path, plane.address, *flags) as server, gateway_client(server) as gate:
            await (await plane.stream()).update(7, ("shop", "production", "v1", plane.release(marked("v1"))), synced=True)
            await gate.post("shop", traceparent=f"00-{TRACE}-{CALLER}-01")
            await server.stop()
        lines = [json.loads(line) for line in server.stderr]
        assert {"event", "level", "timestamp"} <= set.intersection(*map(set, lines))
        assert "stopping" in [line["event"] for line in lines]


async def test_what_is_logged_while_a_trigger_runs_names_it_and_its_trace(monkeypatch):
    def break_down(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("data_plane.gateway.find_release", break_down)
    holder = Holder(lambda: datetime.now(UTC))
    here = Here(gateway_id="g", default_environment="production", control_plane="cp")
    ended = []
    gateway = Gateway(holder, Staleness(holder), Clients.open(), here, on_end=ended.append)
    with capture_logs(processors=[name_execution]) as lines, pytest.raises(Internal):
        await gateway.trigger(Asked(endpoint="where", input={}, trace=trace_of(f"00-{TRACE}-{CALLER}-01")))
    assert [(line["event"], line["execution_id"], line["trace_id"]) for line in lines] == [
        ("a trigger failed", ended[0].execution_id, TRACE)
    ]
