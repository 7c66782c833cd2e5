"""The samples that ship with the package: they are sound, they run as their files say, with the real small model and with the scripted one."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
import yaml
from google.protobuf import json_format

from control_plane.cli.samples import SAMPLES, SERVICES, sample_text
from control_plane.cli.samples.model import NAME, REAL, SCRIPTED, weights
from control_plane.cli.samples.orders import order_service
from control_plane.cli.samples.scripted_model import answer
from data_plane.loaded import LoadedEndpoint, compile_release
from data_plane.pipeline import run as run_pipeline
from data_plane.secrets import Secrets
from data_plane.steps.base import Clients
from pointsman.appfile import parse
from pointsman.errors import StepFailed
from pointsman.v1.config_pb2 import AppConfig
from tests.clients import cli, cli_done, documents
from tests.eventually import eventually
from tests.local_model import needs_local_model, without_local_model
from tests.processes import ROOT, Server, run, start_dev
from tests.scripted_upstream import ScriptedUpstream
from tests.test_pipeline import digest_of
from tests.test_tool_call import clients as clients  # noqa: PLC0414 -- a fixture
from tests.test_tool_call import running

CURL = re.compile(r"^# +(curl .*)$", re.MULTILINE)
# Nobody listens there.
NOBODY = 9


class Ran(NamedTuple):
    """One curl line of a sample's comment: what it printed, and the execution on record, by the names of its steps."""

    printed: str
    record: dict[str, Any]
    steps: dict[str, dict[str, Any]]

    @property
    def output(self) -> Any:
        """Of a whole answer, or of the last event of a stream."""
        return json.loads(self.printed) if self.printed.startswith("{") else self.events[-1][1]["output"]

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Of a stream: (name, data)."""
        found = re.findall(r"^event: (.*)\ndata: (.*)$", self.printed, re.MULTILINE)
        return [(name, json.loads(data)) for name, data in found]

    def asked(self, step: str, model: str) -> None:
        """The step asked this model, and what it used is on record."""
        assert self.steps[step]["outcome"] == "SUCCEEDED", self.steps[step]
        assert self.steps[step]["model"] == model
        assert int(self.steps[step]["input_tokens"]) > 0
        assert int(self.steps[step]["output_tokens"]) > 0

    def streamed(self, text: str) -> None:
        """The text came in pieces, between a start and a good end."""
        names = [name for name, _ in self.events]
        assert (names[0], names[-1]) == ("execution.started", "execution.completed")
        pieces = [data["text"] for name, data in self.events if name == "output.delta"]
        assert len(pieces) > 1
        assert "".join(pieces) == text


async def run_lines(dev: Server, name: str) -> list[Ran]:
    """Every curl line of the sample's comment, run as it stands there but for the port, in turn."""
    gateway = re.search(r"gateway-http=(\S+)", dev.stdout[0])
    assert gateway is not None
    ran = []
    for line in CURL.findall(sample_text(name)):
        done = await run("sh", "-c", line.replace("localhost:7580", gateway[1]), timeout_seconds=60)
        assert done.code == 0, done.stderr
        seen = len(ran)

        async def recorded(seen: int = seen) -> list[Any]:
            listed = documents(await cli_done("execution", "list", "-o", "json", POINTSMAN_SERVER=dev.grpc, POINTSMAN_APP=name))[0]
            return listed["executions"] if len(listed["executions"]) > seen else []

        newest = (await eventually(recorded))[0]
        shown = await cli_done("execution", "show", newest["execution_id"], "-o", "json", POINTSMAN_SERVER=dev.grpc)
        record = documents(shown)[0]["execution"]
        ran.append(Ran(done.stdout, record, {step["name"]: step for step in record["steps"]}))
    return ran


def check_support_chat(ran: list[Ran], model: str) -> None:
    by_words, by_model, composed, status, triage = ran
    assert by_words.output == {
        "reply": "Hello. Order 1234 is delivered. Orders leave us within one working day.",
        "intent": "order",
        "order": {"id": "1234", "status": "delivered"},
        "told_by": "words",
    }
    assert by_words.steps["label"]["outcome"] == "SKIPPED"
    # Whatever it said: one of the intents, and an answer that also asks for what would tell.
    by_model.asked("label", model)
    assert by_model.output["told_by"] == "model"
    assert by_model.output["intent"] in ("order", "refund", "other")
    assert by_model.output["reply"].endswith("Tell me your order number, and I will look it up.")
    composed.asked("written", model)
    composed.streamed(composed.output["written"])
    assert composed.output["order"] == {"id": "1234", "status": "delivered"}
    said = [word in composed.output["written"] for word in ("1234", "delivered")]
    assert composed.output["is_sound"] == (all(said) and "Paraphrase" not in composed.output["written"])
    assert composed.output["reply"] == (composed.output["written"] if composed.output["is_sound"] else "Order 1234 is delivered.")
    assert status.output == {"id": "1234", "status": "delivered"}
    assert triage.output == {"urgent": ["Now!!"], "later": ["No hurry"]}


