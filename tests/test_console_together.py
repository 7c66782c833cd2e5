"""Deploy together, without scripts: choosing releases of several apps, confirming, following; who may, and what is refused."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shlex

import pytest

from control_plane.model import Role
from control_plane.service.calls import Call
from control_plane.service.tokens import NewToken
from tests.console_app import gateway, open_site, refusing

CONFIRM = "/deploy?environment=production&releases=shop%3Dv2+search%3Dv7"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        for app, tags in (("shop", ("v1", "v2")), ("search", ("v6", "v7"))):
            for tag in tags:
                await site.release(app, tag)
        await site.deploy("shop", "v1", "production")
        yield site


async def live(site, environment="production"):
    return [await site.live(app, environment) for app in ("shop", "search")]


async def test_releases_are_chosen_confirmed_and_live_at_one_revision(site):
    assert 'href="/deploy">Deploy together<' in await site.page("/apps")
    page = await site.page("/deploy?environment=production&step=look")
    assert re.findall(r'<label for="r-[^"]+">([^<]+)</label></td><td data-label="Live now">(.*?)</td>', page) == [
        ("search", '<span class="sub">nothing</span>'),
        ("shop", "<code>v1</code>"),
    ]
    # What a browser sends of that form; what is left as it is is empty.
    chosen = {"environment": "production", "release.search": "v7", "release.shop": "v2", "step": "confirm"}
    led = await site.http.get("/deploy", params=chosen)
    page = await site.page(led.headers["location"])
    assert re.findall(r'<span>(\w+)</span> <code class="from">(\w+)</code>.*?<code class="to">(\w+)<', page) == [
        ("search", "nothing", "v7"),
        ("shop", "v1", "v2"),
    ]
    assert 'href="/apps/shop/compare?from=v1&to=v2"' in page
    assert await live(site) == ["v1", ""]
    done = await site.send("/deploy", form=led.headers["location"], reason="one contract")
    assert (done.status_code, await live(site)) == (303, ["v2", "v7"])
    page = await site.page(done.headers["location"])
    assert "2 apps changed in production, all at revision 2" in page
    assert "one contract" in page
    assert "one contract" in await site.page("/apps/search/environments/production")


async def test_the_choice_stays_while_another_environment_is_looked_at(site):
    page = await site.page("/deploy?environment=staging&release.shop=v2&release.search=&step=look")
    assert re.findall(r"<option selected>([^<]+)<", page) == ["staging", "v2"]
    page = await site.page(f"{CONFIRM}&step=look")
    assert re.findall(r"<option selected>([^<]+)<", page) == ["production", "v7", "v2"]


async def test_one_that_is_live_already_is_said_and_stays(site):
    await site.deploy("search", "v7", "production")
    page = await site.page(CONFIRM)
    assert re.search(r'<code class="to">v7</code> <span class="sub">is live already<', page)
    assert "Deploy 1 app to production" in page
    done = await site.send("/deploy", form=CONFIRM)
    assert done.headers["location"] == "/deploy/production/3"
    assert "1 app changed in production, at revision 3" in await site.page("/deploy/production/3")
    assert "nothing would change" in await site.page(CONFIRM)
    same = await site.send("/deploy", form=CONFIRM)
    assert "Nothing changed" in await site.page(same.headers["location"])


async def test_what_somebody_else_changed_meanwhile_is_told_and_decided_again(site):
    form = await site.hidden(CONFIRM)
    assert form["expected_revision"] == "1 0"
    await site.deploy("search", "v6", "production")
    refused = await site.http.post("/deploy", data=form | {"reason": "because I say so"})
    assert refused.status_code == 409
    assert "App &#39;search&#39; in &#39;production&#39; is at revision 2, not unbound" in refused.text
    assert 'value="because I say so"' in refused.text
    assert '<code class="from">v6</code>' in refused.text
    assert 'name="expected_revision" value="1 2"' in refused.text
    assert await live(site) == ["v1", "v6"]
    for wrong in ("1", "1 2 3", "1 x"):
        refused = await site.http.post("/deploy", data=form | {"expected_revision": wrong})
        assert refused.status_code == 400
    assert await live(site) == ["v1", "v6"]


async def test_a_form_sent_twice_acts_once_and_without_the_secret_not_at_all(site):
    form = await site.hidden(CONFIRM)
    answers = [await site.http.post("/deploy", data=form) for _ in range(2)]
    assert [answer.headers["location"] for answer in answers] == ["/deploy/production/2"] * 2
    form = await site.hidden("/deploy?environment=staging&releases=shop%3Dv2+search%3Dv7")
    site.http.cookies.clear()
    refused = await site.http.post("/deploy", data=form | {"reason": "kept"})
    assert (refused.status_code, 'value="kept"' in refused.text, await live(site, "staging")) == (403, True, ["", ""])


async def test_a_release_that_gateways_reject_changes_nothing_says_which_and_may_be_forced(site):
    async with refusing(site, "search", "production"):
        refused = await site.send("/deploy", form=CONFIRM)
        assert refused.status_code == 412
        assert "Release v7 of search was rejected" in refused.text
        assert await live(site) == ["v1", ""]
        forced = await site.send("/deploy", form=CONFIRM, force="yes")
    assert await live(site) == ["v2", "v7"]
    assert "FORCED" in await site.page(forced.headers["location"])


async def test_a_rollout_is_told_as_it_happens_until_the_last_gateway(site):
    watching, connected = gateway(site)
    async with watching as watcher:
        with connected(watcher) as session:
            done = await site.send("/deploy", form=CONFIRM, force="yes")
            where = done.headers["location"]
            assert "0 of 1" in await site.page(where)
            stream = asyncio.create_task(site.http.get(f"{where}/rollout"))
            asyncio.get_running_loop().call_later(0.3, site.parts.gateways.applied, session, site.parts.hub.revision, [])
            events = (await stream).text.split("\n\n")
    assert [event.split("\n")[0] for event in events if event] == ["event: rollout", "event: rollout", "event: end"]
    assert "serves all 2 releases at revision 2, the last one after" in events[1]


async def test_what_was_replaced_since_is_said(site):
    await site.send("/deploy", form=CONFIRM)
    await site.deploy("shop", "v1", "production")
    page = await site.page("/deploy/production/2")
    assert "1 app changed" in page
    assert 'environments/production">shop<' not in page
    await site.deploy("search", "v6", "production")
    assert "Nothing in production is of revision 2 any more" in await site.page("/deploy/production/2")
    assert (await site.http.get("/deploy/production/2/rollout")).text.startswith("event: end")
    await site.page("/deploy/production/latest", 400)


async def test_the_lines_to_copy_ask_for_the_same(site):
    page = await site.page(CONFIRM)
    cli, grpcurl = (html.unescape(line) for line in re.findall(r"<pre[^>]*><code[^>]*>(.*)</code>", page))
    assert shlex.split(cli) == ["pointsman", "deploy", "shop=v2", "search=v7", "--to", "production"]
    assert shlex.split(grpcurl)[-1] == "pointsman.v1.DeploymentService/DeployMany"
    assert json.loads(shlex.split(grpcurl)[3])["targets"] == [
        {"app": "shop", "environment": "production", "release": "v2", "expected_revision": 1},
        {"app": "search", "environment": "production", "release": "v7", "expected_revision": 0},
    ]
    # Of one alone the command says what is expected.
    page = await site.page("/deploy?environment=production&releases=shop%3Dv2")
    assert "pointsman deploy shop=v2 --to production --expected-revision 1<" in page


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("environment=production&release.shop=&step=confirm", "none is chosen; choose a release of one app or more"),
        ("environment=production&releases=shop", "'shop' is no APP=TAG"),
        ("environment=production&releases=shop%3Dv1+shop%3Dv2", "names its app twice"),
        ("environment=production&releases=Shop%3Dv1", "'Shop' is not allowed"),
    ],
)
async def test_what_cannot_be_meant_is_told_where_it_is_chosen(site, query, told):
    page = await site.page(f"/deploy?{query}", 400)
    assert told in page
    assert "Continue" in page


async def test_a_release_that_is_not_there_is_told_and_the_rest_of_the_choice_stays(site):
    page = await site.page("/deploy?environment=production&releases=shop%3Dv9+search%3Dv7", 404)
    assert "App 'shop' has no release 'v9'" in page
    assert re.findall(r"<option selected>([^<]+)<", page) == ["production", "v7", "v9"]
    assert "There is no app 'nope'" in await site.page("/deploy?environment=production&releases=nope%3Dv1", 404)
    await site.page("/deploy?environment=nowhere&releases=shop%3Dv1", 404)


async def test_where_there_is_nothing_to_deploy_together_the_page_says_what_to_do(tmp_path):
    async with open_site(tmp_path) as site:
        assert 'href="/apps#create">create an app</a>' in await site.page("/deploy")
        for app in ("shop", "search"):
            await site.draft(app, "one")
        page = await site.page("/deploy")
        assert "No app has a release yet" in page
        assert 'href="/apps/search/new-release"' in page
        await site.release("shop", "v1")
        page = await site.page("/deploy")
        assert "Only shop has a release" in page
        assert 'href="/apps/shop/deploy?environment=staging">Deploy shop alone<' in page
        assert 'href="/apps/search/new-release"' in page


async def test_who_may_not_deploy_sees_why(site):
    form = await site.hidden(CONFIRM)
    await site.parts.tokens.create(NewToken(name="ann", role=Role.ADMIN), Call(actor="test"))
    secrets = {}
    for name, wanted in {
        "viewer": {"role": Role.VIEWER},
        "limited": {"role": Role.DEPLOYER, "environments": ("staging",)},
        "of-one": {"role": Role.DEPLOYER, "apps": ("shop",)},
        "deployer": {"role": Role.DEPLOYER},
    }.items():
        _, secrets[name] = await site.parts.tokens.create(NewToken(name=name, **wanted), Call(actor="test"))
    await site.parts.hub.refresh()

    await site.send("/sign-in", token=secrets["viewer"])
    page = await site.page("/deploy")
    assert "DeployMany takes a token of the role DEPLOYER or ADMIN; this one has VIEWER" in page
    assert "Continue" not in page
    await site.page(CONFIRM, 403)
    assert (await site.http.post("/deploy", data=form)).status_code == 403

    await site.send("/sign-in", token=secrets["limited"])
    assert re.findall(r"<option[^>]*>(\w+)</option></select></div>", await site.page("/deploy")) == ["staging"]
    assert "it is for staging" in await site.page(CONFIRM, 403)
    for page in ("/deploy/production/1", "/deploy/production/1/rollout"):
        assert "it is for staging" in await site.page(page, 403)
    await site.send("/sign-in", token=secrets["of-one"])
    for page in ("/deploy", "/deploy/production/1", "/deploy/production/1/rollout"):
        assert "it is for shop" in await site.page(page, 403)
    assert await live(site) == ["v1", ""]

    await site.send("/sign-in", token=secrets["deployer"])
    assert (await site.send("/deploy", form=CONFIRM)).status_code == 303
    assert await live(site) == ["v2", "v7"]
