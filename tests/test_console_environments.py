"""Environments in the console: made, changed, and deleted once it is said what is lost; what was live in them at a moment."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from urllib.parse import quote

import pytest

from control_plane.model import Role, StaleAction
from control_plane.service.calls import Call
from control_plane.service.paging import PageRequest
from control_plane.service.tokens import NewToken
from pointsman.errors import EnvironmentNotFound
from tests.console_app import ANN, open_site


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        await site.release("shop", "v1")
        yield site


def named(page):
    return re.findall(r'href="/environments/([a-z-]+)"', page)


async def test_one_is_made_and_can_be_deployed_to(site):
    made = await site.send("/environments", environment="preview", description="For <them>", max_staleness="30s", stale_action="REFUSE")
    assert made.headers["location"] == "/environments/preview?created=yes"
    assert "is created" in await site.page(made.headers["location"])
    found = await site.parts.environments.get("preview")
    assert (found.description, found.max_staleness, found.stale_action) == ("For <them>", timedelta(seconds=30), StaleAction.REFUSE)
    page = await site.page("/environments")
    assert named(page) == ["development", "staging", "production", "preview"]
    assert "refuse triggers after 30 s" in page
    assert "preview" in await site.page("/apps/shop/deploy")


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"environment": "No!"}, 400, "environment"),
        ({"environment": "staging"}, 409, "staging"),
        ({"environment": "x", "max_staleness": "soon"}, 400, "is not a duration"),
        ({"environment": "x", "max_staleness": "10ms"}, 400, "max_staleness"),
        ({"environment": "x", "stale_action": "PANIC"}, 400, "'PANIC' is none of SERVE"),
    ],
)
async def test_mistakes_are_told_and_what_was_typed_stays(site, fields, status, told):
    refused = await site.send("/environments", **({"stale_action": "SERVE", "description": "kept"} | fields))
    assert refused.status_code == status
    assert told in refused.text.replace("&#39;", "'")
    assert 'value="kept"' in refused.text
    assert len(named(refused.text)) == 3


async def test_it_is_changed(site):
    where = "/environments/staging"
    assert (await site.send(where, description="tests", max_staleness="2m", stale_action="FLAG")).status_code == 303
    page = await site.page(where)
    assert 'value="tests"' in page
    assert 'value="120s"' in page
    assert '<option value="FLAG" selected>' in page
    assert (await site.send(where, description="", max_staleness="", stale_action="FLAG")).status_code == 303
    assert (await site.parts.environments.get("staging")).max_staleness is None
    refused = await site.send(where, description="new", max_staleness="never", stale_action="FLAG")
    assert (refused.status_code, 'value="new"' in refused.text) == (400, True)
    await site.page("/environments/nowhere", 404)


async def test_an_empty_one_is_deleted(site):
    page = await site.page("/environments/development")
    assert "no trigger is affected" in page
    gone = await site.send("/environments/development/delete")
    assert "is deleted" in await site.page(gone.headers["location"])
    with pytest.raises(EnvironmentNotFound):
        await site.parts.environments.get("development")
    assert named(await site.page("/environments")) == ["staging", "production"]


async def test_what_is_lost_is_named_and_must_be_wanted(site):
    await site.deploy("shop", "v1", "staging")
    where = "/environments/staging/delete"
    page = await site.page(where)
    assert "1 app is live here" in page
    assert 'href="/apps/shop/environments/staging">shop</a> <code>v1</code>' in page
    refused = await site.send(where)
    assert (refused.status_code, "still serves shop" in refused.text) == (412, True)
    assert await site.live("shop", "staging") == "v1"
    gone = await site.send(where, force="yes")
    assert gone.status_code == 303
    assert "staging" not in named(await site.page("/environments"))


async def test_what_is_deployed_meanwhile_is_not_lost_unseen(site):
    await site.release("chat", "v7")
    await site.deploy("shop", "v1", "staging")
    form = await site.hidden("/environments/staging")
    await site.deploy("chat", "v7", "staging")
    refused = await site.http.post("/environments/staging/delete", data=form | {"force": "yes"})
    assert refused.status_code == 409
    assert "has changed since the page was made" in refused.text
    assert "2 apps are live here" in refused.text
    assert await site.live("chat", "staging") == "v7"


async def test_the_past_is_shown_and_changes_nothing(site):
    await site.release("shop", "v2")
    for tag, environment in (("v1", "staging"), ("v1", "production"), ("v2", "staging")):
        await site.deploy("shop", tag, environment)
    newest_first = (await site.parts.deployments.history("shop", "", PageRequest(size=3))).items
    second, third = newest_first[1].create_time, newest_first[0].create_time
    await site.parts.environments.delete("staging", ANN, force=True)
    await site.send("/environments", environment="later", stale_action="SERVE")
    where = "/apps/shop/environments"

    page = await site.page(f"{where}?as_of={quote(third.isoformat())}")
    assert re.findall(r'class="tag" href="[^"]+">([^<]+)<', page) == ["v1", "v2"]
    assert "The past:" in page
    assert f"{third:%Y-%m-%d %H:%M:%S} UTC" in page
    # It is gone: there is no page of it.
    assert "deleted since" in page
    assert f'href="{where}/staging"' not in page
    assert f'href="{where}/production"' in page
    assert f'href="{where}"' in page
    assert f'href="{where}/development"' in page
    assert "later" not in page
    for change in ("/deploy", "/promote", "/rollback", 'href="/environments"><', 'method="post"'):
        assert change not in re.sub(r"(?s)<header.*?</header>", "", page), change
    (line,) = re.findall(r"<pre[^>]*><code>(pointsman .*)</code>", page)
    assert shlex.split(line)[-3:] == ["status", "--as-of", third.isoformat()]

    page = await site.page(f"{where}?as_of={quote(second.isoformat())}")
    assert re.findall(r'class="tag" href="[^"]+">([^<]+)<', page) == ["v1", "v1"]
    assert "Nothing of shop was live then" in await site.page(f"{where}?as_of=2h")
    assert "The past:" not in await site.page(where)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("yesterday", "'yesterday' is no time: write how long ago, such as 15m or 2h"),
        ("2999-01-01", "'2999-01-01' is yet to come"),
    ],
)
async def test_a_time_that_cannot_be_shown_is_told_beside_its_field(site, typed, told):
    page = await site.page(f"/apps/shop/environments?as_of={typed}", 400)
    assert f'value="{typed}"' in page
    assert told in re.search(r'<p class="hint wrong" id="w-as_of"[^>]*>([^<]+)', page)[1]
    assert "The past:" not in page


async def test_only_admins_change_them(site):
    form = await site.hidden("/environments")
    for role in (Role.ADMIN, Role.DEPLOYER):
        _, secret = await site.parts.tokens.create(NewToken(name=role.value, role=role), Call(actor="test"))
    await site.parts.hub.refresh()
    await site.send("/sign-in", token=secret)
    for page in ("/environments", "/environments/staging"):
        text = await site.page(page)
        assert "Create an environment" not in text
        assert "Delete" not in text
    for where, fields in (
        ("/environments", {"environment": "x", "stale_action": "SERVE"}),
        ("/environments/staging", {"stale_action": "SERVE"}),
        ("/environments/staging/delete", {"force": "yes"}),
    ):
        refused = await site.http.post(where, data=form | fields)
        assert (refused.status_code, "role ADMIN" in refused.text) == (403, True), where
    assert len(await site.parts.all_environments()) == 3
