"""HTTP tools against an upstream that fails on demand: each failure names stage, step and cause within the deadline, and no secret."""

import asyncio
import time
from typing import Any

import pytest
from google.protobuf import json_format
from starlette.responses import PlainTextResponse, Response

from data_plane.loaded import LoadedEndpoint, compile_release
from data_plane.pipeline import Run, Trigger, run
from data_plane.secrets import Secrets
from data_plane.steps.base import Clients
from pointsman.errors import StepFailed, StepTimeout
from pointsman.v1.config_pb2 import AppConfig
from tests.eventually import eventually
from tests.scripted_upstream import ScriptedUpstream
from tests.test_pipeline import digest_of

SECRET = "hunter2-canary"


@pytest.fixture
async def upstream():
    async with ScriptedUpstream().running() as running:
        yield running


@pytest.fixture
async def clients():
    opened = Clients.open()
    yield opened
    await opened.aclose()


def calling(url: str, arguments: str = "{}", tool: dict[str, Any] | None = None, schema: Any = None, **step: Any) -> LoadedEndpoint:
    http = {"url": url, "headers": {"Authorization": "Bearer ${secret:KEY}"}} | (tool or {})
    described: dict[str, Any] = {"name": "t", "http": http, "retry_safe": bool(step.pop("retry_safe", False))}
    if schema:
        described["input_schema"] = schema
    one = {"name": "call", "tool_call": {"tool": "t", "arguments": arguments}, **step}
    config = {
        "endpoints": [{"name": "e", "pipeline": "p"}],
        "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [one]}]}],
        "tools": [described],
    }
    return compiled(config)


def compiled_with(transform: dict[str, Any], url: str) -> LoadedEndpoint:
    """Calls the tool with the whole input, then the transform."""
    http = {"url": url, "method": "POST", "headers": {"Authorization": "Bearer ${secret:KEY}"}}
    steps = [{"name": "call", "tool_call": {"tool": "t", "arguments": "input"}}, {"name": "after", "transform": transform}]
    config = {
        "endpoints": [{"name": "e", "pipeline": "p"}],
        "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": steps}]}],
        "tools": [{"name": "t", "http": http}],
    }
    return compiled(config)


def compiled(config: dict[str, Any]) -> LoadedEndpoint:
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    return compile_release(digest_of(snapshot), snapshot, Secrets(environment={"POINTSMAN_SECRET_KEY": SECRET})).endpoints["e"]


def running(clients: Clients, seconds: float = 10.0, **given: Any) -> Run:
    async def at_once(_seconds: float) -> None:
        return

    deadline = time.monotonic() + seconds
    trigger = Trigger(execution_id="x", app="shop", environment="staging", release="v1", input=given, deadline=deadline)
    return Run(trigger, clients, pause=at_once)


async def test_url_headers_and_body_are_templates_and_a_json_answer_is_a_value(upstream, clients):
    tool = {
        "method": "POST",
        "headers": {"X-Env": "{{ environment }}", "Authorization": "Bearer ${secret:KEY}"},
        "body": '{"n": {{ arguments.n }}}',
    }
    endpoint = calling(upstream.url + "/echo/{{ input.id }}?q={{ arguments.n }}", "{'n': input.n * 2}", tool)
    answer = await run(endpoint, running(clients, id="a/b", n=3))
    assert (answer["method"], answer["query"], answer["body"]) == ("POST", {"q": "6"}, {"n": 6})
    _, path, headers, _ = upstream.seen[0]
    assert path == "/echo/a%2Fb?q=6"
    assert (headers["x-env"], headers["authorization"]) == ("staging", f"Bearer {SECRET}")


async def test_a_header_may_be_a_template_with_a_secret_in_it_and_nothing_of_the_input_is_read_as_one(upstream, clients):
    tool = {
        "headers": {"Authorization": "{% if input.admin %}Root{% else %}Bearer{% endif %} ${secret:KEY}", "X-Given": "{{ input.given }}"}
    }
    given = "${secret:KEY} {{ secret_KEY }}"
    await run(calling(upstream.url + "/echo", tool=tool), running(clients, admin=False, given=given))
    _, _, headers, _ = upstream.seen[0]
    assert (headers["authorization"], headers["x-given"]) == (f"Bearer {SECRET}", given)


async def test_a_post_without_a_body_sends_the_arguments_and_text_stays_text(upstream, clients):
    answer = await run(calling(upstream.url + "/echo", "{'a': [1, 2]}", {"method": "PUT"}), running(clients))
    assert answer["body"] == {"a": [1, 2]}
    assert await run(calling(upstream.url + "/text"), running(clients)) == "plain text"
    assert await run(calling(upstream.url + "/empty"), running(clients)) is None


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/404", "answered 404: scripted 404"),
        ("/500", "answered 500"),
        ("/302", "answered 302"),
        ("/not-json", "says that it answers JSON, but the answer is not JSON"),
        ("/huge", "answered more than"),
        ("/cut", "the answer was cut"),
    ],
)
async def test_a_bad_answer_is_a_failed_step_that_says_why(upstream, clients, path, says):
    with pytest.raises(StepFailed) as failed:
        await run(calling(upstream.url + path), running(clients))
    assert says in failed.value.message
    assert (failed.value.metadata["stage"], failed.value.metadata["step"]) == ("s", "call")
    assert SECRET not in repr(failed.value.metadata) + failed.value.message
    assert upstream.calls[path] == 1


