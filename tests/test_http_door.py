"""The gateway's HTTP door: headers in and out, and one shape for every refusal, whatever comes in."""

import asyncio
from datetime import UTC, datetime

import httpx2
import pytest
from google.protobuf import json_format

from data_plane.access import Access
from data_plane.gateway import Gateway
from data_plane.holder import Change, Holder
from data_plane.http import HttpApp
from data_plane.loaded import compile_release
from data_plane.loading import Compiler
from data_plane.lookup import Here
from data_plane.metrics import Metrics
from data_plane.secrets import Secrets
from data_plane.staleness import Staleness
from data_plane.status import Status
from data_plane.steps.base import Clients
from data_plane.sync import Sync
from data_plane.sync_stream import Me
from data_plane.table import Bound
from pointsman.settings import Address
from pointsman.v1.config_pb2 import AppConfig
from pointsman.web import HttpServer
from tests.eventually import eventually
from tests.scripted_upstream import ScriptedUpstream
from tests.test_pipeline import digest_of

PROPERTIES = {"message": {"type": "string"}, "n": {"type": "integer"}, "flag": {"type": "boolean"}, "tags": {"type": "array"}}


def config(upstream: str) -> AppConfig:
    echo = {"name": "p", "stages": [{"name": "s", "steps": [{"name": "a", "transform": {"expression": "input"}}]}]}
    slow = {"name": "slow", "stages": [{"name": "s", "steps": [{"name": "call", "tool_call": {"tool": "hang"}, "timeout": "20s"}]}]}
    broken = {"name": "broken", "stages": [{"name": "s", "steps": [{"name": "a", "transform": {"expression": "input.missing"}}]}]}
    return json_format.ParseDict(
        {
            "endpoints": [
                {"name": "echo", "pipeline": "p", "input_schema": {"type": "object", "properties": PROPERTIES}},
                {"name": "find", "path": "/things/find", "method": "GET", "pipeline": "p", "input_schema": {"properties": PROPERTIES}},
                {"name": "slow", "pipeline": "slow", "timeout": "0.2s"},
                {"name": "one", "pipeline": "slow", "max_concurrency": 1},
                {"name": "broken", "pipeline": "broken"},
            ],
            "pipelines": [echo, slow, broken],
            "tools": [{"name": "hang", "http": {"url": upstream + "/hang"}}],
        },
        AppConfig(),
    )


class Door:
    def __init__(self, holder: Holder, gateway: Gateway, http: httpx2.AsyncClient, upstream: ScriptedUpstream) -> None:
        self.holder, self.gateway, self.http, self.upstream = holder, gateway, http, upstream

    async def bind(self, revision: int, *bindings: tuple[str, str, str], config: AppConfig) -> None:
        snapshot = config.SerializeToString(deterministic=True)
        self.holder.keep(compile_release(digest_of(snapshot), snapshot, Secrets(environment={})))
        bound = [Bound(app=a, environment=e, release=r, digest=digest_of(snapshot), revision=revision) for a, e, r in bindings]
        self.holder.flip(Change(revision=revision, store_id="s", bindings=bound, unusable={}))

    async def refused(self, status: int, error: str, *arguments: object, **more: object) -> httpx2.Response:
        response = await self.http.request(*arguments, **more)
        body = response.json()
        assert set(body) == {"error", "message", "details", "status_code", "timestamp"}
        assert (response.status_code, body["status_code"], body["error"]) == (status, status, error), body
        assert datetime.fromisoformat(body["timestamp"]).utcoffset().total_seconds() == 0
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-gateway"] == "g1"
        return response


@pytest.fixture
async def bare():
    async with ScriptedUpstream().running() as upstream:
        clients, holder = Clients.open(), Holder(lambda: datetime.now(UTC))
        staleness = Staleness(holder)
        me = Me(gateway_id="g1", instance_id="i", version="1")
        status = Status(
            holder,
            staleness,
            Sync(holder, me, [], Compiler(Secrets(environment={}))),
            me,
            control_plane="cp:7400",
            default_environment="production",
        )
        here = Here(gateway_id="g1", default_environment="production", control_plane="cp:7400")
        gateway = Gateway(holder, staleness, clients, here)
        server = HttpServer(HttpApp(gateway, Access(holder), status, Metrics()))
        await server.start(Address("127.0.0.1", 0))
        async with httpx2.AsyncClient(base_url=f"http://{server.address}", timeout=20, trust_env=False) as http:
            yield Door(holder, gateway, http, upstream)
        await server.stop()
        await clients.aclose()


@pytest.fixture
async def door(bare):
    await bare.bind(7, ("shop", "production", "v1"), ("shop", "staging", "v2"), config=config(bare.upstream.url))
    return bare


