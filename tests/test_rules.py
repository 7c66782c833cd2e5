"""The rules of requests and configs: every violation at once, each with its path as the author wrote it."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from data_plane.steps import COMPILERS
from pointsman.rules import PATTERNS, check_config, check_request
from pointsman.v1.apps_pb2 import UpdateDraftRequest
from pointsman.v1.config_pb2 import AppConfig, Step
from pointsman.v1.deployments_pb2 import DeployManyRequest, DeployRequest
from pointsman.v1.gateways_pb2 import SyncRequest
from pointsman.v1.holds_pb2 import Holds
from pointsman.v1.releases_pb2 import CreateReleaseRequest
from tests.sample_apps import marked

ROOT = Path(__file__).parent.parent
PROTOS = ROOT / "proto" / "pointsman"
REFERENCE = ROOT / "data_plane" / "PIPELINES.md"


def config(**parts: Any) -> AppConfig:
    return json_format.ParseDict(parts, AppConfig())


def pipeline(*steps: dict[str, Any], **stage: Any) -> AppConfig:
    return config(pipelines=[{"name": "p", "stages": [{"name": "s", "steps": list(steps), **stage}]}])


def transform(name: str, expression: str = "1", **more: Any) -> dict[str, Any]:
    return {"name": name, "transform": {"expression": expression}, **more}


def told(message: AppConfig) -> dict[str, str]:
    return {violation.field: violation.description for violation in check_config(message)}


def test_a_sound_config_has_no_violations():
    assert check_config(config(**marked("v1", "http://127.0.0.1:1/x"))) == []
    assert check_config(AppConfig()) == []


def test_everything_is_told_at_once():
    found = told(
        config(
            endpoints=[{"name": "a b", "method": "PUT", "pipeline": "q"}],
            pipelines=[{"name": "p", "stages": [{"name": "s", "gate": "inptu.x", "steps": [{"name": "1x"}]}]}],
            tools=[{"name": "t", "http": {"url": "ftp://x"}}],
            models=[{"name": "m", "targets": [{"base_url": "http://m/v1", "api_key": "sk-123"}]}],
        )
    )
    assert set(found) == {
        "endpoints[0].name",
        "endpoints[0].method",
        "endpoints[0].pipeline",
        "pipelines[0].stages[0].gate",
        "pipelines[0].stages[0].steps[0]",
        "pipelines[0].stages[0].steps[0].name",
        "tools[0].http.url",
        "models[0].targets[0].api_key",
    }
    assert "did you mean input?" in found["pipelines[0].stages[0].gate"]
    assert "never the key itself" in found["models[0].targets[0].api_key"]


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        (
            config(endpoints=[{"name": "e", "pipeline": "chatt"}], pipelines=[{"name": "chat"}]),
            "endpoints[0].pipeline",
            "Did you mean chat?",
        ),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x"}}, {"name": "t", "http": {"url": "http://x"}}]),
            "tools[1].name",
            "tools[0]",
        ),
        (
            config(
                endpoints=[{"name": "a", "path": "/x", "pipeline": "p"}, {"name": "b", "path": "x", "pipeline": "p"}],
                pipelines=[{"name": "p"}],
            ),
            "endpoints[1].path",
            "is the path of endpoints[0] already",
        ),
        (
            config(endpoints=[{"name": "a", "pipeline": "p"}, {"name": "b", "path": "a", "pipeline": "p"}], pipelines=[{"name": "p"}]),
            "endpoints[1].path",
            "endpoints[0]",
        ),
        (
            config(endpoints=[{"name": "a", "pipeline": "p", "input_schema": {"type": "strin"}}], pipelines=[{"name": "p"}]),
            "endpoints[0].input_schema.type",
            "is not a JSON Schema",
        ),
        (
            config(endpoints=[{"name": "a", "pipeline": "p", "input_schema": {"$ref": "http://x/s.json"}}], pipelines=[{"name": "p"}]),
            "endpoints[0].input_schema",
            "is not a JSON Schema",
        ),
        (
            config(endpoints=[{"name": "a", "pipeline": "p", "input_schema": {"pattern": "(?=a)"}}], pipelines=[{"name": "p"}]),
            "endpoints[0].input_schema.pattern",
            "look-around and back-references are not supported",
        ),
        (
            config(endpoints=[{"name": "a", "pipeline": "p", "timeout": "9999s"}], pipelines=[{"name": "p"}]),
            "endpoints[0].timeout",
            "3600s",
        ),
        (pipeline(transform("a"), transform("a")), "pipelines[0].stages[0].steps[1].name", "earlier step"),
        (
            pipeline({"name": "a", "tool_call": {"tool": "t", "arguments": "{"}}),
            "pipelines[0].stages[0].steps[0].tool_call.arguments",
            "line 1, column 2",
        ),
        (pipeline({"name": "a", "tool_call": {"tool": "t"}}), "pipelines[0].stages[0].steps[0].tool_call.tool", "There are no tools"),
        (
            pipeline({"name": "a", "inference": {"model": "m", "tools": ["x"], "prompt": "{{ inpt }}"}}),
            "pipelines[0].stages[0].steps[0].inference.prompt",
            "unknown variable 'inpt'",
        ),
        (pipeline({"name": "a", "inference": {"model": "m"}}), "pipelines[0].stages[0].steps[0].inference.model", "there is no model 'm'"),
        (pipeline(transform("a", "steps.b"), transform("b")), "pipelines[0].stages[0].steps[0].transform.expression", "has not run yet"),
        (
            pipeline(transform("a"), transform("b", "steps.a"), mode="PARALLEL"),
            "pipelines[0].stages[0].steps[1].transform.expression",
            "has not run yet",
        ),
        (
            pipeline(transform("able"), transform("b", "steps.abel")),
            "pipelines[0].stages[0].steps[1].transform.expression",
            "Did you mean able?",
        ),
        (pipeline(transform("a", when="steps.a")), "pipelines[0].stages[0].steps[0].when", "has not run yet"),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x/{{ arguments.id }}/{{ argument }}"}}]),
            "tools[0].http.url",
            "did you mean arguments?",
        ),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x", "headers": {"A": "${secret:a b}"}}}]),
            'tools[0].http.headers["A"]',
            "a secret reference is",
        ),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x", "headers": {"a b": "1"}}}]),
            'tools[0].http.headers["a b"]',
            "a header name",
        ),
        (config(tools=[{"name": "t", "http": {"url": "${secret:URL}/x"}}]), "tools[0].http.url", "secrets belong in headers and keys"),
        (config(tools=[{"name": "t", "http": {"url": "http://x?k=${secret:K}"}}]), "tools[0].http.url", "secrets belong in headers"),
        (config(tools=[{"name": "t", "http": {"url": "http://x", "body": "${secret:K}"}}]), "tools[0].http.body", "secrets belong in"),
        (config(models=[{"name": "m", "targets": [{"base_url": "${secret:U}"}]}]), "models[0].targets[0].base_url", "secrets belong in"),
        (config(models=[{"name": "m", "targets": [{"base_url": "http://h?a=1"}]}]), "models[0].targets[0].base_url", "has a query"),
        (config(models=[{"name": "m", "targets": [{"base_url": "http://"}]}]), "models[0].targets[0].base_url", "names no host"),
        (config(models=[{"name": "m", "targets": [{"base_url": "http://h:99999"}]}]), "models[0].targets[0].base_url", "is not a URL"),
        (
            config(models=[{"name": "m", "targets": [{"base_url": "http://h", "headers": {"a b": "1"}}]}]),
            'models[0].targets[0].headers["a b"]',
            "a header name",
        ),
        (config(tools=[{"name": "t", "mcp": {"url": "ws://h"}}]), "tools[0].mcp.url", "is not an http or https URL"),
        (config(tools=[{"name": "t", "mcp": {}}]), "tools[0].mcp.url", "absent, and needed"),
        (config(tools=[{"name": "t", "mcp": {"url": "http://h/${secret:K}"}}]), "tools[0].mcp.url", "secrets belong in headers"),
        (config(tools=[{"name": "t", "mcp": {"url": "http://u:p@h"}}]), "tools[0].mcp.url", "has a user or a password"),
        (config(tools=[{"name": "t", "mcp": {"url": "http://h", "tool": "x" * 257}}]), "tools[0].mcp.tool", "at most 256 characters"),
        (
            config(tools=[{"name": "t", "mcp": {"url": "http://h", "headers": {"a b": "1"}}}]),
            'tools[0].mcp.headers["a b"]',
            "a header name",
        ),
        (
            config(tools=[{"name": "t", "mcp": {"url": "http://h", "headers": {"A": "${secret:K"}}}]),
            'tools[0].mcp.headers["A"]',
            "a secret reference is",
        ),
        (
            config(tools=[{"name": "t", "mcp": {"url": "http://h", "headers": {"A": "1\r\nB: 2"}}}]),
            'tools[0].mcp.headers["A"]',
            "has a line break",
        ),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x", "headers": {"A": "{{ '${secret:K}' }}"}}}]),
            'tools[0].http.headers["A"]',
            "must stand outside",
        ),
        (
            config(tools=[{"name": "t", "http": {"url": "http://x", "headers": {"A": "${secret:K}{{ secret_K }}"}}}]),
            'tools[0].http.headers["A"]',
            "unknown variable 'secret_K'",
        ),
        (pipeline(transform("a", "1" * 9000)), "pipelines[0].stages[0].steps[0].transform.expression", "8192"),
    ],
)
def test_one_violation_and_what_it_says(message, field, says):
    assert says in told(message)[field]


def test_a_password_in_a_url_is_refused_and_not_shown():
    found = told(config(tools=[{"name": "t", "http": {"url": "http://u:hunter2@h/{{ input.x }}"}}]))
    assert "send them in a header" in found["tools[0].http.url"]
    assert "hunter2" not in str(found)


def test_all_that_is_wrong_with_a_schema_is_told():
    schema = {"properties": {"q": {"type": "strin"}, "n": {"minimum": "x"}}}
    found = told(config(endpoints=[{"name": "a", "pipeline": "p", "input_schema": schema}], pipelines=[{"name": "p"}]))
    where = "endpoints[0].input_schema.properties"
    assert {field for field in found if field.startswith("endpoints")} == {f"{where}.q.type", f"{where}.n.minimum"}


def test_the_templates_of_a_tool_are_checked_against_each_pipeline_that_calls_it():
    tool = {"name": "t", "http": {"url": "http://x/{{ steps.b }}", "headers": {"H": "{{ steps.zz }}"}}}
    call = {"name": "a", "tool_call": {"tool": "t"}}
    message = pipeline(call, transform("b"))
    message.tools.add().CopyFrom(json_format.ParseDict(tool, AppConfig().tools.add()))
    message.pipelines[0].stages[0].steps.add(name="c").inference.tools.append("t")
    found = [str(v) for v in check_config(message) if "templates of tool 't'" in v.description]
    at = "pipelines[0].stages[0].steps"
    assert [text.split(":")[0] for text in found] == [f"{at}[0].tool_call.tool"] * 2 + [f"{at}[2].inference.tools[0]"]
    assert "steps.b has not run yet" in found[0]
    assert "there is no step 'zz'" in found[1]


def test_a_step_may_name_what_has_run():
    message = pipeline(transform("a"), transform("b", "steps.a + 1", when="steps.a == 1"))
    message.pipelines[0].output = "steps.b"
    assert check_config(message) == []


def test_a_request_is_checked_whole_and_paths_in_its_config_have_no_prefix():
    request = CreateReleaseRequest(app="A", tag="v 1", config=pipeline({"name": "a", "tool_call": {"tool": "t"}}))
    assert [violation.field for violation in check_request(request)] == ["app", "tag", "pipelines[0].stages[0].steps[0].tool_call.tool"]
    assert [v.field for v in check_request(UpdateDraftRequest(app="a", config=pipeline(transform("a", "?"))))] == [
        "pipelines[0].stages[0].steps[0].transform.expression"
    ]


def test_violations_of_a_request_name_the_value_and_what_is_allowed():
    found = {
        v.field: v.description for v in check_request(DeployRequest(environment="Prod!", release="v1", request_id="7", reason="x" * 1025))
    }
    assert "absent; use a small letter" in found["app"]
    assert "'Prod!' is not allowed; use a small letter" in found["environment"]
    assert found["request_id"] == "'7' is not a UUID"
    assert "has 1025 bytes" in found["reason"]


def test_every_pattern_of_the_protos_has_words():
    used = set()
    for path in PROTOS.glob("v1/*.proto"):
        used |= set(re.findall(r'string\.pattern = "([^"]+)"', path.read_text()))
    assert used == set(PATTERNS)


@pytest.mark.parametrize(
    ("seconds", "nanos", "told"),
    [(2, 2**31 - 1, True), (2, -1, True), (-1, 5, True), (315_576_000_001, 0, True), (2, 999_999_999, False), (0, 0, False)],
)
def test_a_duration_that_protobuf_cannot_convert_is_refused(seconds, nanos, told):
    request = DeployRequest(app="shop", environment="staging", release="v1")
    request.wait.seconds, request.wait.nanos = seconds, nanos
    found = [violation.field for violation in check_request(request) if "is no duration that protobuf has" in violation.description]
    assert found == (["wait"] if told else [])


def test_the_character_nul_is_refused_wherever_it_stands():
    request = DeployManyRequest(reason="a\0b")
    request.targets.add(app="shop", environment="staging", release="v1")
    request.targets.add(app="shop\0", environment="staging", release="v1")
    assert [v.field for v in check_request(request) if "NUL" in v.description] == ["targets[1].app", "reason"]


def test_why_a_gateway_rejects_a_release_may_quote_the_character_nul():
    request = SyncRequest()
    request.prepared.rejections.add(app="shop", environment="staging", reason="the text 'a\0b' is not allowed")
    assert check_request(request) == []


def test_times_inside_a_config_are_looked_at_with_their_path():
    config = AppConfig()
    step = config.pipelines.add(name="p").stages.add(name="s").steps.add(name="a")
    step.transform.expression = "1"
    step.timeout.seconds, step.timeout.nanos = 1, 2**31 - 1
    assert [v.field for v in check_config(config)] == ["pipelines[0].stages[0].steps[0].timeout"]
    request = CreateReleaseRequest(app="shop", tag="v1", config=config)
    assert [v.field for v in check_request(request)] == ["pipelines[0].stages[0].steps[0].timeout"]


KINDS = list(Step.DESCRIPTOR.oneofs_by_name["kind"].fields)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_step_is_known_wherever_it_must_be(kind):
    assert kind.name in COMPILERS
    assert f"\n## {kind.message_type.name}\n" in REFERENCE.read_text()
    texts = [one for one in kind.message_type.fields if one.type == one.TYPE_STRING or one.message_type is Struct.DESCRIPTOR]
    silent = [one.name for one in texts if not one.GetOptions().Extensions[Holds.kind]]
    assert silent == [], "say in config.proto what they hold"


WRONG = {
    Holds.EXPRESSION: ("1 +", "Syntax error"),
    Holds.TEMPLATE: ("{{ nope }}", "unknown variable 'nope'"),
    Holds.TOOL: ("nobody", "there is no tool 'nobody'"),
    Holds.MODEL: ("nobody", "there is no model 'nobody'"),
    Holds.JSON_SCHEMA: ({"type": "nothing"}, "is not a JSON Schema that can be used here"),
}


@pytest.mark.parametrize("field", [field for kind in KINDS for field in kind.message_type.fields], ids=lambda field: field.full_name)
def test_what_a_field_holds_is_checked(field):
    kind = next(kind for kind in KINDS if kind.message_type is field.containing_type)
    holds = field.GetOptions().Extensions[Holds.kind]
    if not holds:
        assert field.type != field.TYPE_STRING
        return
    wrong, says = WRONG[holds]
    step = {"name": "a", kind.name: {field.name: ["known", wrong] if field.is_repeated else wrong}}
    stages = [{"name": "s", "steps": [step]}]
    found = told(config(pipelines=[{"name": "p", "stages": stages}], tools=[{"name": "known", "http": {"url": "http://x"}}]))
    at = f"pipelines[0].stages[0].steps[0].{kind.name}.{field.name}" + ("[1]" if field.is_repeated else "")
    assert [path.startswith(at) for path, description in found.items() if says in description] == [True]
