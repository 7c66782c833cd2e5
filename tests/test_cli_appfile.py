"""App files: what is wrong is told at once, with its place; what is sound comes back as it was written."""

from __future__ import annotations

import json
import uuid

import pytest
import yaml
from google.protobuf import json_format

from control_plane.cli.appfile import read
from control_plane.cli.samples import sample_text
from pointsman import nodes
from pointsman.appfile import MAX_FILE_BYTES
from pointsman.nodes import NotReadableError
from pointsman.plain import as_yaml, plain
from pointsman.rules import MAX_SNAPSHOT_BYTES
from pointsman.v1.config_pb2 import AppConfig
from pointsman.v1.releases_pb2 import CreateReleaseRequest
from tests.clients import cli, cli_done
from tests.processes import BIN
from tests.processes import run as run_command
from tests.sample_apps import as_yaml as written
from tests.sample_apps import marked

ENDPOINT = "endpoints:\n  - name: chat\n    pipeline: chat\n"
PIPELINE = "pipelines:\n  - name: chat\n    stages:\n      - name: s\n        steps:\n          - {name: a, transform: {expression: '1'}}\n"


def read_text(tmp_path, text):
    file = tmp_path / "app.yaml"
    file.write_text(text)
    return read(str(file)).check()


def told(tmp_path, text):
    """(line, column, path) of each violation, in order."""
    return [(found.line, found.column, found.violation.field) for found in read_text(tmp_path, text).violations]


@pytest.mark.parametrize(
    ("more", "violations"),
    [
        ("    timeout: 10\n", [(4, 14, "endpoints[0].timeout")]),
        ("    timeout: 1m\n", [(4, 14, "endpoints[0].timeout")]),
        ("    maxConcurrency: lots\n", [(4, 21, "endpoints[0].max_concurrency")]),
        ("    max_concurrency: 1.5\n", [(4, 22, "endpoints[0].max_concurrency")]),
        ("    path: 10\n", [(4, 11, "endpoints[0].path")]),
        ("    path: [a]\n", [(4, 11, "endpoints[0].path")]),
        ("    tiemout: 10s\n", [(4, 5, "endpoints[0].tiemout")]),
        ("    name: again\n", [(4, 5, "endpoints[0].name")]),
        ("    input_schema: {}\n    inputSchema: {}\n", [(5, 5, "endpoints[0].input_schema")]),
        ("    input_schema: {type: object, type: array}\n", [(4, 34, "endpoints[0].input_schema.type")]),
        ("    input_schema: {maximum: 1e999}\n", [(4, 29, "endpoints[0].input_schema.maximum")]),
        ("    input_schema: [1]\n", [(4, 19, "endpoints[0].input_schema")]),
        ("    input_schema: {type: nothing}\n", [(4, 26, "endpoints[0].input_schema.type")]),
        ("    ? [a]\n    : b\n", [(4, 7, "endpoints[0]")]),
        ("    <<: {path: x}\n", [(4, 5, "endpoints[0].<<")]),
        (
            "tools:\n  - {name: t, http: {url: 'http://x', headers: {A: b, A: c, B: 3}}}\n",
            [(5, 55, 'tools[0].http.headers["A"]'), (5, 64, 'tools[0].http.headers["B"]')],
        ),
        ("  - 5\n", [(4, 5, "endpoints[1]")]),
        ("tools: {name: t}\n", [(4, 8, "tools")]),
        ("models: 3\n", [(4, 9, "models")]),
    ],
)
def test_a_violation_stands_where_it_is(tmp_path, more, violations):
    assert told(tmp_path, ENDPOINT + more + PIPELINE) == violations


def test_all_violations_come_at_once_in_the_order_of_the_file_those_of_the_rules_too(tmp_path):
    text = (
        "endpoints:\n"
        "  - name: chat\n"
        "    pipeline: nowhere\n"
        "    timeout: 10\n"
        "pipelines:\n"
        "  - name: chat\n"
        "    stages:\n"
        "      - name: s\n"
        "        mode: paralel\n"
        "        steps:\n"
        "          - name: a\n"
        "            transform: {expression: '1 +'}\n"
        "            tool_call: {tool: t}\n"
    )
    assert told(tmp_path, text) == [
        (3, 15, "endpoints[0].pipeline"),
        (4, 14, "endpoints[0].timeout"),
        (9, 15, "pipelines[0].stages[0].mode"),
        (12, 37, "pipelines[0].stages[0].steps[0].transform.expression"),
        (13, 13, "pipelines[0].stages[0].steps[0].tool_call"),
    ]
    words = [found.violation.description for found in read_text(tmp_path, text).violations]
    assert "10s" in words[1]
    assert "Did you mean PARALLEL" in words[2]
    assert "only one of transform and tool_call" in words[4]


