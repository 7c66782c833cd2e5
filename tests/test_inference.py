"""Inference against a scripted model, and against a real small one."""

import hashlib
import json
from typing import Any

import pytest
from google.protobuf import json_format

from data_plane.loaded import LoadedEndpoint, compile_release
from data_plane.pipeline import run
from data_plane.secrets import Secrets
from data_plane.steps.base import Clients
from pointsman.errors import StepFailed, StepTimeout
from pointsman.v1.config_pb2 import AppConfig
from tests.local_model import local_model
from tests.scripted_upstream import ScriptedUpstream
from tests.test_tool_call import clients, running, upstream

__all__ = ["clients", "upstream"]
KEY = "sk-canary-93"
LABEL = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["refund", "other"]}}}


def asking(*urls: str, timeout: str = "20s", key: str = KEY, **inference: Any) -> LoadedEndpoint:
    step = {"name": "ask", "timeout": timeout, **inference.pop("step", {}), "inference": {"model": "m", **inference}}
    config = {
        "endpoints": [{"name": "e", "pipeline": "p"}],
        "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [step]}]}],
        "models": [{"name": "m", "targets": [{"base_url": f"{url}/v1", "model": "small", "api_key": "${secret:KEY}"} for url in urls]}],
    }
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    digest = "sha256:" + hashlib.sha256(snapshot).hexdigest()
    return compile_release(digest, snapshot, Secrets(environment={"POINTSMAN_SECRET_KEY": key})).endpoints["e"]


def sent(upstream: ScriptedUpstream) -> list[dict[str, Any]]:
    return [json.loads(body) for _, path, _, body in upstream.seen if path == "/v1/chat/completions"]