async def test_an_upstream_that_repeats_its_key_does_not_tell_it_to_callers_nor_half_of_it(upstream, clients):
    endpoint = calling(upstream.url + "/broken")
    for before in ("", "x" * 190):
        upstream.script["GET /broken"] = [PlainTextResponse(f"{before}{SECRET} is no key", 403)]
        with pytest.raises(StepFailed) as failed:
            await run(endpoint, running(clients))
        told = failed.value.metadata["cause"] + failed.value.message
        assert f"answered 403: {before}[secret " in told
        assert SECRET[:7] not in told
    # Nor does an expression that quotes what it was given.
    said = compiled_with({"expression": "input[steps.call.body.said]"}, upstream.url + "/echo")
    with pytest.raises(StepFailed) as failed:
        await run(said, running(clients, said=SECRET))
    assert "[secret KEY]" in failed.value.message
    assert SECRET not in failed.value.message + repr(failed.value.metadata)
    assert SECRET not in repr(said)


@pytest.mark.parametrize(
    ("kind", "sent", "text"),
    [
        ("text/plain; charset=ISO-8859-1", b"caf\xe9 \x80", "café €"),
        ("text/html; charset=utf-8", "café".encode(), "café"),
        ("text/plain", b"\xef\xbb\xbfcaf\xe9", "caf\ufffd"),
        ("text/plain; charset=punycode", b"a-b", "a-b"),
        ("text/plain; charset", b"a", "a"),
    ],
)
async def test_text_is_read_as_it_says(upstream, clients, kind, sent, text):
    upstream.script = {"GET /text": [Response(sent, headers={"content-type": kind})]}
    assert await run(calling(upstream.url + "/text"), running(clients)) == text


async def test_a_cookie_that_one_trigger_was_given_is_not_sent_by_the_next(upstream, clients):
    upstream.script = {"GET /first": [PlainTextResponse("yours", headers={"set-cookie": "session=of-ann; Path=/"})]}
    assert await run(calling(upstream.url + "/first"), running(clients)) == "yours"
    await run(calling(upstream.url + "/second"), running(clients))
    await run(calling(upstream.url + "/third", tool={"headers": {"Cookie": "theme=dark"}}), running(clients))
    assert [headers.get("cookie") for _, _, headers, _ in upstream.seen] == [None, None, "theme=dark"]


async def test_nobody_there_is_a_failed_step(clients):
    with pytest.raises(StepFailed, match=r"tool 't' at http://127\.0\.0\.1:9"):
        await run(calling("http://127.0.0.1:9/secret-path"), running(clients))


@pytest.mark.parametrize(("url", "says"), [("{{ input.url }}", "is not a URL"), ("http://{{ input.url }}", "at http://")])
async def test_a_url_that_comes_out_wrong_is_a_failed_step(clients, url, says):
    with pytest.raises(StepFailed) as failed:
        await run(calling(url), running(clients, url="no url at all"))
    assert failed.value.metadata["step"] == "call"


async def test_what_may_pass_is_tried_again_but_a_post_only_when_it_is_safe(upstream, clients):
    upstream.fail_first = {"/get": 2, "/post": 2, "/safe": 2}
    assert (await run(calling(upstream.url + "/get", max_retries=2), running(clients)))["path"] == "/get"
    with pytest.raises(StepFailed, match="answered 503"):
        await run(calling(upstream.url + "/post", tool={"method": "POST"}, max_retries=2), running(clients))
    await run(calling(upstream.url + "/safe", tool={"method": "POST"}, max_retries=2, retry_safe=True), running(clients))
    assert upstream.calls == {"/get": 3, "/post": 1, "/safe": 3}


async def test_a_retry_after_that_is_longer_than_the_time_left_is_not_waited_for(upstream, clients):
    with pytest.raises(StepFailed, match="answered 429"):
        await run(calling(upstream.url + "/429", max_retries=5), running(clients, seconds=3.0))
    assert upstream.calls["/429"] == 1


async def test_a_hanging_upstream_ends_with_the_step_and_is_let_go(upstream, clients):
    with pytest.raises(StepTimeout, match=r"longer than its timeout of 0\.2 s"):
        await run(calling(upstream.url + "/hang", timeout="0.2s"), running(clients))
    assert upstream.calls["/hang"] == 1


async def test_a_caller_that_goes_away_cancels_the_call(upstream, clients):
    task = asyncio.create_task(run(calling(upstream.url + "/hang"), running(clients)))
    await eventually(lambda: upstream.hanging == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: len(clients.http._transport._pool.connections) == 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{'id': 7}", 'id: 7 is not of type "string"'),
        ("{}", '"id" is a required property'),
        ("[1]", "must be a map"),
        ("input.gone", "its arguments"),
    ],
)
async def test_arguments_are_checked_before_anything_is_sent(upstream, clients, arguments, says):
    schema = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
    with pytest.raises(StepFailed) as failed:
        await run(calling(upstream.url + "/echo", arguments, schema=schema), running(clients))
    assert says in failed.value.message
    assert not upstream.seen


@pytest.mark.parametrize(
    ("value", "says"), [("1\r\nX-B: 2", "would have a line break"), ("ä", "a letter beyond ASCII"), ("1 ", "a space at an end")]
)
async def test_a_header_cannot_be_split_or_broken(upstream, clients, value, says):
    tool = {"headers": {"X-A": "{{ input.a }}"}}
    with pytest.raises(StepFailed, match=says):
        await run(calling(upstream.url + "/echo", tool=tool), running(clients, a=value))
    assert not upstream.seen