WRONG = "endpoints:\n  - name: chat\n    pipeline: nowhere\n  - {name: 'ü😀', pipeline:  chat, timeout: 10}\n" + PIPELINE.replace(
    "'1'", "inptu"
)


@pytest.mark.parametrize(
    "altered", [str, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text], ids=["plain", "crlf", "bom"]
)
def test_places_are_the_same_whatever_wrote_the_file(tmp_path, altered):
    file = tmp_path / "app.yaml"
    file.write_bytes(altered(WRONG).encode())
    assert [(found.line, found.column, found.violation.field) for found in read(str(file)).check().violations] == [
        (3, 15, "endpoints[0].pipeline"),
        (4, 12, "endpoints[1].name"),
        (4, 44, "endpoints[1].timeout"),
        (10, 47, "pipelines[0].stages[0].steps[0].transform.expression"),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_places_in_json_that_is_indented_by_tabs(tmp_path, ending):
    text = '{\n\t"endpoints": [\n\t\t{"name": "chat", "pipeline": "nowhere",\t"timeout": 10}\n\t],\n\t"tools": [{"name": "t", "http": {"url": "ftp://x"}}]\n}\n'
    file = tmp_path / "app.json"
    file.write_bytes(text.replace("\n", ending).encode())
    assert [(found.line, found.column, found.violation.field) for found in read(str(file)).check().violations] == [
        (3, 32, "endpoints[0].pipeline"),
        (3, 54, "endpoints[0].timeout"),
        (5, 42, "tools[0].http.url"),
    ]


def test_what_is_wrong_inside_a_list_of_a_schema_is_told_once_and_where_it_stands(tmp_path):
    schema = "    input_schema:\n      required:\n      - a\n      - 5\n      allOf:\n      - {type: strin}\n      - 7\n"
    assert told(tmp_path, ENDPOINT + schema + PIPELINE) == [
        (7, 9, "endpoints[0].input_schema.required[1]"),
        (9, 16, "endpoints[0].input_schema.allOf[0].type"),
        (10, 9, "endpoints[0].input_schema.allOf[1]"),
    ]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("key", ["a" * 500_000 + "[", "[" * 500_000, "." * 500_000, '\\"]' * 100_000])
def test_a_long_key_takes_no_long_time(tmp_path, key):
    schema = f'    input_schema:\n      properties:\n        ? "{key}"\n        : {{required: [5], type: nothing}}\n'
    found = read_text(tmp_path, ENDPOINT + schema + PIPELINE).violations
    assert [(one.line, one.column) for one in found] == [(7, 23), (7, 33)]


def test_what_follows_from_a_misspelt_name_is_not_told_too(tmp_path):
    assert told(tmp_path, "endpoints:\n  - name: chat\n    pipelin: chat\n" + PIPELINE) == [(3, 5, "endpoints[0].pipelin")]


def test_what_is_missing_is_told_where_it_should_be(tmp_path):
    assert told(tmp_path, "endpoints:\n  - name: chat\n" + PIPELINE) == [(2, 5, "endpoints[0].pipeline")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- a\n- b", "line 1, column 1: the file must be a mapping"),
        ("endpoints: [", "line 2"),
        ("endpoints: []\n---\nendpoints: []\n", "line 2, column 1: a second document"),
        ("a: &a [1]\nb: *a\n", "line 2, column 4: aliases (*a)"),
        ("endpoints: !!python/object/apply:os.system [ls]\n", "line 1, column 12: tags"),
        ("endpoints: !mine {}\n", "line 1, column 12: tags"),
        ("a\0b", "control characters"),
        ("endpoints:\n\t- name: chat\n", "line 2, column 1"),
        ("endpoints:\n- name: chat\n\tpath: x\n", "line 3, column 1: found a tab"),
        ('{"endpoints": [', "line 2, column 1"),
        ('{"endpoints": [{"name": "\\ud83d"}]}', "line 1, column 28"),
        ("a: " + "[" * 200, "nested deeper than 30 levels"),
        ("a: " + "{a: " * 200, "nested deeper than 30 levels"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(tmp_path, text, words):
    with pytest.raises(NotReadableError) as caught:
        read_text(tmp_path, text)
    assert words in str(caught.value)


def test_a_file_that_is_no_text_or_too_large(tmp_path, monkeypatch):
    file = tmp_path / "app.yaml"
    file.write_bytes(b"endpoints: \xff\xfe")
    with pytest.raises(NotReadableError, match="UTF-8 text: invalid start byte at byte 11"):
        read(str(file))
    monkeypatch.setattr("control_plane.cli.appfile.MAX_FILE_BYTES", 1000)
    file.write_bytes(b"#" * 1001)
    with pytest.raises(NotReadableError, match="more than 1000 bytes"):
        read(str(file))
    assert MAX_FILE_BYTES == 4 * MAX_SNAPSHOT_BYTES


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("no", "no"),
        ("10:30", "10:30"),
        ("2024-01-01", "2024-01-01"),
        ("0o17", "0o17"),
        (".inf", ".inf"),
        ("1_000", "1_000"),
        ("NO", "NO"),
        ("=", "="),
    ],
)
def test_words_that_yaml_once_took_for_something_else_are_text(tmp_path, word, means):
    found = read_text(tmp_path, f"{ENDPOINT}    input_schema: {{enum: [{word}]}}\n{PIPELINE}")
    assert found.violations == []
    assert plain(found.config)["endpoints"][0]["input_schema"] == {"enum": [means]}


@pytest.mark.parametrize(
    ("word", "means"), [("true", True), ("Null", None), ("~", None), ("-12", -12), ("1.5", 1.5), ("1e3", 1000), ("'1'", "1")]
)
def test_words_that_are_values(word, means):
    root = nodes.compose(f"a: {word}")
    assert root is not None
    assert root.pairs[0][1].content == means


@pytest.mark.parametrize(("opening", "closing"), [("{a: ", "}"), ("[", "]")])
def test_the_deepest_schema_that_is_taken_is_one_that_protobuf_takes(tmp_path, opening, closing):
    def nested(levels):
        return read_text(tmp_path, f"{ENDPOINT}    input_schema: {{const: {opening * levels}1{closing * levels}}}\n{PIPELINE}")

    found = nested(26)
    assert found.violations == []
    sent = CreateReleaseRequest(config=found.config)
    assert CreateReleaseRequest.FromString(sent.SerializeToString()) == sent
    with pytest.raises(NotReadableError, match="nested deeper"):
        nested(27)


def test_json_snake_case_and_camel_case_are_the_same(tmp_path):
    config = marked("v1", "http://127.0.0.1:1/")
    parsed = json_format.ParseDict(config, AppConfig())
    camel = json.dumps(json_format.MessageToDict(parsed), indent="\t")
    for text in (written(config), json.dumps(config), camel, "\ufeff" + camel):
        found = read_text(tmp_path, text)
        assert found.violations == []
        assert found.config == parsed


def test_json_escapes_of_two_halves_are_one_character(tmp_path):
    found = read_text(tmp_path, '{"pipelines": [{"name": "p", "description": "\\ud83d\\ude00", "stages": []}]}')
    assert found.config.pipelines[0].description == "😀"


def test_what_draft_prints_is_read_as_the_same(tmp_path):
    tricky = [
        "1e3",
        "08",
        "0123",
        "1.",
        "yes",
        "null",
        "~",
        "",
        "a: b",
        "# no",
        "'",
        '"',
        "two\nlines\n",
        "tab\t",
        " x ",
        "2024-01-01",
        "😀",
        "-",
    ]
    config = marked("v1") | {"tools": [{"name": "t", "http": {"method": "POST", "url": "http://127.0.0.1/", "body": "a\n  b\n"}}]}
    config["endpoints"][0]["input_schema"] = {"enum": tricky, "properties": {word: {"const": word} for word in tricky}}
    parsed = json_format.ParseDict(config, AppConfig())
    found = read_text(tmp_path, as_yaml(plain(parsed)))
    assert found.violations == []
    assert found.config == parsed
    assert yaml.safe_load(as_yaml(plain(parsed)))["endpoints"][0]["input_schema"]["enum"] == tricky


def test_lists_and_mappings_of_values_keep_every_entry(tmp_path):
    headers = "headers: {A: x, B: y, C: z}"
    text = (
        PIPELINE.replace("transform: {expression: '1'}", "inference: {model: m, prompt: hi, tools: [t, u, v]}")
        + "".join(f"{'tools:' if name == 't' else ''}\n  - {{name: {name}, http: {{url: 'http://x', {headers}}}}}" for name in "tuv")
        + f"\nmodels: [{{name: m, targets: [{{base_url: 'http://x', model: m, {headers}}}]}}]\n"
    )
    found = read_text(tmp_path, text)
    assert found.violations == []
    assert found.config == json_format.ParseDict(yaml.safe_load(text), AppConfig())
    assert found.config.pipelines[0].stages[0].steps[0].inference.tools == ["t", "u", "v"]
    assert found.config.models[0].targets[0].headers == {"A": "x", "B": "y", "C": "z"}


def test_whole_numbers_are_written_as_such():
    schema = {"minimum": 3, "maximum": 2.5, "multipleOf": -1.0, "const": 1e300, "default": -0.0}
    parsed = json_format.ParseDict({"endpoints": [{"input_schema": schema}]}, AppConfig())
    assert (
        as_yaml(plain(parsed)["endpoints"][0]["input_schema"])
        == "const: 1.0e+300\ndefault: -0.0\nmaximum: 2.5\nminimum: 3\nmultipleOf: -1\n"
    )


async def test_validate_reads_the_standard_input_and_knows_the_sample():
    done = await run_command(BIN / "pointsman", "app", "validate", "-", stdin=sample_text())
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == "the standard input is sound: 4 endpoints, 4 pipelines, 1 tool, 1 model\n"


async def test_validate_tells_programs_too(tmp_path):
    file = tmp_path / "app.yaml"
    file.write_text("endpionts: []\n")
    done = await cli("app", "validate", str(file), "-o", "json")
    assert done.code == 1
    assert json.loads(done.stdout) == {
        "violations": [{"field": "endpionts", "description": "unknown field. Did you mean endpoints?", "line": 1, "column": 1}]
    }
    file.write_text("endpoints: []\n")
    done = await cli("app", "validate", str(file), "-o", "json")
    assert (done.code, json.loads(done.stdout)) == (0, {"violations": []})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ENDPOINT.replace("pipeline: chat", "pipeline: nowhere"), "line 3, column 15: endpoints[0].pipeline: there is no pipeline"),
        ("endpionts: []\n", "line 1, column 1: endpionts: unknown field."),
        # gRPC itself finds it too large, before a server of ours has read it.
        (f"tools: [{{name: t, description: {'x' * 21_000_000}}}]\n", "line 1, column 32: tools[0].description"),
    ],
    ids=["unsound", "unreadable", "too large"],
)
async def test_push_tells_lines_and_makes_no_app_for_a_file_that_is_refused(control_plane, tmp_path, text, told):
    file = tmp_path / "app.yaml"
    file.write_text(text)
    app = f"lines-{uuid.uuid4().hex[:8]}"
    of_app = {"POINTSMAN_SERVER": control_plane.grpc, "POINTSMAN_APP": app}
    without_app = await cli("app", "push", str(file), **of_app)
    # There is none of that name.
    await cli_done("app", "create", app, **of_app)
    with_app = await cli("app", "push", str(file), **of_app)
    assert (without_app.code, with_app.code) == (1, 1)
    assert without_app.stderr == with_app.stderr
    assert with_app.stderr.startswith(f"INVALID_FIELD: {file} has ")
    assert told in with_app.stderr
    assert json.loads(await cli_done("app", "draft", "-o", "json", **of_app))["draft_version"] == "0"


async def test_a_file_that_is_not_there_is_wrong_use(tmp_path):
    done = await cli("app", "validate", str(tmp_path / "no.yaml"))
    assert done.code == 2
    assert "no.yaml: No such file" in done.stderr