async def test_promise_08_an_answer_names_what_ran(door):
    response = await door.http.post("/v1/trigger/echo", json={"message": "hi"}, headers={"X-Environment": "staging"})
    assert (response.status_code, response.json()) == (200, {"message": "hi"})
    named = {key: response.headers[key] for key in ("x-app", "x-environment", "x-release", "x-revision", "x-gateway")}
    assert named == {"x-app": "shop", "x-environment": "staging", "x-release": "v2", "x-revision": "7", "x-gateway": "g1"}
    assert response.headers["x-release-digest"].startswith("sha256:")
    assert len(response.headers["x-execution-id"]) == 36


async def test_without_an_environment_the_default_one_answers_and_an_empty_body_is_an_empty_object(door):
    response = await door.http.post("/v1/trigger/echo")
    assert (response.headers["x-release"], response.json()) == ("v1", {})


async def test_a_get_endpoint_takes_the_query_as_its_schema_says(door):
    response = await door.http.get("/v1/trigger/things/find?message=7&n=7&flag=true&tags=a&other=1&twice=1&twice=2")
    assert response.json() == {"message": "7", "n": 7, "flag": True, "tags": ["a"], "other": "1", "twice": ["1", "2"]}
    assert (await door.http.get("/v1/trigger/things/find?message=%C3%A9")).json() == {"message": "é"}
    for query, says in (("n=many", "is not of type"), ("message=a%00", "has the character NUL"), ("message=%FF", "the query is not UTF-8")):
        response = await door.refused(400, "INVALID_INPUT", "GET", f"/v1/trigger/things/find?{query}")
        assert says in response.json()["message"]


async def test_a_wrong_method_names_the_right_one(door):
    response = await door.refused(404, "ENDPOINT_NOT_FOUND", "GET", "/v1/trigger/echo")
    assert response.headers["allow"] == "POST"
    assert "takes POST, not GET" in response.json()["message"]


async def test_an_unknown_endpoint_app_or_environment(door):
    response = await door.refused(404, "ENDPOINT_NOT_FOUND", "POST", "/v1/trigger/ecko", json={})
    assert "Did you mean echo?" in response.json()["message"]
    assert response.headers["x-release"] == "v1"
    await door.refused(404, "NO_RELEASE_DEPLOYED", "POST", "/v1/trigger/echo", json={}, headers={"X-Environment": "development"})
    await door.refused(404, "NO_RELEASE_DEPLOYED", "POST", "/v1/trigger/echo", json={}, headers={"X-App": "other"})
    await door.refused(404, "ENDPOINT_NOT_FOUND", "GET", "/nothing/here")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{oops", "not JSON"),
        (b'{"n": NaN}', "not JSON"),
        (b'{"message": "\xff\xfe"}', "not JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "nested deeper than 32 levels"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32 levels"),
        (b'{"message": "a\\u0000b"}', "has the character NUL"),
        (b'{"message": "a", "n": 1, "message": "b"}', "the body has the key 'message' twice"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"message": 3}', "is not of type"),
    ],
)
async def test_a_bad_body_is_refused_and_says_why(door, body, says):
    response = await door.refused(400, "INVALID_INPUT", "POST", "/v1/trigger/echo", content=body)
    assert says in response.json()["message"]


async def test_all_violations_of_the_schema_are_told(door):
    response = await door.refused(400, "INVALID_INPUT", "POST", "/v1/trigger/echo", json={"message": 3, "n": "x"})
    assert {violation["field"] for violation in response.json()["details"]["violations"]} == {"message", "n"}


async def test_a_number_that_no_expression_can_hold_is_refused(door):
    response = await door.refused(400, "INVALID_INPUT", "POST", "/v1/trigger/echo", content=b'{"n": 99999999999999999999999}')
    assert "64 bits" in response.json()["message"]


async def test_a_body_over_the_limit_is_refused_with_the_limit(door):
    async def in_pieces():
        for _ in range(6):
            yield b" " * 1024 * 1024

    for content in (b" " * (5 * 1024 * 1024), in_pieces()):
        response = await door.refused(413, "TOO_LARGE", "POST", "/v1/trigger/echo", content=content)
        assert response.json()["details"]["limit"] == str(4 * 1024 * 1024)


