"""Try it: forms from schemas, triggers through the console to a real gateway, and what it says when there is no answer."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import shlex
from functools import partial

import httpx2
import pytest

from control_plane.console.gateway_door import GatewayDoor
from control_plane.console.input_form import fields_of, read_fields, read_json, skeleton
from control_plane.model import Role
from control_plane.service.calls import Call
from control_plane.service.tokens import NewToken
from pointsman.errors import InvalidField
from tests.clients import control_plane_client
from tests.console_app import FORM, open_site
from tests.eventually import eventually
from tests.processes import BIN, free_address, run, start_control_plane, start_dev, start_gateway
from tests.sample_apps import marked

SCHEMA = {
    "type": "object",
    "required": ["message", "count"],
    "properties": {
        "message": {"type": "string", "description": "What to say"},
        "count": {"type": "integer", "default": 3},
        "share": {"type": "number"},
        "loud": {"type": "boolean"},
        "tone": {"enum": ["kind", "short", 7]},
        "more": {"type": "object"},
    },
}


def nothing(_key):
    return ""


def read(schema=SCHEMA, **typed):
    given = {f"in.{name}": value for name, value in typed.items()}
    return read_fields(fields_of(schema, lambda key: given.get(key, "")), lambda key: given.get(key, ""))


def test_each_simple_property_is_a_field_and_others_are_json():
    fields = fields_of(SCHEMA, nothing)
    assert [(field.name, field.kind, field.required, field.value) for field in fields] == [
        ("message", "string", True, ""),
        ("count", "integer", True, "3"),
        ("share", "number", False, ""),
        ("loud", "boolean", False, ""),
        ("tone", "choice", False, ""),
        ("more", "json", False, ""),
    ]
    assert fields[4].choices == ('"kind"', '"short"', "7")
    assert json.loads(skeleton(fields)) == {"message": "", "count": 3}
    for schema in ({}, {"type": "string"}, {"properties": 1}, {"properties": {f"p{n}": {} for n in range(41)}}):
        assert fields_of(schema, nothing) == []


def test_what_is_typed_has_the_type_of_the_schema_and_what_is_empty_is_left_out():
    assert read(message=" hi ", count="7", share="0.5", loud="true", tone="7", more='{"a": [1]}') == {
        "message": " hi ",
        "count": 7,
        "share": 0.5,
        "loud": True,
        "tone": 7,
        "more": {"a": [1]},
    }
    assert read() == {"message": ""}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"count": "many"}, "'many' is not a whole number"),
        ({"count": "true"}, "'true' is not a whole number"),
        ({"share": "half"}, "'half' is not a number"),
        ({"loud": "1"}, "'1' is not true or false"),
        ({"more": "{"}, "'{' is not JSON"),
    ],
)
def test_what_is_of_another_type_is_told_at_its_field(typed, told):
    with pytest.raises(InvalidField) as refused:
        read(**typed)
    assert [(v.field, v.description) for v in refused.value.violations] == [(f"in.{next(iter(typed))}", told)]


def test_json_must_be_an_object():
    assert read_json('{"a": 1}') == {"a": 1}
    assert read_json(" ") == {}
    for text in ("[1]", "1", "{"):
        with pytest.raises(InvalidField):
            read_json(text)


@pytest.mark.parametrize("url", ["127.0.0.1:7580", "ftp://x", "http://", "http://x/?a=b"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="is no address such as http"):
        GatewayDoor(url)


async def test_a_control_plane_does_not_start_with_such_an_address(tmp_path):
    flags = ("--store", f"sqlite:///{tmp_path}/x.db", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    refused = await run(BIN / "pointsman", "control-plane", *flags, "--gateway-url", "127.0.0.1:7580")
    assert refused.code != 0
    assert "--gateway-url" in refused.stderr


async def test_without_an_address_the_page_says_what_to_set(tmp_path):
    async with open_site(tmp_path) as site:
        await site.release("shop", "v1")
        assert "Nothing of shop is live yet" in await site.page("/apps/shop/try")
        await site.deploy("shop", "v1", "production")
        page = await site.page("/apps/shop/try")
        assert "--gateway-url http://HOST:7580" in page
        assert "Send to" not in page
        (line,) = re.findall(r"<pre[^>]*><code>(pointsman .*)</code>", page)
        assert shlex.split(line)[-2:] == ["-d", '{"message": ""}']


async def test_the_lines_to_copy_carry_what_it_may_run_on(tmp_path):
    async with open_site(tmp_path, "http://127.0.0.1:9") as site:
        await site.release("shop", "v1", deploy_to="production")
        page = await site.page("/apps/shop/try?release=v0%2B1&min_revision=7")
        assert "on v0+1 alone, and on nothing older than revision 7" in re.sub("</?code>", "", page)
        cli, curl = (shlex.split(line) for line in re.findall(r"<pre[^>]*><code>((?:pointsman|curl) .*)</code>", page))
        assert cli[-6:-2] == ["--release", "v0+1", "--min-revision", "7"]
        assert {"X-Release: v0+1", "X-Min-Revision: 7"} <= set(curl)
        page = await site.page("/apps/shop/try")
        for absent in ("alone", "--release", "X-Release", "--min-revision", "X-Min-Revision"):
            assert absent not in page


@pytest.mark.parametrize(
    ("field", "typed", "told"), [("release", "no tag!", "'no tag!' is not allowed"), ("min_revision", "-1", "'-1' is not a whole number")]
)
async def test_a_bound_that_is_none_is_told_beside_its_field_and_nothing_is_sent(tmp_path, field, typed, told):
    # Who were asked would not answer.
    async with open_site(tmp_path, "http://127.0.0.1:9") as site:
        await site.release("shop", "v1", deploy_to="production")
        chosen = await site.http.get("/apps/shop/try", params={field: typed})
        sent = await site.send("/apps/shop/try", **{field: typed, "way": "json", "json": "{}"})
        for answer in (chosen, sent):
            assert answer.status_code == 400
            text = html.unescape(answer.text)
            assert told in re.search(rf'<p class="hint wrong" id="d-{field}">([^<]+)', text)[1]
            assert f'name="{field}" value="{typed}"' in text
            assert "NO ANSWER" not in text


async def test_nobody_answers(tmp_path):
    async with open_site(tmp_path, "http://127.0.0.1:9") as site:
        await site.release("shop", "v1", deploy_to="production")
        answer = await site.send("/apps/shop/try", environment="production", endpoint="where", way="json", json='{"message": "kept"}')
        assert "NO ANSWER" in answer.text
        assert "is --gateway-url right?" in answer.text
        assert "kept" in answer.text


async def test_something_else_answers_there(tmp_path):
    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_site(tmp_path, f"http://127.0.0.1:{port}") as site:
            await site.release("shop", "v1", deploy_to="production")
            answer = await site.send("/apps/shop/try", environment="production", endpoint="where", way="json", json="{}")
            assert "is no gateway" in answer.text


async def test_who_may_not_is_told_and_nothing_is_sent(tmp_path):
    async with open_site(tmp_path, "http://127.0.0.1:9") as site:
        await site.release("shop", "v1", deploy_to="production")
        form = await site.hidden("/apps/shop/try")
        for role in (Role.ADMIN, Role.DEPLOYER):
            _, secret = await site.parts.tokens.create(NewToken(name=role.value, role=role), Call(actor="test"))
        await site.parts.hub.refresh()
        await site.send("/sign-in", token=secret)
        assert "Your token does not trigger" in await site.page("/apps/shop/try")
        refused = await site.http.post("/apps/shop/try", data=form | {"in.message": "hi"})
        assert (refused.status_code, "TRIGGER or ADMIN" in refused.text) == (403, True)
        forged = await site.http.post(
            "/apps/shop/try", data={"environment": "production", "endpoint": "where", "way": "json", "json": "{}"}
        )
        assert forged.status_code == 403


async def test_a_token_for_one_environment_tries_there_alone(tmp_path):
    async with open_site(tmp_path, "http://127.0.0.1:9") as site:
        await site.release("shop", "v1", deploy_to="production")
        await site.deploy("shop", "v1", "staging")
        for environments in ((), ("production",)):
            wanted = NewToken(name="ann", role=Role.ADMIN, environments=environments)
            _, secret = await site.parts.tokens.create(wanted, Call(actor="test"))
        await site.parts.hub.refresh()
        await site.send("/sign-in", token=secret)
        for page in ("/apps/shop/try", "/apps/shop/try?environment=staging"):
            assert "Send to production" in await site.page(page)
        form = await site.hidden("/apps/shop/try")
        refused = await site.http.post("/apps/shop/try", data=form | {"environment": "staging"})
        assert (refused.status_code, "it is for production" in refused.text) == (403, True)


@contextlib.asynccontextmanager
async def running(folder):
    """A gateway, and a control plane whose console knows it, with an app live in staging and production; and a browser without scripts."""
    there = free_address()
    async with (
        start_control_plane(folder, "--gateway-url", f"http://{there}") as plane,
        start_gateway(folder, plane.grpc, "--http", there),
        control_plane_client(plane) as stubs,
        httpx2.AsyncClient(base_url=f"http://{plane.http}", trust_env=False, timeout=20) as http,
    ):
        app = await stubs.create_app(v1=marked("v1"), v2=marked("v2"))
        await stubs.deploy(app, "v1", "production", wait={"seconds": 10})
        await stubs.deploy(app, "v2", "staging", wait={"seconds": 10})
        yield http, f"/apps/{app}/try"


async def fields(http, page):
    return dict(FORM.findall((await http.get(page)).text))


async def is_on_record(http, record):
    return (await http.get(record)).status_code == 200


async def test_a_trigger_runs_where_it_was_sent_and_all_of_it_is_shown(tmp_path):
    async with running(tmp_path) as (http, page):
        for environment, release in (("staging", "v2"), ("production", "v1")):
            form = await fields(http, f"{page}?environment={environment}")
            answer = await http.post(page, data=form | {"way": "fields", "in.message": "hi <you>"})
            assert answer.status_code == 200
            for shown in (
                "SUCCEEDED",
                f">{release}</a>, revision",
                f"&#34;last&#34;: &#34;{release}&#34;",
                "hi &lt;you&gt;",
                "answer</code>",
            ):
                assert shown in answer.text, shown
            record = re.search(r'href="(/apps/[^"]+/executions/[0-9a-f-]{36})"', answer.text)[1]
            await eventually(partial(is_on_record, http, record))


async def test_it_is_streamed_to_a_script(tmp_path):
    async with running(tmp_path) as (http, page):
        form = await fields(http, page)
        answer = await http.post(page, data=form | {"way": "json", "json": '{"message": "x"}'}, headers={"accept": "text/event-stream"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event for event in answer.text.split("\n\n") if event]
        assert {event.split("\n")[0] for event in events} == {"event: tried"}
        assert "SUCCEEDED" in events[-1]
        assert "Output" in events[-1]


async def test_a_refusal_is_shown_as_the_gateway_tells_it(tmp_path):
    async with running(tmp_path) as (http, page):
        form = await fields(http, page)
        answer = await http.post(page, data=form | {"way": "json", "json": '{"message": 7}'})
        assert "REFUSED" in answer.text
        assert "INVALID_INPUT" in answer.text
        assert "<code>message</code>" in answer.text
        wrong = await http.post(page, data=form | {"way": "json", "json": "[7]"})
        assert (wrong.status_code, "is not a JSON object" in wrong.text) == (400, True)
        gone = await http.post(page, data=form | {"endpoint": "nowhere", "way": "json", "json": "{}"})
        assert (gone.status_code, "is not served in" in gone.text) == (400, True)


async def test_it_runs_on_the_release_that_is_asked_for_or_is_refused(tmp_path):
    async with running(tmp_path) as (http, page):
        for release, told in (("v2", "SUCCEEDED"), ("v9", "RELEASE_NOT_LOADED")):
            form = await fields(http, f"{page}?environment=staging&release={release}")
            answer = await http.post(page, data=form | {"way": "json", "json": '{"message": "x"}'})
            assert told in answer.text
        form = await fields(http, f"{page}?environment=staging&min_revision=1")
        answer = await http.post(page, data=form | {"way": "json", "json": '{"message": "x"}'})
        assert "SUCCEEDED" in answer.text
        form = await fields(http, f"{page}?environment=staging&min_revision=99999")
        headers = {"accept": "text/event-stream"}
        answer = await http.post(page, data=form | {"way": "json", "json": '{"message": "x"}'}, headers=headers)
        assert "BEHIND" in answer.text


async def test_dev_has_it_at_once(tmp_path):
    async with (
        start_dev(tmp_path) as dev,
        httpx2.AsyncClient(base_url=f"http://{dev.http}", trust_env=False, timeout=20) as http,
    ):
        page = "/apps/support-chat/try"
        answer = await http.post(page, data=await fields(http, page) | {"way": "fields", "in.message": "Where is order 1234?"})
        assert "SUCCEEDED" in answer.text
