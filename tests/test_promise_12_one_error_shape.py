"""One error shape: what bad input gets, over every door: a code, a reason, the values that matter, all violations at once."""

from __future__ import annotations

import asyncio
import copy
import re

import grpc
import pytest
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, deployments_pb2, releases_pb2
from tests.clients import BufCurl, refused
from tests.sample_apps import marked

HTTP_KEYS = {"error", "message", "details", "status_code", "timestamp"}


@pytest.fixture
async def app(stack):
    """Bound in production, in no other environment."""
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1")
    return app


def release_request(app, tag, change):
    """A CreateRelease whose config was changed by a function."""
    config = copy.deepcopy(marked("bad"))
    change(config)
    request = releases_pb2.CreateReleaseRequest(app=app, tag=tag)
    json_format.ParseDict(config, request.config)
    return request


def set_expression(config, text):
    config["pipelines"][0]["stages"][0]["steps"][0]["transform"]["expression"] = text


def set_unknown_pipeline(config):
    config["endpoints"][0]["pipeline"] = "nowhere"


def set_unknown_tool(config):
    config["pipelines"][0]["stages"][1]["steps"][0] = {"name": "answer", "tool_call": {"tool": "nothing"}}


def set_bad_template(config):
    config["tools"] = [{"name": "get", "http": {"url": "http://127.0.0.1/{{ input."}}]


def set_bad_schema(config):
    config["endpoints"][0]["input_schema"] = {"type": "no-such-type"}