def check_extraction(ran: list[Ran], model: str) -> None:
    step = yaml.safe_load(sample_text("extraction"))["pipelines"][0]["stages"][0]["steps"][0]
    for one, text in zip(
        ran, ("Please ship 12 blue chairs to Maria Gomez in Lyon.", "4 cups for Jan Novak, Prague, as soon as you can"), strict=True
    ):
        one.asked("fields", model)
        fields = one.output["fields"]
        jsonschema_rs.validator_for(step["inference"]["response_schema"]).validate(fields)
        assert [name for name in one.output["doubtful"] if str(fields[name]).lower() in text.lower()] == []
        unsaid = [name for name in ("name", "city", "item") if fields[name].lower() not in text.lower()]
        assert set(unsaid) <= set(one.output["doubtful"])


def check_mcp_agent(ran: list[Ran], model: str) -> None:
    order, stock, agent = ran
    order.asked("order", model)
    # What the model wrote and the question has not is not looked up, so an order that was found is the right one.
    assert order.output["order"] in (None, {"id": "1234", "status": "delivered"})
    assert order.steps["found_order"]["outcome"] == ("SUCCEEDED" if order.output["order"] else "SKIPPED")
    stock.asked("stock", model)
    assert stock.steps["order"]["outcome"] == "SKIPPED"
    assert stock.output["stock"] in (None, {"item": "chair", "in_stock": 24})
    for one in (order, stock):
        found = one.output["order"] or one.output["stock"]
        assert one.output["answer"].startswith("Name the number of an order") == (found is None)
    agent.asked("answer", "scripted")
    agent.streamed(agent.output["answer"])
    assert agent.output["answer"] == 'I looked it up: {"id":"1234","status":"delivered"}; {"item":"lamp","in_stock":7}'


CHECKS = {"support-chat": check_support_chat, "extraction": check_extraction, "mcp-agent": check_mcp_agent}


@pytest.mark.parametrize("real", [True, False], ids=["real", "scripted"])
@pytest.mark.parametrize("name", SAMPLES)
async def test_a_sample_runs_as_its_comment_says(tmp_path, curl, name, real):
    if SAMPLES[name].extra:
        pytest.importorskip(SAMPLES[name].extra, reason=f"the extra {SAMPLES[name].extra} is not installed")
    if real:
        needs_local_model()
    async with start_dev(tmp_path, "--sample", name, **({} if real else without_local_model(tmp_path))) as dev:
        await eventually(lambda: "Ctrl-C ends it." in dev.stdout)
        assert (REAL if real else SCRIPTED) in dev.stdout
        ran = await run_lines(dev, name)
        CHECKS[name](ran, NAME if real else "scripted")
        if not real and name == "extraction":
            assert ran[0].output == {"fields": {"name": "Maria Gomez", "city": "Lyon", "quantity": 12, "item": "chair"}, "doubtful": []}
        if not real and name == "mcp-agent":
            assert [one.output["answer"] for one in ran[:2]] == ["Order 1234 is delivered.", "We have 24 of chair."]
        assert await dev.stop() == 0


@pytest.mark.parametrize("name", SAMPLES)
async def test_a_sample_is_sound_and_says_what_it_shows(tmp_path, name):
    text = sample_text(name)
    file = tmp_path / "app.yaml"
    file.write_text(text)
    done = await cli("app", "validate", str(file))
    assert (done.code, done.stderr) == (0, "")
    config = parse(text).config
    assert config == json_format.ParseDict(yaml.safe_load(text), AppConfig())
    lines = CURL.findall(text)
    assert text.startswith("# ")
    for endpoint in config.endpoints:
        assert any(f"/v1/trigger/{endpoint.path or endpoint.name}" in line for line in lines), endpoint.name
    assert {endpoint for endpoint, _, _ in SAMPLES[name].tries} <= {endpoint.name for endpoint in config.endpoints}
    assert set(re.findall(r"http://127\.0\.0\.1:(\d+)", text)) == {str(SERVICES[service].port) for service in SAMPLES[name].services}


def test_ports_can_be_swapped():
    moved = sample_text("support-chat", orders=SERVICES["model"].port, model=SERVICES["orders"].port)
    assert "http://127.0.0.1:7591/orders/" in moved
    assert "http://127.0.0.1:7590/v1" in moved


async def test_a_sample_of_another_name_is_refused_and_near_ones_are_named():
    done = await cli("dev", "--sample", "extractoin")
    assert done.code == 2
    assert "'support-chat', 'extraction', 'mcp-agent'. Did you mean extraction?" in done.stderr


async def test_without_the_extra_mcp_the_agent_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mcp'] = None  # as where it is not installed\n")
    folder = tmp_path / "dev"
    done = await cli("dev", "--sample", "mcp-agent", "--data-dir", str(folder), PYTHONPATH=str(tmp_path))
    assert done.code == 1
    assert done.stderr == "Error: the sample mcp-agent needs the extra mcp: pip install 'pointsman[mcp]'\n"
    assert not folder.exists()


