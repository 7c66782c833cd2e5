"""Deploy, Promote, Rollback and what is told of them, without scripts: pages that say what will change, forms that do it."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shlex

import pytest

from control_plane.console.compare import side_by_side
from control_plane.model import Rejection
from tests.console_app import gateway, open_site, refusing


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        for tag in ("v1", "v2", "v3"):
            await site.release("shop", tag)
        yield site


async def test_deploy_promote_and_roll_back_without_scripts(site):
    await site.deploy("shop", "v1", "production")
    confirm = "/apps/shop/deploy?release=v2&environment=staging"
    page = await site.page(confirm)
    assert "Deploy v2 to staging" in page
    assert "no gateway is connected that serves it" in page
    done = await site.send("/apps/shop/deploy", form=confirm, reason="try it")
    assert (done.status_code, await site.live("shop", "staging")) == (303, "v2")
    page = await site.page(done.headers["location"])
    assert "Done: <strong>v2</strong> is live in staging" in page
    assert "try it" in page

    confirm = "/apps/shop/promote?from=staging&to=production"
    page = await site.page(confirm)
    assert "Changes from v1 to v2" in page
    assert "pipelines[tell].stages[begin].steps[start].transform.expression" in page
    await site.send("/apps/shop/promote", form=confirm)
    assert await site.live("shop", "production") == "v2"

    confirm = "/apps/shop/rollback?environment=production"
    assert "Roll back to v1" in await site.page(confirm)
    done = await site.send("/apps/shop/rollback", form=confirm, reason="wrong answers")
    assert await site.live("shop", "production") == "v1"
    assert re.findall(r'class="kind \w+">(\w+)<', await site.page(done.headers["location"])) == ["ROLLBACK", "PROMOTE", "DEPLOY"]


async def test_a_confirmation_changes_nothing_and_a_form_sent_twice_changes_it_once(site):
    for tag in ("v1", "v2", "v3"):
        await site.deploy("shop", tag, "staging")
    confirm = "/apps/shop/rollback?environment=staging"
    form = await site.hidden(confirm)
    assert await site.live("shop", "staging") == "v3"
    for _ in range(2):
        assert (await site.http.post("/apps/shop/rollback", data=form)).status_code == 303
    assert await site.live("shop", "staging") == "v2"


async def test_what_somebody_else_changed_meanwhile_is_told_and_decided_again(site):
    await site.deploy("shop", "v1", "staging")
    form = await site.hidden("/apps/shop/deploy?release=v2&environment=staging")
    await site.deploy("shop", "v3", "staging")
    refused = await site.http.post("/apps/shop/deploy", data=form | {"reason": "because I say so"})
    assert refused.status_code == 409
    assert "someone else changed it" in refused.text
    assert 'value="because I say so"' in refused.text
    assert '<code class="from">v3</code>' in refused.text
    assert await site.live("shop", "staging") == "v3"


async def test_a_rejected_release_changes_nothing_says_why_and_may_be_forced(site):
    async with refusing(site, "shop", "staging"):
        confirm = "/apps/shop/deploy?release=v2&environment=staging"
        refused = await site.send("/apps/shop/deploy", form=confirm)
        assert refused.status_code == 412
        assert "secret KEY is missing" in refused.text
        assert await site.live("shop", "staging") == ""
        forced = await site.send("/apps/shop/deploy", form=confirm, force="yes")
    assert await site.live("shop", "staging") == "v2"
    assert "FORCED" in await site.page(forced.headers["location"])


async def test_there_is_nothing_to_roll_back_to(site):
    await site.deploy("shop", "v1", "staging")
    assert "Nothing was live in 'staging' before release 'v1'" in await site.page("/apps/shop/rollback?environment=staging", 412)
    assert ">Rollback<" not in await site.page("/apps/shop/environments")


async def test_the_lines_to_copy_ask_for_the_same(site):
    await site.deploy("shop", "v1", "staging")
    page = await site.page("/apps/shop/promote?from=staging&to=production")
    cli, grpcurl = re.findall(r"<pre[^>]*><code[^>]*>(.*)</code>", page)
    assert shlex.split(cli) == [
        *("pointsman", "promote", "--from", "staging", "--to", "production"),
        *("--app", "shop", "--expected-revision", "0"),
    ]
    assert shlex.split(grpcurl)[-2:] == ["127.0.0.1:7400", "pointsman.v1.DeploymentService/Promote"]
    assert '"from_environment": "staging"' in shlex.split(grpcurl)[3]


async def test_the_lines_to_copy_have_what_was_typed_when_the_form_was_refused(site):
    form = await site.hidden("/apps/shop/deploy?release=v2&environment=staging")
    await site.deploy("shop", "v3", "staging")
    refused = await site.http.post("/apps/shop/deploy", data=form | {"reason": "it's urgent", "force": "yes"})
    cli, grpcurl = (html.unescape(line) for line in re.findall(r"<pre[^>]*><code[^>]*>(.*)</code>", refused.text))
    assert shlex.split(cli)[-5:] == ["--expected-revision", "1", "--force", "--reason", "it's urgent"]
    assert json.loads(shlex.split(grpcurl)[3]) == {
        "app": "shop",
        "environment": "staging",
        "release": "v2",
        "expected_revision": 1,
        "force": True,
        "reason": "it's urgent",
    }


async def test_environments_show_what_is_live_since_when_by_whom(site):
    await site.deploy("shop", "v1", "staging")
    await site.deploy("shop", "v2", "staging", reason="kinder")
    page = await site.page("/apps/shop/environments")
    for shown in ("v2", "ann", "kinder", "<code>v1</code>", "just now", "Nothing live in"):
        assert shown in page
    assert page.index("staging") < page.index("Nothing live in") < page.index("development") < page.index("production")


async def test_a_rollout_is_told_as_it_happens_until_the_last_gateway(site):
    watching, connected = gateway(site)
    async with watching as watcher:
        with connected(watcher) as session:
            site.parts.gateways.prepared(session, "", [])
            await site.deploy("shop", "v1", "staging", force=True, rollout_seconds=0.0)
            await site.parts.hub.refresh()
            assert "0 of 1" in await site.page("/apps/shop/environments/staging")
            assert "BEHIND" in await site.page("/gateways")
            stream = asyncio.create_task(site.http.get("/apps/shop/environments/staging/rollout"))
            asyncio.get_running_loop().call_later(0.3, site.parts.gateways.applied, session, site.parts.hub.revision, [])
            events = (await stream).text.split("\n\n")
    assert [event.split("\n")[0] for event in events if event] == ["event: rollout", "event: rollout", "event: end"]
    assert "0 of 1" in events[0]
    assert "1 of 1" in events[1]
    assert re.search(r"the last one after \d+ ms", events[1])


async def test_gateways_that_need_a_look_are_on_top(site):
    assert "pointsman gateway --control-plane 127.0.0.1:7400" in await site.page("/gateways")
    await site.deploy("shop", "v1", "staging")
    await site.parts.hub.refresh()
    live = (await site.parts.binding("shop", "staging")).deployment
    first, connect_first = gateway(site, "a-sound", 1)
    second, connect_second = gateway(site, "b-behind", 0, uptime_seconds=7_200.0)
    third, connect_third = gateway(site, "c-refusing", 1)
    async with first as one, second as two, third as three:
        with connect_first(one), connect_second(two), connect_third(three) as refusing:
            rejection = Rejection(app="shop", environment="staging", digest=live.digest, reason="no such <model>")
            site.parts.gateways.applied(refusing, 1, [rejection])
            page = await site.page("/gateways")
    assert page.index("c-refusing") < page.index("b-behind") < page.index("a-sound")
    assert "Refused v1 of shop in staging: no such <model>" in page
    refusing, behind, sound = re.findall(r'data-label="Loaded">([^<]*)<', page)
    assert (refusing.strip(), behind.strip(), sound.strip()) == ("0", "0, 1 not yet", "1")
    # A gateway of before says only since when it is connected.
    up = re.findall(r'data-label="Up for">(?:<time[^>]*>)?([^<]*)<.*?connected <time[^>]*>(\d seconds)<', page)
    assert [text for text, _ in up] == ["not told", "2 hours", "not told"]


async def test_releases_are_compared_side_by_side(site):
    page = await site.page("/apps/shop/compare?from=v1&to=v3")
    assert "&#39;<mark>" not in page
    assert re.search(r"removed\">.*v<mark>1</mark>", page)
    assert re.search(r"added\">.*v<mark>3</mark>", page)
    assert "No difference" in await site.page("/apps/shop/compare?from=v3&to=")
    assert "Did you mean" in await site.page("/apps/shop/compare?from=v1&to=v9", 404)


def test_lines_stand_beside_what_they_became():
    rows = side_by_side(["a", "timeout: 2s", "b"], ["a", "timeout: 30s", "b", "c"])
    assert [(left.kind, right.kind) for left, right in rows] == [
        ("same", "same"),
        ("removed", "added"),
        ("same", "same"),
        ("none", "added"),
    ]
    assert (rows[1][0].before, rows[1][0].middle, rows[1][0].after) == ("timeout: ", "2", "s")
    assert rows[1][1].middle == "30"