BAD_CONFIGS = {
    "an expression that does not parse": (
        lambda c: set_expression(c, "input."),
        r"pipelines\[0\]\.stages\[0\]\.steps\[0\]\.transform\.expression",
    ),
    "an expression over an unknown name": (lambda c: set_expression(c, "nobody.x"), r"pipelines\[0\]\.stages\[0\]\.steps\[0\]\.transform"),
    "an endpoint without its pipeline": (set_unknown_pipeline, r"endpoints\[0\]\.pipeline"),
    "a step without its tool": (set_unknown_tool, r"pipelines\[0\]\.stages\[1\]\.steps\[0\]\.tool_call\.tool"),
    "a template that does not parse": (set_bad_template, r"tools\[0\]\.http\.url"),
    "a schema that is none": (set_bad_schema, r"endpoints\[0\]\.input_schema"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
async def test_a_bad_config_is_refused_with_its_path_and_nothing_is_stored(stack, app, case):
    change, path = BAD_CONFIGS[case]
    refusal = await refused(stack.plane.releases.CreateRelease(release_request(app, "bad", change)))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert any(re.search(path, violation) for violation in refusal.violations), refusal
    missing = await refused(stack.plane.releases.GetRelease(releases_pb2.GetReleaseRequest(app=app, tag="bad")))
    assert missing.reason == "RELEASE_NOT_FOUND"


async def test_all_violations_come_at_once(stack, app):
    def change(config):
        set_unknown_pipeline(config)
        set_expression(config, "input.")
        set_unknown_tool(config)

    refusal = await refused(stack.plane.releases.CreateRelease(release_request(app, "bad", change)))
    assert len(refusal.violations) >= 3
    assert refusal.metadata["violations"] == str(len(refusal.violations))


REFUSALS = {
    "an invalid tag": ("INVALID_ARGUMENT", "INVALID_FIELD", lambda p, a: p.create_release(a, "v 1", marked("v1"))),
    "an invalid app": (
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        lambda p, _: p.apps.CreateApp(apps_pb2.CreateAppRequest(app="No_Good")),
    ),
    "an invalid environment": ("INVALID_ARGUMENT", "INVALID_FIELD", lambda p, a: p.deploy(a, "v1", "Not Here")),
    "a request id that is no UUID": ("INVALID_ARGUMENT", "INVALID_FIELD", lambda p, a: p.deploy(a, "v1", request_id="again")),
    "a negative page size": (
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        lambda p, a: p.releases.ListReleases(releases_pb2.ListReleasesRequest(app=a, page_size=-1)),
    ),
    "a page token that is none": (
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        lambda p, a: p.releases.ListReleases(releases_pb2.ListReleasesRequest(app=a, page_token="next")),
    ),
    "a taken tag": ("ALREADY_EXISTS", "RELEASE_CONFLICT", lambda p, a: p.create_release(a, "v1", marked("other"))),
    "a taken app": ("ALREADY_EXISTS", "APP_EXISTS", lambda p, a: p.apps.CreateApp(apps_pb2.CreateAppRequest(app=a))),
    "an unknown app": ("NOT_FOUND", "APP_NOT_FOUND", lambda p, _: p.deploy("nobody", "v1")),
    "an unknown release": ("NOT_FOUND", "RELEASE_NOT_FOUND", lambda p, a: p.deploy(a, "v11")),
    "an unknown environment": ("NOT_FOUND", "ENVIRONMENT_NOT_FOUND", lambda p, a: p.deploy(a, "v1", "productoin")),
    "nothing bound to promote": (
        "NOT_FOUND",
        "NO_RELEASE_DEPLOYED",
        lambda p, a: p.deployments.Promote(deployments_pb2.PromoteRequest(app=a, from_environment="staging", to_environment="production")),
    ),
    "nothing bound to get": ("NOT_FOUND", "NO_RELEASE_DEPLOYED", lambda p, a: p.binding(a, "staging")),
    "a stale revision": ("ABORTED", "REVISION_CONFLICT", lambda p, a: p.deploy(a, "v2", expected_revision=1)),
    "an expectation of nothing where something is": (
        "ABORTED",
        "REVISION_CONFLICT",
        lambda p, a: p.deploy(a, "v2", expected_revision=0),
    ),
    "nothing behind to roll back to": ("FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK", lambda p, a: p.rollback(a)),
    "never live here": ("FAILED_PRECONDITION", "NEVER_LIVE_HERE", lambda p, a: p.rollback(a, to_release="v2")),
    "a reason that is too long": ("INVALID_ARGUMENT", "INVALID_FIELD", lambda p, a: p.deploy(a, "v2", reason="x" * 1025)),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_the_control_plane_refuses_and_changes_nothing(stack, app, case):
    code, reason, call = REFUSALS[case]
    before = await stack.plane.binding(app)
    refusal = await refused(call(stack.plane, app))
    assert (refusal.code, refusal.reason) == (code, reason), refusal
    assert refusal.kinds.count("ErrorInfo") == 1
    assert refusal.message
    if code == "INVALID_ARGUMENT":
        assert refusal.violations
        assert all(refusal.violations)
    assert await stack.plane.binding(app) == before


async def test_near_ids_are_named(stack, app):
    assert (await refused(stack.plane.deploy(app, "v11"))).metadata["near"] != ""
    assert "production" in (await refused(stack.plane.deploy(app, "v1", "productoin"))).message


TRIGGERS = {
    "a body that breaks the schema": (400, "INVALID_INPUT", "where", {"message": 7}, {}),
    "a body that is no object": (400, "INVALID_INPUT", "where", [1], {}),
    "an unknown endpoint": (404, "ENDPOINT_NOT_FOUND", "were", {"message": "x"}, {}),
    "an unknown environment": (
        404,
        "NO_RELEASE_DEPLOYED",
        "where",
        {"message": "x"},
        {"X_Environment": "nowhere"},
    ),
    "an environment with nothing bound": (404, "NO_RELEASE_DEPLOYED", "where", {"message": "x"}, {"X_Environment": "staging"}),
    "an unknown app": (404, "NO_RELEASE_DEPLOYED", "where", {"message": "x"}, {"X_App": "nobody"}),
    "a pin to what is not loaded": (412, "RELEASE_NOT_LOADED", "where", {"message": "x"}, {"X_Release": "v2"}),
}


@pytest.mark.parametrize("case", TRIGGERS)
async def test_the_gateway_refuses_alike_over_http_and_grpc(stack, app, case):
    status, reason, endpoint, body, headers = TRIGGERS[case]
    response = await stack.gates[0].post(app, endpoint, json=body, **headers)
    error = response.json()
    assert response.status_code == error["status_code"] == status, error
    assert error["error"] == reason
    assert set(error) == HTTP_KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", error["timestamp"])
    violations = error["details"].pop("violations", [])
    assert bool(violations) == (error["error"] == "INVALID_INPUT")
    assert all(set(violation) == {"field", "description"} for violation in violations)
    assert all(isinstance(value, str) for value in error["details"].values())
    if isinstance(body, dict):
        fields = {name.removeprefix("X_").lower(): value for name, value in headers.items()}
        call = stack.gates[0].trigger(fields.pop("app", app), endpoint, given=body, **fields)
        refusal = await refused(call)
        assert (refusal.reason, refusal.message) == (error["error"], error["message"])


async def test_a_body_that_is_not_json(stack, app):
    response = await stack.gates[0].http.post("/v1/trigger/where", content=b"{", headers={"X-App": app})
    assert (response.status_code, response.json()["error"]) == (400, "INVALID_INPUT")


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/v1/nothing"), ("POST", "/livez")])
async def test_even_unknown_paths_and_methods_answer_in_the_one_shape(stack, method, path):
    response = await stack.gates[0].http.request(method, path)
    assert response.status_code in (404, 405)
    assert set(response.json()) == HTTP_KEYS


async def test_another_method_than_the_endpoints_is_told_which_it_takes(stack, app):
    response = await stack.gates[0].http.delete("/v1/trigger/where", headers={"X-App": app})
    assert (response.status_code, response.json()["error"], response.headers["Allow"]) == (404, "ENDPOINT_NOT_FOUND", "POST")


async def test_a_step_that_fails_is_named(stack):
    config = marked("v1")
    set_expression(config, "input.missing.deeper")
    app = await stack.plane.create_app(v1=config)
    await stack.plane.deploy(app, "v1")
    refusal = await refused(stack.gates[0].trigger(app))
    assert (refusal.code, refusal.reason) == ("ABORTED", "STEP_FAILED")
    assert (refusal.metadata["stage"], refusal.metadata["step"]) == ("begin", "start")
    assert refusal.metadata["cause"]
    response = await stack.gates[0].post(app)
    assert (response.status_code, response.json()["error"]) == (502, "STEP_FAILED")
    assert response.json()["details"]["step"] == "start"
    # A failure is attributed too.
    assert response.headers["X-Release"] == "v1"
    assert response.headers["X-Execution-Id"]


@pytest.mark.parametrize(("letter", "count"), [("k", 100), ("k", 5000), ("ä", 5000), ("\U0001f600", 400), ("k", 1_000_000)])
async def test_an_error_that_quotes_much_is_cut_and_still_an_error(stack, letter, count):
    """gRPC clients take 8 KiB of metadata; of more they say nothing but that it was too much."""
    config = marked("v1")
    set_expression(config, "input[input.message]")
    app = await stack.plane.create_app(v1=config)
    await stack.plane.deploy(app, "v1")
    refusal = await refused(stack.gates[0].trigger(app, given={"message": letter * count}))
    assert (refusal.code, refusal.reason, refusal.metadata["step"]) == ("ABORTED", "STEP_FAILED", "start")
    assert letter * 40 in refusal.message
    over_http = await stack.gates[0].post(app, json={"message": letter * count})
    assert (over_http.status_code, len(over_http.text) < 10_000) == (502, True)


async def test_more_violations_than_a_status_has_room_for_are_counted(stack, app):
    def break_all(config):
        config["endpoints"] = [{"name": f"endpoint-{number}", "pipeline": "nowhere"} for number in range(150)]

    refusal = await refused(stack.plane.releases.CreateRelease(release_request(app, "bad", break_all)))
    assert (refusal.reason, refusal.metadata["violations"]) == ("INVALID_FIELD", "150")
    assert refusal.violations[:2] == ("endpoints[0].pipeline", "endpoints[1].pipeline")
    assert (len(refusal.violations) >= 20, refusal.violations[-1]) == (True, "")


async def test_bytes_that_are_no_message_are_the_callers_fault(stack):
    async with grpc.aio.insecure_channel(stack.control_plane.grpc) as channel:
        call = channel.unary_unary("/pointsman.v1.DeploymentService/Deploy")(b"\xff\xff\xff")
        refusal = await refused(call)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_another_grpc_implementation_reads_the_details(stack, app, buf):
    error = await BufCurl(buf, stack.gateways[0].grpc).refused("TriggerService/Trigger", app=app, endpoint="were", input={"message": "x"})
    assert (error.code, error.reason, error.metadata["endpoint"]) == ("not_found", "ENDPOINT_NOT_FOUND", "were")


async def test_conflicting_deploys_leave_one_winner(stack, app):
    expected = (await stack.plane.binding(app)).revision
    for tag in ("a", "b", "c", "d"):
        await stack.plane.create_release(app, tag, marked(tag))
    calls = [stack.plane.deploy(app, tag, expected_revision=expected) for tag in ("a", "b", "c", "d")]
    results = await asyncio.gather(*calls, return_exceptions=True)
    winners = [result for result in results if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert (await stack.plane.binding(app)).revision == winners[0].binding.revision
    assert (await stack.gates[0].trigger(app)).release == winners[0].binding.release