async def test_samples_live_beside_one_another_and_take_no_name_from_a_variable_for_commands(tmp_path):
    async with start_dev(tmp_path, "--sample", "extraction", POINTSMAN_APP="support-chat") as dev:
        listed = documents(await cli_done("app", "list", "-o", "json", POINTSMAN_SERVER=dev.grpc))[0]
        assert [app["app"] for app in listed["apps"]] == ["extraction"]
        assert await dev.stop() == 0
    async with start_dev(tmp_path) as dev:
        status = await cli_done("status", POINTSMAN_SERVER=dev.grpc)
        assert len(re.findall(r"(?:extraction|support-chat)\s+(?:staging|production)\s+v1\.0\.0 ", status)) == 4
        check_support_chat(await run_lines(dev, "support-chat"), NAME if weights() else "scripted")
        assert await dev.stop() == 0


def compiled(name: str, endpoint: str, **ports: int) -> LoadedEndpoint:
    snapshot = parse(sample_text(name, **ports)).config.SerializeToString(deterministic=True)
    return compile_release(digest_of(snapshot), snapshot, Secrets(environment={})).endpoints[endpoint]


async def test_without_a_model_the_chat_asks_back_and_compose_tells_the_facts(clients: Clients):
    given = {"message": "My courier never came"}
    chat = await run_pipeline(compiled("support-chat", "chat", model=NOBODY), running(clients, **given))
    assert chat == {
        "reply": "Hello. Tell me your order number, and I will look it up.",
        "intent": "other",
        "order": None,
        "told_by": "nobody",
    }
    composed = await run_pipeline(compiled("support-chat", "compose", model=NOBODY), running(clients, **given))
    assert composed["reply"] == "Orders leave us within one working day. You can return anything within 30 days."
    assert composed["is_sound"] is False


async def test_words_that_say_something_else_than_the_tool_are_not_the_reply(clients: Clients):
    with order_service(0) as orders:
        async with ScriptedUpstream().running() as upstream:
            upstream.completions = ["Order 1234 was lost."]
            endpoint = compiled("support-chat", "compose", model=int(upstream.url.rpartition(":")[2]), orders=orders)
            composed = await run_pipeline(endpoint, running(clients, message="Where is 1234?"))
    assert (composed["written"], composed["is_sound"], composed["reply"]) == ("Order 1234 was lost.", False, "Order 1234 is delivered.")


SOUND = {"name": "Ann", "city": "Leeds", "quantity": 2, "item": "cup"}


@pytest.mark.parametrize("wrong", ["two cups for Ann", json.dumps(SOUND | {"item": "cups"}), json.dumps(SOUND | {"quantity": 0})])
async def test_an_extraction_that_does_not_fit_is_repaired_once(clients: Clients, wrong: str):
    async with ScriptedUpstream().running() as upstream:
        endpoint = compiled("extraction", "extract", model=int(upstream.url.rpartition(":")[2]))
        upstream.completions = [wrong, json.dumps(SOUND)]
        given = {"text": "Two cups for Ann, please"}
        assert await run_pipeline(endpoint, running(clients, **given)) == {"fields": SOUND, "doubtful": ["city"]}
        first, second = (json.loads(body) for *_, body in upstream.seen)
        assert second["messages"][: len(first["messages"])] == first["messages"]
        assert second["messages"][-1]["content"].startswith("That was not accepted: ")
        upstream.completions = [wrong, wrong]
        with pytest.raises(StepFailed, match="did not answer as response_schema asks, twice"):
            await run_pipeline(endpoint, running(clients, **given))


def test_the_scripted_model_calls_only_tools_whose_arguments_it_was_told():
    config = yaml.safe_load(sample_text("mcp-agent"))
    tools = [{"function": {"name": tool["name"], "parameters": tool["input_schema"]}} for tool in config["tools"]]

    def called(text: str) -> list[str]:
        message = answer({"messages": [{"role": "user", "content": text}], "tools": tools})
        return [call["function"]["name"] for call in message.get("tool_calls", [])]

    assert called("Where is 1234?") == ["find_order"]
    assert called("A chair, and order 7") == ["find_order", "check_stock"]
    assert called("Hello") == []


async def test_wheel_and_source_archive_have_every_sample(tmp_path):
    done = await run(sys.executable, "-m", "hatchling", "build", "-d", tmp_path, timeout_seconds=60, cwd=ROOT)
    assert done.code == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (archive,) = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    code = (
        "import control_plane.cli.samples as samples; print(samples.__file__)\n"
        "print(*(samples.sample_text(name).splitlines()[0] for name in samples.SAMPLES), sep='\\n')"
    )
    done = await run(sys.executable, "-P", "-c", code, environment={"PYTHONPATH": str(tmp_path / "installed")}, cwd=tmp_path)
    assert done.code == 0, done.stderr
    where, *first_lines = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "installed")
    assert first_lines == [sample_text(name).splitlines()[0] for name in SAMPLES]
    done = await run("tar", "-tzf", archive)
    packed_names = {name.partition("/")[2] for name in done.stdout.split()}
    folder = ROOT / "control_plane/cli/samples"
    assert {str(path.relative_to(ROOT)) for path in folder.iterdir() if path.is_file()} <= packed_names
