"""The editor of the draft, by forms alone: every action, what is refused, and two people who edit at the same time."""

from __future__ import annotations

import html
from html.parser import HTMLParser

import pytest

from control_plane.cli.samples import SAMPLES, sample_text
from pointsman.appfile import parse
from pointsman.v1.config_pb2 import AppConfig
from tests.console_app import ANN, open_site

EDITOR = "/apps/shop/editor"
STEP = "pipelines[0].stages[1].steps[0]"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        await site.send("/apps", app="shop")
        started = await do(site, "sample support-chat")
        assert started.status_code == 303, started.text
        yield site


@pytest.mark.parametrize("name", SAMPLES)
async def test_an_empty_draft_begins_with_a_sample(tmp_path, name):
    async with open_site(tmp_path) as site:
        await site.send("/apps", app="shop")
        assert f'value="sample {name}"' in await site.page(EDITOR)
        assert (await do(site, f"sample {name}")).status_code == 303
        assert await config(site) == parse(sample_text(name)).config


async def config(site) -> AppConfig:
    return AppConfig.FromString((await site.parts.apps.draft("shop")).config)


async def do(site, what):
    return await site.send(f"{EDITOR}/change", form=EDITOR, do=what)


class Typed(HTMLParser):
    """What a browser would send of the form with class `item` if nothing were typed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._is_inside = False
        self._select = self._into = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        name = given.get("name", "")
        if tag == "form":
            self._is_inside = given.get("class") == "item"
        elif self._is_inside and tag == "input":
            if given.get("type") not in ("radio", "checkbox") or "checked" in given:
                self.found[name] = given.get("value", "")
        elif self._is_inside and tag in ("textarea", "select"):
            self.found[name] = ""
            self._into, self._select = (name, "") if tag == "textarea" else ("", name)
        elif self._is_inside and tag == "option" and "selected" in given and given.get("value") != "":
            self._into = self._select

    def handle_data(self, data: str) -> None:
        if self._into:
            self.found[self._into] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._into:
            # The line end after <textarea> is not part of it.
            self.found[self._into] = self.found[self._into].removeprefix("\n")
        if tag in ("textarea", "option"):
            self._into = ""
        if tag == "form":
            self._is_inside = False


async def shown(site, at):
    """The fields of the form of a place, as a browser would send them."""
    reader = Typed()
    reader.feed((await site.http.get(f"{EDITOR}/form?at={at}")).text)
    return reader.found


async def save(site, at, **typed):
    return await site.http.post(f"{EDITOR}/form", data=await shown(site, at) | typed)


async def test_an_empty_app_says_how_to_begin(site):
    await site.send("/apps", app="new")
    page = await site.page("/apps/new/editor")
    assert "This app has no pipeline yet" in page
    assert "Add a pipeline" in page
    started = await site.send("/apps/new/editor/change", form="/apps/new/editor", do="sample hello")
    assert "at-pipelines-0-stages-0-steps-0" in await site.page(started.headers["location"])
    assert (await config(site)).pipelines[0].name == "chat"
    assert "order_id: {type: string" in sample_text()


async def test_a_pipeline_a_stage_a_step_an_endpoint_a_tool_and_a_model_are_added(site):
    for at, typed in (
        ("pipelines", {"name": "echo"}),
        ("pipelines[4].stages", {"name": "later"}),
        ("pipelines[4].stages[1].steps", {"name": "looks", "kind": "tool_call", "tool_call.tool": "find_order"}),
        ("endpoints", {"name": "echo", "pipeline": "echo", "input_schema": "type: object\nproperties: {a: {type: string}}"}),
        ("tools", {"name": "weather", "kind": "http", "http.url": "http://weather.example/", "http.headers": "X-A: ${secret:KEY}"}),
        ("models", {"name": "mine", "targets[0].base_url": "http://models.example/v1"}),
        ("models[1].targets", {"base_url": "http://other.example/v1", "api_key": "${secret:KEY}"}),
    ):
        saved = await save(site, at, **typed)
        assert saved.status_code == 303, (at, html.unescape(saved.text)[:6000])
        assert (await site.http.get(saved.headers["location"])).status_code == 200
    found = await config(site)
    echo = found.pipelines[4]
    assert [(stage.name, [step.name for step in stage.steps]) for stage in echo.stages] == [
        ("main", ["first"]),
        ("later", ["step_1", "looks"]),
    ]
    assert found.endpoints[4].input_schema["properties"]["a"]["type"] == "string"
    assert found.tools[1].http.headers["X-A"] == "${secret:KEY}"
    assert [target.base_url for target in found.models[1].targets] == ["http://models.example/v1", "http://other.example/v1"]


async def test_saving_a_form_as_it_is_changes_nothing(site):
    before = await config(site)
    places = ["endpoints[0]", "endpoints[1]", "tools[0]"]
    for index, pipeline in enumerate(before.pipelines):
        places.append(f"pipelines[{index}]")
        for number, stage in enumerate(pipeline.stages):
            places.append(f"pipelines[{index}].stages[{number}]")
            places += [f"pipelines[{index}].stages[{number}].steps[{position}]" for position in range(len(stage.steps))]
    for at in places:
        assert (await save(site, at)).status_code == 303, at
        assert await config(site) == before, at


async def test_mistakes_stand_beside_their_fields_and_nothing_typed_is_lost(site):
    before = await config(site)
    typed = {"timeout": "10", "max_retries": "99", "when": "steps.later == 1 </textarea>", "name": "or der"}
    refused = await save(site, STEP, **typed)
    assert refused.status_code == 400
    page = html.unescape(refused.text)
    # What cannot be read comes first; then what the rules say.
    assert 'must be seconds with an s, such as "10s"' in page
    assert "steps.later == 1 &lt;/textarea&gt;" in refused.text
    assert 'value="or der"' in page
    again = await save(site, STEP, **(typed | {"timeout": "10s"}))
    page = html.unescape(again.text)
    for said in ("'or der' is not allowed; use a letter or _", "99: must be", "steps.later == 1"):
        assert said in page, said
    assert 'id="f-max_retries" name="max_retries" value="99"' in page
    assert page.count('aria-invalid="true"') == 3
    assert await config(site) == before


async def test_what_a_change_breaks_elsewhere_is_told_on_top(site):
    refused = await do(site, "delete pipelines[0]")
    assert refused.status_code == 400
    assert "there is no pipeline 'chat'" in html.unescape(refused.text)
    refused = await do(site, "move pipelines[0].stages[0] pipelines[0].stages[3]")
    assert "steps.intent has not run yet here" in html.unescape(refused.text)
    for nonsense in (
        "",
        "delete",
        "delete x[0]",
        "delete pipelines",
        "delete pipelines[9]",
        "move tools[0] pipelines[0]",
        "sample x y",
        "sample x",
    ):
        assert (await do(site, nonsense)).status_code == 400, nonsense
    for at in ("nothing", "pipelines[9]", "pipelines[0].name", "pipelines[0].stages[0].steps[0].inference"):
        assert (await site.http.get(f"{EDITOR}/form?at={at}")).status_code == 400, at


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("move pipelines[2].stages[1].steps[0] pipelines[2].stages[1].steps[2]", [["scored"], ["later", "urgent"]]),
        ("move pipelines[2].stages[1].steps[1] pipelines[2].stages[1].steps[0]", [["scored"], ["later", "urgent"]]),
        ("move pipelines[2].stages[1].steps[0] pipelines[2].stages[0].steps", [["scored", "urgent"], ["later"]]),
        ("delete pipelines[0].stages[1].steps[1]", None),
    ],
)
async def test_steps_are_moved_and_deleted(site, what, names):
    moved = await do(site, what)
    if names is None:
        assert moved.status_code == 400
        assert "steps.policy" in html.unescape(moved.text) or "policy" in html.unescape(moved.text)
        return
    assert moved.status_code == 303
    assert [[step.name for step in stage.steps] for stage in (await config(site)).pipelines[2].stages] == names
    page = await site.page(moved.headers["location"].partition("#")[0])
    assert f'id="{moved.headers["location"].partition("#")[2]}"' in page


async def test_references_follow_a_new_name(site):
    assert (await save(site, "tools[0]", name="seek_order")).status_code == 303
    assert (await save(site, "pipelines[0]", name="talk")).status_code == 303
    saved = await save(site, "pipelines[0].stages[0].steps[0]", name="tokens")
    assert saved.status_code == 303
    found = await config(site)
    assert found.pipelines[0].stages[1].steps[0].tool_call.tool == "seek_order"
    assert found.endpoints[0].pipeline == "talk"
    assert "steps.tokens.filter(word" in found.pipelines[0].stages[0].steps[1].transform.expression
    assert "steps.words" not in str(found)
    assert "references followed the new name" in await site.page(saved.headers["location"].partition("#")[0])


async def test_the_second_of_two_people_sees_both_sides_and_goes_on(site):
    mine = await shown(site, STEP)
    assert (await save(site, STEP, timeout="3s")).status_code == 303
    # Somebody puts a stage before it as well: what is edited is found again by its names.
    assert (await do(site, "move pipelines[1] pipelines[0]")).status_code == 303
    refused = await site.http.post(f"{EDITOR}/form", data=mine | {"timeout": "4s"})
    assert refused.status_code == 409
    page = html.unescape(refused.text)
    assert "Theirs, version 3, and yours" in page
    assert "timeout: <mark>3</mark>s" in page
    assert "timeout: <mark>4</mark>s" in page
    assert 'value="4s"' in page
    assert 'name="at" value="pipelines[1].stages[1].steps[0]"' in page
    assert 'href="/apps/shop/editor/form?at=pipelines[1].stages[1].steps[0]">Take theirs' in page
    going_on = mine | {"timeout": "4s", "expected_draft_version": "3", "at": "pipelines[1].stages[1].steps[0]"}
    assert (await site.http.post(f"{EDITOR}/form", data=going_on)).status_code == 303
    found = await config(site)
    assert found.pipelines[1].stages[1].steps[0].timeout.seconds == 4
    assert found.pipelines[0].name == "order-status"


async def test_what_somebody_else_removed_can_be_added_again(site):
    mine = await shown(site, "pipelines[2].stages[1].steps[1]")
    assert (await save(site, "pipelines[2]", output="steps.urgent")).status_code == 303
    assert (await do(site, "delete pipelines[2].stages[1].steps[1]")).status_code == 303
    refused = await site.http.post(f"{EDITOR}/form", data=mine | {"description": "mine"})
    page = html.unescape(refused.text)
    assert "Somebody else removed this step" in page
    assert "Add mine again" in page
    again = mine | {"description": "mine", "at": "pipelines[2].stages[1].steps", "expected_draft_version": "3"}
    assert (await site.http.post(f"{EDITOR}/form", data=again)).status_code == 303
    assert (await config(site)).pipelines[2].stages[1].steps[1].description == "mine"


async def test_a_move_on_a_page_that_is_old_is_refused_and_shows_the_draft_as_it_is(site):
    old = await site.hidden(EDITOR)
    assert (await save(site, STEP, timeout="3s")).status_code == 303
    what = "move pipelines[2].stages[1].steps[0] pipelines[2].stages[1].steps[2]"
    refused = await site.http.post(f"{EDITOR}/change", data=old | {"do": what})
    assert refused.status_code == 409
    page = html.unescape(refused.text)
    assert "Below is the draft as it is now, version 2" in page
    assert 'name="expected_draft_version" value="2"' in page


async def test_changes_are_counted_since_the_newest_release(site):
    assert "There is no release yet" in await site.page("/apps/shop/changes")
    await site.parts.releases.create(app="shop", tag="v1", description="", config=None, deploy_to="", call=ANN)
    assert "Nothing has changed" in await site.page("/apps/shop/changes")
    await save(site, STEP, timeout="3s")
    await save(site, "tools[0]", description="Looks orders up")
    for path in (EDITOR, "/apps/shop/draft", "/apps/shop/changes"):
        assert '<span class="count">2<' in await site.page(path)
    assert "Changed since v1" in await site.page("/apps/shop/changes")


async def test_a_sample_replaces_nothing(site):
    before = await config(site)
    refused = await do(site, "sample hello")
    assert "which is not empty" in html.unescape(refused.text)
    assert await config(site) == before


async def test_a_form_of_another_browser_changes_nothing(site):
    before = await config(site)
    typed = await shown(site, STEP)
    refused = await site.http.post(f"{EDITOR}/form", data=typed | {"form_token": "other", "timeout": "7s"})
    assert refused.status_code == 403
    assert 'value="7s"' in refused.text
    assert await config(site) == before
