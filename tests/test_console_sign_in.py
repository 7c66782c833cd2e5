"""The console asks for a token once there are any, and lets each do there what it may do over gRPC."""

from __future__ import annotations

import pytest

from control_plane.model import Role
from control_plane.service.calls import Call
from control_plane.service.tokens import NewToken
from tests.console_app import open_site

ADMIN = NewToken(name="ann", role=Role.ADMIN)


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        await site.release("shop", "v1")
        await site.release("other", "v1")
        yield site


async def token(site, **wanted):
    """A token and its secret; the hub knows it."""
    made, secret = await site.parts.tokens.create(NewToken(**wanted), Call(actor="test"))
    return made, secret


@pytest.fixture
async def admin(site):
    return await token(site, name="ann", role=Role.ADMIN)


async def sign_in(site, secret, **fields):
    return await site.send("/sign-in", token=secret, **fields)


async def test_without_tokens_nobody_is_asked(site):
    assert "shop" in await site.page("/apps")
    assert (await site.http.get("/sign-in")).headers["location"] == "/apps"
    assert (await site.http.get("/metrics")).status_code == 200


async def test_every_page_asks_and_leads_back(site, admin):
    for path in ("/apps", "/apps/shop/releases", "/gateways", "/apps/shop/draft", "/apps/shop/environments?x=1"):
        asked = await site.http.get(path)
        assert (asked.status_code, asked.headers["location"].startswith("/sign-in?next=%2F")) == (303, True), path
    for path in ("/metrics", "/nothing"):
        answer = await site.http.get(path)
        assert answer.status_code == (401 if path == "/metrics" else 404)
    page = await site.page("/sign-in?next=%2Fapps%2Fshop%2Freleases")
    assert "anonymous" not in page
    assert 'href="/tokens"' not in page
    assert 'value="/apps/shop/releases"' in page
    made = await sign_in(site, admin[1], next="/apps/shop/releases")
    assert (made.status_code, made.headers["location"]) == (303, "/apps/shop/releases")
    cookie = made.headers["set-cookie"]
    assert ("HttpOnly" in cookie, "SameSite=strict" in cookie) == (True, True)
    assert f"ann (token {admin[0].token_id})" in await site.page("/apps/shop/releases")
    assert (await site.http.get("/metrics", headers={"authorization": f"Bearer {admin[1]}"})).status_code == 200


async def test_what_is_no_token_is_refused_and_not_shown_again(site, admin):
    refused = await sign_in(site, "pm_wrong")
    assert refused.status_code == 401
    assert "unknown, expired or revoked" in refused.text
    assert "pm_wrong" not in refused.text
    assert "pointsman_token" not in refused.headers.get("set-cookie", "")
    forged = await site.http.post("/sign-in", data={"token": admin[1]})
    assert (forged.status_code, "pointsman_token" in forged.headers.get("set-cookie", "")) == (403, False)


@pytest.mark.parametrize("where", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/sign-out"])
async def test_nobody_is_led_elsewhere(site, admin, where):
    assert (await sign_in(site, admin[1], next=where)).headers["location"] == "/apps"


async def test_signing_out_and_a_revoked_token_end_it(site, admin):
    await sign_in(site, admin[1])
    out = await site.send("/sign-out", form="/apps")
    assert out.headers["location"] == "/sign-in"
    assert (await site.http.get("/apps")).status_code == 303
    await sign_in(site, admin[1])
    assert (await site.http.get("/apps")).status_code == 200
    fields = await site.hidden("/apps")
    await site.parts.tokens.revoke(admin[0].token_id, Call(actor="test"))
    assert (await site.http.get("/apps")).status_code == 303
    late = await site.http.post("/apps", data=fields | {"app": "late"})
    assert late.status_code == 401
    assert "late" not in {found.app for found in (await site.store.read(lambda tx: tx.apps(after="", limit=9)))}


async def test_a_role_may_here_what_it_may_over_grpc(site, admin):
    for role, creates, deploys in ((Role.VIEWER, 403, 403), (Role.DEVELOPER, 303, 403), (Role.DEPLOYER, 403, 303), (Role.ADMIN, 303, 303)):
        _, secret = await token(site, name=role.value, role=role)
        await sign_in(site, secret)
        made = await site.send("/apps", app=f"by-{role.value.lower()}")
        assert made.status_code == creates, (role, made.text)
        live = await site.send(
            "/apps/shop/deploy", form="/apps/shop/deploy?release=v1&environment=staging", release="v1", environment="staging"
        )
        assert live.status_code == deploys, (role, live.text)
        assert (role.value in live.text) == (deploys == 403)
    for role in (Role.TRIGGER, Role.GATEWAY):
        _, secret = await token(site, name=role.value, role=role)
        await sign_in(site, secret)
        assert "it takes" in await site.page("/apps", 403) or "takes a token of the role" in await site.page("/apps", 403)
    history = await site.parts.deployments.binding("shop", "staging")
    assert history.deployment.actor.startswith("DEPLOYER (token ")


async def test_limits_hold_here_too(site, admin):
    _, secret = await token(site, name="limited", role=Role.DEPLOYER, apps=("shop",), environments=("staging",))
    made = await sign_in(site, secret)
    assert made.headers["location"] == "/apps/shop/releases"
    await site.page("/apps/shop/releases")
    assert "it is for shop" in await site.page("/apps", 403)
    await site.page("/apps/other/releases", 403)
    await site.page("/apps/shop/environments/production", 403)
    await site.page("/apps/shop/environments/staging")
    denied = await site.send(
        "/apps/shop/deploy", form="/apps/shop/deploy?release=v1&environment=production", release="v1", environment="production"
    )
    assert denied.status_code == 403
    assert await site.live("shop", "production") == ""
