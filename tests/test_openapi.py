"""The gateway describes itself: its endpoints, and an OpenAPI document that a tool which makes requests from it finds to be true."""

from __future__ import annotations

import json

import pytest

from tests.clients import gateway_client
from tests.processes import BIN, run, start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane

PIPELINE = {"name": "echo", "stages": [{"name": "s", "steps": [{"name": "a", "transform": {"expression": "input"}}]}]}
ADDRESS = {"type": "object", "required": ["street"], "properties": {"street": {"type": "string"}, "at": {"$ref": "#/$defs/at"}}}
PERSON = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "address": {"$ref": "#/$defs/address"},
    },
    "$defs": {"address": ADDRESS, "at": {"type": "array", "items": {"type": "number"}, "maxItems": 2}},
}
CONFIG = {
    "pipelines": [PIPELINE],
    "endpoints": [
        {"name": "person", "path": "/people/add", "pipeline": "echo", "input_schema": PERSON},
        {"name": "anything", "pipeline": "echo"},
        {
            "name": "find",
            "path": "/people/find",
            "method": "GET",
            "pipeline": "echo",
            "input_schema": {"required": ["name"], "properties": {"name": {"type": "string"}, "limit": {"type": "integer"}}},
        },
    ],
}


@pytest.fixture
async def served(tmp_path):
    async with (
        ScriptedControlPlane().running() as plane,
        start_gateway(tmp_path, plane.address) as server,
        gateway_client(server) as gate,
    ):
        digest = plane.release(CONFIG)
        told = [
            ("people", "production", "v1", digest),
            ("people", "staging", "v2", digest),
            ("shop", "staging", "v1", plane.release(marked("v1"))),
        ]
        await (await plane.stream()).update(3, *told, synced=True)
        yield server, gate


async def test_endpoints_are_listed_by_app_and_environment(served):
    _, gate = served
    found = (await gate.http.get("/v1/endpoints")).json()["endpoints"]
    named = [(one["app"], one["environment"], one["release"], one["path"], one["method"]) for one in found]
    assert named == [
        ("people", "production", "v1", "anything", "POST"),
        ("people", "production", "v1", "people/add", "POST"),
        ("people", "production", "v1", "people/find", "GET"),
        ("people", "staging", "v2", "anything", "POST"),
        ("people", "staging", "v2", "people/add", "POST"),
        ("people", "staging", "v2", "people/find", "GET"),
        ("shop", "staging", "v1", "where", "POST"),
    ]
    assert found[1]["input_schema"] == PERSON
    assert found[1]["revision"] == 3
    for place in ({"params": {"app": "shop"}}, {"headers": {"X-App": "shop", "X-Environment": "staging"}}):
        assert [one["path"] for one in (await gate.http.get("/v1/endpoints", **place)).json()["endpoints"]] == ["where"]
    assert (await gate.http.get("/v1/endpoints", params={"environment": "development"})).json() == {"endpoints": []}


async def test_the_document_is_of_one_app_in_one_environment(served):
    _, gate = served
    document = (await gate.http.get("/v1/openapi.json", params={"app": "people", "environment": "staging"})).json()
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", "v2")
    assert sorted(document["paths"]) == ["/v1/trigger/anything", "/v1/trigger/people/add", "/v1/trigger/people/find"]
    assert document["paths"]["/v1/trigger/people/add"]["post"]["requestBody"]["required"]
    assert not document["paths"]["/v1/trigger/anything"]["post"]["requestBody"]["required"]
    # Without names as a trigger without names: here that is ambiguous, and elsewhere nothing is deployed.
    ambiguous = await gate.http.get("/v1/openapi.json")
    assert (ambiguous.status_code, ambiguous.json()["error"]) == (400, "INVALID_FIELD")
    missing = await gate.http.get("/v1/openapi.json", params={"app": "people", "environment": "development"})
    assert (missing.status_code, missing.json()["error"]) == (404, "NO_RELEASE_DEPLOYED")


async def test_schemathesis_finds_the_document_to_be_true(served, tmp_path):
    server, gate = served
    document = (await gate.http.get("/v1/openapi.json", params={"app": "people"})).json()
    for path in document["paths"].values():
        for operation in path.values():
            # Fences and pins come from an earlier answer: made-up ones are refused, as they should be.
            operation["parameters"] = [parameter for parameter in operation["parameters"] if parameter["in"] != "header"]
    openapi = tmp_path / "openapi.json"
    openapi.write_text(json.dumps(document))
    command = [BIN / "schemathesis", "run", openapi]
    # Another method is ENDPOINT_NOT_FOUND, 404 with Allow, as the contract has it, and not 405. What satisfies the schema may still hold
    # what expressions cannot: a NUL, an integer of more than 64 bits.
    command += ["--exclude-checks", "unsupported_method,positive_data_acceptance"]
    options = ["--url", f"http://{server.http}", "-H", "X-App: people", "--max-examples", "30", "--no-color", "--seed", "7"]
    done = await run(*command, *options, timeout_seconds=110, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    assert "Tested: 3" in done.stdout, done.stdout
    assert "Unresolvable" not in done.stdout, done.stdout