async def test_prompts_are_templates_and_the_output_is_the_text(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = ["Hello Ann."]
    endpoint = asking(upstream.url, system="You are in {{ environment }}.", prompt="Greet {{ input.name }}", temperature=0.0, max_tokens=9)
    assert await run(endpoint, running(clients, name="Ann")) == "Hello Ann."
    assert sent(upstream) == [
        {
            "model": "small",
            "messages": [{"role": "system", "content": "You are in staging."}, {"role": "user", "content": "Greet Ann"}],
            "temperature": 0.0,
            "max_tokens": 9,
        }
    ]
    assert upstream.seen[0][2]["authorization"] == f"Bearer {KEY}"


async def test_models_are_told_the_fields_of_a_schema_in_the_order_of_required(upstream: ScriptedUpstream, clients: Clients):
    fields = ["why", "label", "about", "zeal", "colour", "age"]
    inner = {"type": "object", "required": fields, "properties": {name: {"type": "string"} for name in ["more", *sorted(fields)]}}
    odd = {"enum": [{"properties": {"a": 1}, "required": [["a"], 1]}]}
    schema = {
        "type": "object",
        "required": ["x", "list"],
        "properties": {"list": {"type": "array", "items": inner}, "odd": odd, "x": inner},
    }
    value = {"x": dict.fromkeys(fields, ""), "list": []}
    upstream.completions = [json.dumps(value)]
    assert await run(asking(upstream.url, prompt="Hi", response_schema=schema), running(clients)) == value
    told = sent(upstream)[0]["response_format"]["json_schema"]["schema"]
    assert told == schema
    assert list(told["properties"]) == ["x", "list", "odd"]
    assert list(told["properties"]["x"]["properties"]) == [*fields, "more"]
    assert list(told["properties"]["list"]["items"]["properties"]) == [*fields, "more"]


async def test_without_a_prompt_the_chat_history_of_the_input_is_sent(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = ["yes"]
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert await run(asking(upstream.url), running(clients, messages=history)) == "yes"
    assert sent(upstream)[0]["messages"] == history
    with pytest.raises(StepFailed, match="the input has no messages"):
        await run(asking(upstream.url), running(clients))


async def test_a_response_schema_gives_a_value_after_one_repair_at_most(upstream: ScriptedUpstream, clients: Clients):
    endpoint = asking(upstream.url, prompt="Label it", response_schema=LABEL)
    upstream.completions = ['{"label": "refund"}']
    assert await run(endpoint, running(clients)) == {"label": "refund"}
    assert sent(upstream)[0]["response_format"]["json_schema"]["schema"] == LABEL
    upstream.completions = ["it is a refund", '{"label": "refund"}']
    assert await run(endpoint, running(clients)) == {"label": "refund"}
    assert "That was not accepted: it is not JSON" in sent(upstream)[-1]["messages"][-1]["content"]
    upstream.completions = ['{"label": "x"}', '{"label": "y"}']
    with pytest.raises(StepFailed, match="twice: label:"):
        await run(endpoint, running(clients))


def tool(upstream: ScriptedUpstream, method: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
    return {
        "name": "find",
        "description": "Finds.",
        "input_schema": schema,
        "http": {"method": method, "url": upstream.url + "/echo/{{ arguments.id }}"},
    }


def calls(*arguments: str, name: str = "find") -> dict[str, Any]:
    wanted = [{"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": text}} for i, text in enumerate(arguments)]
    return {"role": "assistant", "content": None, "tool_calls": wanted}


async def test_tools_that_the_model_asks_for_are_called_and_their_answers_sent_back(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = [calls('{"id": "7"}', '{"id": 8}', "{oops"), calls("{}", name="fly"), "Found."]
    assert await run(asking_with(upstream), running(clients)) == "Found."
    first, second, third = sent(upstream)
    assert first["tools"][0]["function"]["name"] == "find"
    found, refused, broken = second["messages"][-3:]
    assert json.loads(found["content"])["path"] == "/echo/7"
    assert "id: 8 is not of type" in refused["content"]
    assert "the text of the arguments is not JSON" in broken["content"]
    assert "there is no tool 'fly'; there are find" in third["messages"][-1]["content"]
    assert upstream.calls["/echo/7"] == 1


def asking_with(upstream: ScriptedUpstream, method: str = "GET", step: Any = None, **more: Any) -> LoadedEndpoint:
    asked = {"name": "ask", **(step or {}), "inference": {"prompt": "Find", "model": "m", "tools": ["find"], **more}}
    config = {
        "endpoints": [{"name": "e", "pipeline": "p"}],
        "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [asked]}]}],
        "tools": [tool(upstream, method)],
        "models": [{"name": "m", "targets": [{"base_url": f"{upstream.url}/v1"}]}],
    }
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    return compile_release("sha256:" + hashlib.sha256(snapshot).hexdigest(), snapshot, Secrets(environment={})).endpoints["e"]


async def test_a_model_that_never_stops_calling_is_stopped(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = [calls('{"id": "7"}')] * 5
    with pytest.raises(StepFailed, match="more than 2 tool calls"):
        await run(asking_with(upstream, max_tool_calls=2), running(clients))


async def test_tool_calls_are_counted_over_the_repair_too(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = [calls('{"id": "7"}'), "no value", calls('{"id": "7"}'), calls('{"id": "7"}'), '{"label": "refund"}']
    with pytest.raises(StepFailed, match="more than 2 tool calls"):
        await run(asking_with(upstream, max_tool_calls=2, response_schema=LABEL), running(clients))
    assert upstream.calls["/echo/7"] == 2


@pytest.mark.parametrize(("method", "asked"), [("POST", 2), ("GET", 4)])
async def test_a_step_is_not_repeated_after_a_tool_that_must_not_be(upstream: ScriptedUpstream, clients: Clients, method: str, asked: int):
    upstream.completions = [calls('{"id": "7"}'), 503, calls('{"id": "7"}'), "Found."]
    endpoint = asking_with(upstream, method=method, step={"max_retries": 3})
    if method == "GET":
        assert await run(endpoint, running(clients)) == "Found."
    else:
        with pytest.raises(StepFailed, match="answered 503"):
            await run(endpoint, running(clients))
    assert (len(sent(upstream)), upstream.calls["/echo/7"]) == (asked, asked // 2)


async def test_a_step_is_not_repeated_after_its_text_was_told(upstream: ScriptedUpstream, clients: Clients):
    both = {"content": "Let me look. ", "tool_calls": calls('{"id": "7"}')["tool_calls"]}
    upstream.completions = [both, 503, "never"]
    told: list[str] = []
    streamed = running(clients)
    streamed.emit = lambda event: told.append(event.data["text"]) if event.name == "output_delta" else None
    with pytest.raises(StepFailed, match="answered 503"):
        await run(asking_with(upstream, step={"max_retries": 3}), streamed)
    assert (told, upstream.completions) == (["Let me look. "], ["never"])


async def test_a_stream_that_is_cut_before_any_text_was_told_is_asked_for_again(upstream: ScriptedUpstream, clients: Clients):
    upstream.completions = ["<cut>", 503, "whole"]
    streamed = running(clients)
    streamed.emit = lambda _event: None
    assert await run(asking_with(upstream, step={"max_retries": 2}), streamed) == "whole"
    upstream.completions = ["half|<cut>", "never"]
    with pytest.raises(StepFailed, match="cut before its end"):
        await run(asking_with(upstream, step={"max_retries": 2}), streamed)
    assert upstream.completions == ["never"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_fails_the_step(upstream: ScriptedUpstream, clients: Clients, streamed: bool):
    upstream.completions = [{"role": "assistant", "refusal": "I cannot help with that."}]
    now = running(clients)
    now.emit = (lambda _: None) if streamed else None
    with pytest.raises(StepFailed, match="refused to answer: I cannot help with that"):
        await run(asking(upstream.url, prompt="Hi"), now)


@pytest.mark.parametrize("key", [f"{KEY}\r", f"{KEY}\nx: y", f"{KEY} ", f"{KEY}ä"])
async def test_a_key_that_is_no_header_is_not_shown(upstream: ScriptedUpstream, clients: Clients, key: str):
    for failing in (asking(upstream.url, prompt="Hi", key=key), asking(upstream.url, prompt="Hi", key=key, step={"max_retries": 2})):
        now = running(clients)
        with pytest.raises(StepFailed, match="HTTP does not allow the value of one of its headers") as failed:
            await run(failing, now)
        assert KEY not in failed.value.message + repr(failed.value.metadata)
        assert now.steps[0].attempts == 1
    assert not upstream.seen


async def test_targets_are_tried_in_order_and_one_that_fails_is_passed_over(upstream: ScriptedUpstream, clients: Clients):
    async with ScriptedUpstream().running() as second:
        endpoint = asking(upstream.url, second.url, prompt="Hi")
        upstream.completions, second.completions = [503, 503, 503, "back"], ["a", "b", "c", "d"]
        assert [await run(endpoint, running(clients)) for _ in range(4)] == ["a", "b", "c", "d"]
        assert (len(upstream.completions), second.completions) == (1, [])


@pytest.mark.parametrize(
    ("answer", "says"), [(401, "answered 401"), (500, "answered 500"), ({"role": "assistant"}, "neither text nor tool calls")]
)
async def test_a_bad_answer_fails_the_step_and_shows_no_key(upstream: ScriptedUpstream, clients: Clients, answer: Any, says: str):
    upstream.completions = [answer]
    with pytest.raises(StepFailed) as failed:
        await run(asking(upstream.url, prompt="Hi"), running(clients))
    assert says in failed.value.message
    assert KEY not in failed.value.message + repr(failed.value.metadata)


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_model_repeats_of_the_key_is_not_told(upstream: ScriptedUpstream, clients: Clients, streamed: bool):
    upstream.completions = [{"role": "assistant", "refusal": f"{'x' * 190}{KEY} is no key"}]
    now = running(clients)
    now.emit = (lambda _: None) if streamed else None
    with pytest.raises(StepFailed, match=r"x\[secret KE") as failed:
        await run(asking(upstream.url, prompt="Hi"), now)
    assert KEY[:5] not in failed.value.message + repr(failed.value.metadata)
    assert KEY not in repr(asking(upstream.url))


async def test_nobody_there_and_nobody_answering(upstream: ScriptedUpstream, clients: Clients):
    with pytest.raises(StepFailed, match="cannot be reached"):
        await run(asking("http://127.0.0.1:9", prompt="Hi"), running(clients))
    endpoint = asking(upstream.url + "/hang", prompt="Hi", timeout="0.2s")
    with pytest.raises(StepTimeout):
        await run(endpoint, running(clients))


async def test_a_real_small_model_answers_in_words_and_by_schema(clients: Clients):
    with local_model() as url:
        text = await run(
            asking(url, prompt="Say hello to {{ input.name }}.", max_tokens=12, temperature=0.0), running(clients, 60, name="Ann")
        )
        assert isinstance(text, str)
        assert text.strip()
        labelled = await run(
            asking(url, prompt="A customer wants the money back. Label: refund or other?", response_schema=LABEL, max_tokens=24),
            running(clients, 60),
        )
        assert labelled["label"] in ("refund", "other")
