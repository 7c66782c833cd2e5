"""What admins do now and then in the console: delete old releases, have gateways go elsewhere; and an execution that is tried again."""

import html
import json
import uuid

import pytest

from control_plane.model import Role
from control_plane.service.calls import Call
from control_plane.service.tokens import NewToken
from pointsman.errors import ReleaseNotFound
from tests.console_app import open_site
from tests.executions import ran

PRUNE = "/apps/shop/prune"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, "http://127.0.0.1:1") as site:
        for number in range(1, 7):
            await site.release("shop", f"v{number}")
        await site.deploy("shop", "v2", "production")
        yield site


async def gone(site):
    found = []
    for number in range(1, 7):
        try:
            await site.parts.releases.get("shop", f"v{number}", with_snapshot=False)
        except ReleaseNotFound:
            found.append(f"v{number}")
    return found


async def test_what_would_go_is_shown_first_and_then_goes(site):
    assert PRUNE in await site.page("/apps/shop/releases")
    nothing = await site.page(PRUNE)
    assert "Nothing would go" in nothing
    some = f"{PRUNE}?keep_newest=2&keep_deployed=1"
    shown = await site.page(some)
    assert [tag for tag in ("v1", "v2", "v3", "v4", "v5", "v6") if f"/releases/{tag}" in shown] == ["v1", "v3", "v4"]
    assert "pointsman --app shop release prune --keep-last 2 --keep-deployments 1 --yes" in shown
    assert await gone(site) == []
    done = await site.send(PRUNE, form=some)
    assert done.status_code == 303
    assert await gone(site) == ["v1", "v3", "v4"]
    assert "3 releases are deleted" in await site.page(done.headers["location"])
    assert "PruneReleases" in await site.page("/audit")


async def test_nothing_goes_that_the_page_did_not_name(site):
    fields = await site.hidden(f"{PRUNE}?keep_newest=2&keep_deployed=1")
    await site.deploy("shop", "v3", "production")
    refused = await site.http.post(PRUNE, data=fields)
    assert refused.status_code == 409
    assert "Other releases would go than the page named" in refused.text
    assert await gone(site) == []
    assert (await site.http.post(PRUNE, data=fields | {"form_token": "x"})).status_code == 403


@pytest.mark.parametrize("fields", [{"keep_newest": "0"}, {"keep_newest": "all"}, {"keep_deployed": "0"}, {"keep_newest": "9" * 30}])
async def test_numbers_that_make_no_sense_are_told(site, fields):
    query = "&".join(f"{name}={value}" for name, value in fields.items())
    assert next(iter(fields)) in await site.page(f"{PRUNE}?{query}", 400)
    sent = await site.send(PRUNE, form=f"{PRUNE}?keep_newest=2&keep_deployed=1", **fields)
    assert sent.status_code == 400
    assert await gone(site) == []


async def test_only_admins(site):
    await site.parts.tokens.create(NewToken(name="ann", role=Role.ADMIN), Call(actor="test"))
    _, secret = await site.parts.tokens.create(NewToken(name="bo", role=Role.DEPLOYER), Call(actor="test"))
    await site.send("/sign-in", token=secret)
    assert PRUNE not in await site.page("/apps/shop/releases")
    await site.page(PRUNE, 403)
    for where, fields in ((PRUNE, {"keep_newest": "1", "keep_deployed": "1"}), ("/gateways", {"percent": "50"})):
        assert (await site.send(where, form="/apps/shop/deploy", **fields)).status_code == 403
    assert await gone(site) == []


async def test_gateways_go_elsewhere_where_there_is_an_elsewhere(site, monkeypatch):
    assert "Rebalance" not in await site.page("/gateways")
    monkeypatch.setattr(type(site.parts.gateways), "has_elsewhere", True)
    assert "pointsman rebalance 50" in await site.page("/gateways")
    for percent in ("0", "101", "half", "9" * 17):
        refused = await site.send("/gateways", percent=percent)
        assert refused.status_code == 400, percent
        assert "percent" in refused.text
    done = await site.send("/gateways", percent="100")
    assert done.headers["location"] == "/gateways?moving=0"
    assert "0 gateways go to other replicas" in await site.page(done.headers["location"])
    assert "RebalanceGateways" in await site.page("/audit")


@pytest.mark.parametrize(
    ("captured", "again"),
    [('{"message": "hi & bye, \\"ann\\" ü"}', True), ("", False), ('{"message": "cut o', False), ('{"key": "[secret KEY]"}', False)],
)
async def test_an_execution_can_be_tried_again_when_its_input_is_on_record(site, captured, again):
    one = ran("shop", environment="production")
    one.input = captured
    await site.ran(one)
    page = await site.page(f"/apps/shop/executions/{one.execution_id}")
    assert ("Try it again" in page) == again
    # A link may be kept, and be followed whatever is on record.
    given = f"/apps/shop/try?environment=production&execution={one.execution_id}"
    assert (html.escape(given.partition("&")[2]) in page) == again
    tried = await site.page(given)
    text = html.unescape(tried.partition('<textarea id="json"')[2].partition(">")[2].partition("</textarea>")[0])
    assert json.loads(text) == (json.loads(captured) if again else {"message": ""})


async def test_an_execution_that_is_not_there_cannot_be_tried_again(site):
    await site.page(f"/apps/shop/try?execution={uuid.uuid4()}", 404)
    await site.page("/apps/shop/try?execution=one", 400)
