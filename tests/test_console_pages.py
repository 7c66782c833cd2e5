"""The console's pages: what they show, what their forms do, and what they refuse. No script runs here."""

from __future__ import annotations

import pytest

from tests.console_app import open_site


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        yield site


async def test_an_app_is_created_and_its_releases_are_listed_with_state_and_environments(site):
    assert "No app yet" in await site.page("/apps")
    made = await site.send("/apps", app="shop", description="The shop's chat")
    assert (made.status_code, made.headers["location"]) == (303, "/apps/shop/editor")
    assert "Nothing to release yet" in await site.page("/apps/shop/releases")
    for tag in ("v1", "v2", "v3"):
        await site.release("shop", tag, description=f"the one called {tag}")
    await site.deploy("shop", "v1", "staging")
    await site.deploy("shop", "v2", "staging")
    page = await site.page("/apps/shop/releases")
    assert [page.count(f">{state}<") for state in ("READY", "DEPLOYED", "SUPERSEDED")] == [1, 1, 1]
    assert 'href="/apps/shop/environments/staging">staging<' in page
    assert "The shop's chat" in await site.page("/apps")


async def test_a_release_is_created_from_the_draft_and_deployed_when_wished(site):
    await site.draft("shop", "one")
    created = await site.send("/apps/shop/releases", tag="v1", description="first", deploy_to="staging")
    assert (created.status_code, await site.live("shop", "staging")) == (303, "")
    assert "v1</strong> is created" in await site.page(created.headers["location"])
    await site.draft("shop", "two")
    created = await site.send("/apps/shop/releases", tag="v2", deploy="yes", deploy_to="staging")
    assert (created.status_code, await site.live("shop", "staging")) == (303, "v2")
    assert created.headers["location"].startswith("/apps/shop/environments/staging")


async def test_what_was_typed_is_still_there_when_a_release_is_refused(site):
    await site.release("shop", "v1")
    await site.draft("shop", "two")
    refused = await site.send("/apps/shop/releases", tag="v1", description="<kinder>", deploy="yes", deploy_to="production")
    assert refused.status_code == 409
    assert "exists with other content" in refused.text
    assert "&lt;kinder&gt;" in refused.text
    assert 'value="production" selected' in refused.text
    refused = await site.send("/apps/shop/releases", tag="-no-", description="kept")
    assert refused.status_code == 400
    assert "-no-" in refused.text
    assert "kept</textarea>" in refused.text


@pytest.mark.parametrize(("tag", "ok", "told"), [("v2", True, "v2 is free"), ("v1", False, "already"), ("a b", False, "not allowed")])
async def test_a_tag_is_checked_while_it_is_typed(site, tag, ok, told):
    await site.release("shop", "v1")
    answer = (await site.http.get("/apps/shop/check-tag", params={"tag": tag})).json()
    assert answer["ok"] is ok
    assert told in answer["message"]


async def test_releases_are_searched_and_paged(site):
    for number in range(30):
        await site.release("shop", f"v{number}", description="Kinder" if number == 3 else "")
    found = await site.page("/apps/shop/releases?q=kinder")
    assert found.count("Actions for") == 1
    first = await site.page("/apps/shop/releases")
    assert first.count("Actions for") == 25
    older = first.split("?page=")[1].split('"')[0]
    assert (await site.page(f"/apps/shop/releases?page={older}")).count("Actions for") == 5
    assert "No release matches" in await site.page("/apps/shop/releases?q=nothing-like-it")


async def test_a_snapshot_is_shown_and_downloaded(site):
    await site.release("shop", "v1")
    assert "pipeline: tell" in await site.page("/apps/shop/releases/v1")
    download = await site.http.get("/apps/shop/releases/v1?download=yes")
    assert download.headers["content-disposition"] == 'attachment; filename="shop-v1.yaml"'


async def test_a_release_or_app_that_is_not_there_is_a_page_that_says_what_to_do(site):
    await site.release("shop", "v1")
    assert "Did you mean v1?" in await site.page("/apps/shop/releases/v2", 404)
    assert "Did you mean shop?" in await site.page("/apps/shp/releases", 404)
    assert "There is no '/nothing' here." in await site.page("/nothing", 404)


async def test_a_form_without_the_secret_of_this_browser_changes_nothing_and_loses_nothing(site):
    form = await site.hidden("/apps") | {"app": "shop"}
    site.http.cookies.clear()
    refused = await site.http.post("/apps", data=form)
    assert refused.status_code == 403
    assert 'value="shop"' in refused.text
    assert "There is no app" in await site.page("/apps/shop/releases", 404)
    assert (await site.http.post("/apps", data={"app": "shop"})).status_code == 403


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"host": "evil.example"}]
)
async def test_a_form_from_elsewhere_changes_nothing(site, headers):
    form = await site.hidden("/apps") | {"app": "shop"}
    refused = await site.http.post("/apps", data=form, headers=headers)
    assert refused.status_code == 403
    assert "shop" not in {app.app for app in site.parts.hub.newer_than(0)}
    assert "There is no app" in await site.page("/apps/shop/releases", 404)


@pytest.mark.parametrize(
    ("host", "status"),
    [("console.example", 200), ("127.0.0.1:7480", 200), ("[::1]:7480", 200), ("a.localhost", 200), ("evil.example", 403)],
)
async def test_names_that_somebody_else_points_at_us_are_refused(site, host, status):
    assert (await site.http.get("/apps", headers={"host": host})).status_code == status


async def test_pages_allow_nothing_from_elsewhere_and_no_frame(site):
    response = await site.http.get("/apps")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-frame-options"] == "DENY"
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "<script>" not in response.text
    assert " style=" not in response.text


async def test_a_form_that_is_too_large_or_no_form_is_refused(site):
    assert (await site.http.post("/apps", content=b"a=" + b"x" * 70_000, headers=FORM_TYPE)).status_code == 413
    assert (await site.http.post("/apps", json={})).status_code == 400
    assert (await site.http.post("/apps", content=b"%ff=%ff&a=%ff", headers=FORM_TYPE)).status_code == 400


FORM_TYPE = {"content-type": "application/x-www-form-urlencoded"}
