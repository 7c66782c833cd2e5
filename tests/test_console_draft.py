"""The draft page: errors at their lines, what changed, and two people who edit at the same time."""

from __future__ import annotations

import html

import pytest

from control_plane.console.draft import STARTER
from pointsman.appfile import parse
from tests.console_app import open_site
from tests.sample_apps import as_yaml, marked


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        await site.draft("shop", "one")
        yield site


async def test_a_draft_is_edited_as_text_and_comes_back_the_same(site):
    saved = await site.send("/apps/shop/draft", text=as_yaml(marked("two")).replace("\n", "\r\n"))
    assert saved.status_code == 303
    page = await site.page(saved.headers["location"])
    assert "Saved as version 2" in page
    assert "expression: '''two'''" in page


async def test_errors_stand_at_their_line_and_nothing_typed_is_lost(site):
    text = as_yaml(marked("two")).replace("pipeline: tell", "pipeline: tel") + "# mine </textarea>\n"
    line = text[: text.index("pipeline: tel")].count("\n") + 1
    refused = await site.send("/apps/shop/draft", text=text)
    assert refused.status_code == 400
    shown = html.unescape(refused.text)
    assert f"Line {line}, column" in shown
    assert "there is no pipeline 'tel'. Did you mean tell?" in shown
    assert "# mine &lt;/textarea&gt;" in refused.text
    assert "expression: '''one'''" in await site.page("/apps/shop/draft")


async def test_text_that_is_no_yaml_is_refused_at_its_line(site):
    refused = await site.send("/apps/shop/draft", text="endpoints:\n  - name: [\n")
    assert refused.status_code == 400
    assert "Line 3, column 1" in refused.text


async def test_a_check_saves_nothing(site):
    checked = await site.send("/apps/shop/draft", text=as_yaml(marked("two")), action="check")
    assert "It is sound. Nothing was saved." in checked.text
    assert "expression: '''one'''" in await site.page("/apps/shop/draft")


async def test_the_second_of_two_people_is_refused_with_the_difference_and_loses_nothing(site):
    mine = await site.hidden("/apps/shop/draft")
    await site.send("/apps/shop/draft", text=as_yaml(marked("theirs")))
    refused = await site.http.post("/apps/shop/draft", data=mine | {"text": as_yaml(marked("mine"))})
    assert refused.status_code == 409
    shown = html.unescape(refused.text)
    assert "at version 2, not 1: someone else changed it" in shown
    assert "theirs" in shown
    assert "expression: '''mine'''" in shown
    assert 'name="expected_draft_version" value="2"' in refused.text
    # An error meanwhile does not make the text newer than it is.
    wrong = await site.http.post("/apps/shop/draft", data=mine | {"text": "x: 1"})
    assert 'name="expected_draft_version" value="1"' in wrong.text
    again = await site.http.post("/apps/shop/draft", data=mine | {"text": as_yaml(marked("mine")), "expected_draft_version": "2"})
    assert again.status_code == 303
    assert "expression: '''mine'''" in await site.page("/apps/shop/draft")


async def test_what_changed_since_the_newest_release_is_shown(site):
    await site.release("shop", "v1")
    assert "The draft is the same as the newest release, v1" in await site.page("/apps/shop/changes")
    await site.draft("shop", "two")
    page = await site.page("/apps/shop/changes")
    assert "Changed since v1" in page
    assert "transform.expression" in page


async def test_an_empty_draft_says_what_to_do(site):
    await site.send("/apps", app="new")
    page = await site.page("/apps/new/draft")
    assert "still empty" in page
    assert STARTER in page
    assert parse(STARTER).violations == []
    assert (await site.send("/apps/new/draft", text=STARTER)).status_code == 303
    assert "version 1" in (page_after := await site.page("/apps/new/draft"))
    assert "still empty" not in page_after
    assert "nothing to release" in page
