"""Tokens in the console: for admins, shown once, ended everywhere."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from control_plane.model import RateLimit, Role
from control_plane.service.calls import Call, utc_now
from control_plane.service.paging import PageRequest
from control_plane.service.tokens import NewToken
from pointsman.tokens import token_id_of
from tests.console_app import open_site

SECRET = re.compile(r"<code>(pm_[a-z2-7_]+)</code>")
TEST = Call(actor="test")


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        yield site


async def make(site, **wanted):
    made = await site.parts.tokens.create(NewToken(**wanted), TEST)
    await site.parts.hub.refresh()
    return made


@pytest.fixture
async def admin(site):
    token, secret = await make(site, name="ann", role=Role.ADMIN)
    await site.send("/sign-in", token=secret)
    return token


async def stored(site):
    return {token.name: token for token in (await site.parts.tokens.list(PageRequest(size=500))).items}


async def test_the_first_one_is_an_admins_and_closes_the_door(site):
    page = await site.page("/tokens")
    assert "everybody who reaches this machine may do everything" in page
    assert re.findall(r'<option value="(\w+)"', page) == ["ADMIN"]
    refused = await site.send("/tokens", name="bo", role="VIEWER")
    assert (refused.status_code, "the first token is an ADMIN" in refused.text) == (400, True)
    made = await site.send("/tokens", name="ann", role="ADMIN")
    assert "sign in with it" in made.text
    await site.parts.hub.refresh()
    assert (await site.http.get("/tokens")).status_code == 303
    await site.send("/sign-in", token=SECRET.search(made.text)[1])
    page = await site.page("/tokens")
    assert len(re.findall(r'<option value="(\w+)"', page)) == len(Role)


async def test_it_is_made_with_all_its_limits_and_its_secret_shown_once(site, admin):
    form = await site.hidden("/tokens")
    fields = {
        "name": "ci <b>",
        "role": "TRIGGER",
        "apps": "shop, chat",
        "environments": "staging",
        "endpoints": "/where",
        "rate": "2.5",
        "burst": "7",
        "expires_in": "90d",
    }
    made = await site.http.post("/tokens", data=form | fields)
    secret = SECRET.search(made.text)[1]
    assert made.headers["cache-control"] == "no-store"
    token = (await stored(site))["ci <b>"]
    assert token.token_id == token_id_of(secret)
    assert (token.role, token.apps, token.environments, token.endpoints) == (Role.TRIGGER, ("shop", "chat"), ("staging",), ("where",))
    assert token.rate_limit == RateLimit(requests_per_second=2.5, burst=7)
    assert abs(token.expire_time - utc_now() - timedelta(days=90)) < timedelta(minutes=1)
    assert token.created_by == f"ann (token {admin.token_id})"
    again = await site.http.post("/tokens", data=form | fields)
    assert "This form was sent twice" in again.text
    assert len(await stored(site)) == 2
    page = await site.page("/tokens")
    assert secret not in page
    assert secret not in again.text
    for shown in ("apps shop, chat", "environment staging", "2.5 triggers a second to each gateway, 7 at once", "in 90 days", "TRIGGER"):
        assert shown in page


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ""}, "name"),
        ({"role": "KING"}, "'KING' is none of VIEWER"),
        ({"apps": "No!"}, "apps[0]"),
        ({"rate": "fast"}, "'fast' is not a number of triggers a second"),
        ({"rate": "0"}, "rate_limit.requests_per_second"),
        ({"burst": "3"}, "give those too"),
        ({"burst": "x"}, "'x' is not a whole number"),
        ({"expires_in": "soon"}, "'soon' is not a duration"),
        ({"expires_in": "999999999d"}, "is more than 36,500 days"),
        ({"expires_in": "1d", "made": "9" * 18}, "is no moment"),
    ],
)
async def test_mistakes_are_told_and_nothing_typed_is_lost(site, admin, fields, told):
    refused = await site.send("/tokens", **({"name": "bo", "role": "VIEWER", "endpoints": "kept"} | fields))
    assert refused.status_code == 400
    assert told in refused.text.replace("&#39;", "'")
    assert 'value="kept"' in refused.text
    assert len(await stored(site)) == 1


async def test_revoking_is_confirmed_and_says_who_knows(site, admin):
    token, _ = await make(site, name="bo", role=Role.VIEWER)
    where = f"/tokens/{token.token_id}"
    page = await site.page(where)
    assert "Revoke bo" in page
    assert "last one of an admin" not in page
    assert (await stored(site))["bo"].revoke_time is None
    done = await site.send(where)
    assert done.headers["location"] == where
    page = await site.page(where)
    assert "This control plane refuses it" in page
    assert "Revoke bo" not in page
    assert "REVOKED" in await site.page("/tokens")
    await site.page("/tokens/nonsense", 404)


async def test_the_own_and_the_last_one_are_told_before(site, admin):
    where = f"/tokens/{admin.token_id}"
    page = await site.page(where)
    assert "you will be signed out" in page
    assert "last one of an admin" in page
    assert (await site.send(where)).headers["location"] == "/sign-in"
    await site.parts.hub.refresh()
    assert (await site.http.get("/tokens")).status_code == 303


async def test_only_admins_see_and_change_them(site, admin):
    other, _ = await make(site, name="victim", role=Role.VIEWER)
    form = await site.hidden("/tokens")
    for role in (Role.VIEWER, Role.DEVELOPER, Role.DEPLOYER):
        _, secret = await make(site, name=role.value, role=role)
        await site.send("/sign-in", token=secret)
        page = await site.page("/tokens", 403)
        assert "takes a token of the role ADMIN" in page
        assert 'href="/tokens"' not in page
        await site.page(f"/tokens/{other.token_id}", 403)
        assert (await site.http.post("/tokens", data=form | {"name": "x", "role": "ADMIN"})).status_code == 403
        assert (await site.http.post(f"/tokens/{other.token_id}", data=form)).status_code == 403
    tokens = await stored(site)
    assert "x" not in tokens
    assert tokens["victim"].revoke_time is None


async def test_a_form_of_another_page_makes_and_ends_nothing(site, admin):
    for where, fields in (("/tokens", {"name": "x", "role": "ADMIN"}), (f"/tokens/{admin.token_id}", {})):
        forged = await site.http.post(where, data=fields | {"form_token": "0" * 64})
        assert forged.status_code == 403
        assert "pm_" not in forged.text
    tokens = await stored(site)
    assert set(tokens) == {"ann"}
    assert tokens["ann"].revoke_time is None