async def test_promise_06_a_fence_is_waited_for_then_refused_with_what_is_here(door):
    headers = {"X-Min-Revision": "8"}
    waiting = asyncio.create_task(door.http.post("/v1/trigger/echo", json={}, headers=headers))
    await eventually(lambda: door.gateway._in_flight == 1)
    await door.bind(8, ("shop", "production", "v3"), config=config(door.upstream.url))
    assert (await waiting).headers["x-release"] == "v3"
    response = await door.refused(503, "BEHIND", "POST", "/v1/trigger/echo", json={}, headers={"X-Min-Revision": "9"})
    assert (response.json()["details"]["asked"], response.json()["details"]["has"]) == ("9", "8")
    assert response.headers["retry-after"] == "1"
    await door.refused(400, "INVALID_FIELD", "POST", "/v1/trigger/echo", json={}, headers={"X-Min-Revision": "soon"})


async def test_a_pin_runs_exactly_that_release_or_refuses(door):
    changed = config(door.upstream.url)
    changed.pipelines[0].description = "other"
    await door.bind(8, ("shop", "production", "v3"), config=changed)
    pinned = await door.http.post("/v1/trigger/echo", json={}, headers={"X-Release": "v1"})
    assert (pinned.headers["x-release"], pinned.headers["x-revision"]) == ("v1", "7")
    response = await door.refused(412, "RELEASE_NOT_LOADED", "POST", "/v1/trigger/echo", json={}, headers={"X-Release": "v9"})
    assert response.json()["details"]["loaded"] == "v3, v1"


async def test_a_failing_step_and_a_slow_one(door):
    response = await door.refused(502, "STEP_FAILED", "POST", "/v1/trigger/broken", json={})
    assert (response.json()["details"]["stage"], response.json()["details"]["step"]) == ("s", "a")
    assert response.headers["x-execution-id"] == response.json()["details"]["execution_id"]
    await door.refused(504, "STEP_TIMEOUT", "POST", "/v1/trigger/slow", json={})


async def test_promise_08_a_failure_names_what_ran_and_a_refusal_what_did_not(door):
    failed = await door.refused(502, "STEP_FAILED", "POST", "/v1/trigger/broken", json={})
    named = {key: failed.headers[key] for key in ("x-app", "x-environment", "x-release", "x-revision")}
    assert named == {"x-app": "shop", "x-environment": "production", "x-release": "v1", "x-revision": "7"}
    assert failed.headers["x-release-digest"] == failed.json()["details"]["digest"]
    refused = await door.refused(412, "RELEASE_NOT_LOADED", "POST", "/v1/trigger/echo", json={}, headers={"X-Release": "v9"})
    # v9 is what was asked for, and did not run.
    assert "x-release" not in refused.headers
    assert refused.headers["x-execution-id"]


async def test_an_endpoint_with_a_limit_lets_as_many_wait_and_refuses_more(door):
    first, second = (asyncio.create_task(door.http.post("/v1/trigger/one", json={})) for _ in range(2))
    await eventually(lambda: door.upstream.hanging == 1 and door.gateway.in_flight == 2)
    response = await door.refused(429, "RATE_LIMITED", "POST", "/v1/trigger/one", json={})
    assert response.headers["retry-after"] == "1"
    assert response.json()["details"]["limit"] == "1"
    door.upstream.release.set()
    assert [(await first).status_code, (await second).status_code] == [200, 200]
    assert door.upstream.calls["/hang"] == 2


async def test_a_gateway_that_has_never_synced_says_so_and_is_not_ready(bare):
    await bare.refused(503, "NOT_SYNCED", "POST", "/v1/trigger/echo", json={})
    await bare.refused(503, "NOT_SYNCED", "GET", "/readyz")
    assert (await bare.http.get("/livez")).status_code == 200


async def test_several_apps_must_be_told_apart(door):
    await door.bind(9, ("forum", "production", "v1"), config=config(door.upstream.url))
    response = await door.refused(400, "INVALID_FIELD", "POST", "/v1/trigger/echo", json={})
    assert "forum, shop" in response.json()["message"]
    assert (await door.http.post("/v1/trigger/echo", json={}, headers={"X-App": "forum"})).headers["x-app"] == "forum"


async def test_the_status_page_and_readiness(door):
    assert (await door.http.get("/readyz")).text == "ready\n"
    status = (await door.http.get("/v1/status")).json()
    assert [(b["environment"], b["release"]) for b in status["bindings"]] == [("production", "v1"), ("staging", "v2")]
    assert (status["revision"], status["ready"], status["connected"]) == ("7", True, False)


async def test_a_defect_of_ours_tells_an_id_and_nothing_else(door, monkeypatch):
    async def broken(_asked: object) -> None:
        raise KeyError("inner text")

    monkeypatch.setattr(door.gateway, "trigger", broken)
    response = await door.http.post("/v1/trigger/echo", json={})
    assert (response.status_code, response.json()["error"]) == (500, "INTERNAL")
    assert "inner text" not in response.text
