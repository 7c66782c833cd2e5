"""The console in a real Chromium, over real servers: the whole workflow, without scripts, accessible, nothing from elsewhere.

With POINTSMAN_SCREENSHOTS=1 the pictures in tests/screenshots/ are taken anew.
"""

from __future__ import annotations

import json
import re
import shlex
from datetime import datetime, timedelta

import pytest
from playwright.async_api import expect

from control_plane.cli.samples import sample_text
from tests.console_browser import DESCRIPTIONS, accessible, looked_over, picture, shown, with_releases
from tests.simulated_gateway import SimulatedGateway

__all__ = ["shown"]


async def test_the_whole_workflow_from_the_first_page(shown):
    async with shown.page() as page:
        await page.goto("/")
        await page.get_by_label("Name").fill("walk")
        await page.get_by_role("button", name="Create App").click()
        await page.get_by_role("link", name="YAML", exact=True).click()
        await page.get_by_role("textbox", name="Draft").fill(sample_text())
        await page.get_by_role("button", name="Save draft").click()
        await expect(page.get_by_role("status")).to_contain_text("Saved as version 1")

        for tag in ("v1.0.0", "v1.1.0"):
            await page.get_by_role("link", name="Create Release").first.click()
            dialog = page.get_by_role("dialog", name="Create Release")
            await expect(dialog.get_by_role("button", name="Create Release")).to_be_visible()
            if tag == "v1.1.0":
                await dialog.get_by_label("Release Tag").press_sequentially("v1.0.0")
                await expect(dialog.get_by_text("There is a release v1.0.0 already")).to_be_visible()
            await dialog.get_by_label("Release Tag").fill(tag)
            await expect(dialog.get_by_text(f"{tag} is free.")).to_be_visible()
            await dialog.get_by_label("Deploy after release").check()
            await dialog.get_by_label("Environment").select_option("staging")
            await dialog.get_by_role("button", name="Release & Deploy").click()
            await expect(page.get_by_role("status")).to_contain_text(f"{tag} is live in staging")
            await expect(page.get_by_text("2 of 2 gateways serve")).to_be_visible()
            await expect(page.get_by_text(re.compile(r"the last one after \d"))).to_be_visible()
            await page.get_by_role("link", name="Promote").click()
            await page.get_by_role("button", name="Continue").click()
            await page.get_by_label("Reason").fill("verified on staging")
            await page.get_by_role("button", name=f"Promote {tag} to production").click()
            await expect(page.get_by_role("status")).to_contain_text(f"{tag} is live in production")
            await page.goto("/apps/walk/draft")
            await page.get_by_role("textbox", name="Draft").fill(sample_text().replace("Hello", "Good day"))
            await page.get_by_role("button", name="Save draft").click()

        await page.goto("/apps/walk/releases")
        await page.get_by_label("Actions for v1.1.0").click()
        await page.get_by_role("link", name="Rollback to Previous in production").click()
        await page.get_by_role("button", name="Roll back to v1.0.0").click()
        await expect(page.get_by_role("status")).to_contain_text("v1.0.0 is live in production")
    assert (await shown.plane.binding("walk")).release == "v1.0.0"


async def test_deploy_and_roll_back_without_scripts(shown):
    await with_releases(shown, "plain", "v1", "v2")
    async with shown.page(java_script_enabled=False) as page:
        for tag in ("v1", "v2"):
            await page.goto(f"/apps/plain/releases/{tag}")
            await page.get_by_role("link", name="Deploy to Environment").click()
            await page.get_by_label("Environment").select_option("production")
            await page.get_by_role("button", name="Continue").click()
            await page.get_by_role("button", name=f"Deploy {tag} to production").click()
            await expect(page.get_by_text("2 of 2 gateways serve")).to_be_visible()
        await page.get_by_role("link", name="Rollback to Previous").click()
        await page.get_by_role("button", name="Roll back to v1").click()
        await expect(page.get_by_role("status")).to_contain_text("v1 is live in production")
    assert (await shown.plane.binding("plain")).release == "v1"


async def test_several_apps_are_deployed_together_by_keyboard_and_without_scripts(shown, tmp_path):
    for app in ("basket", "checkout"):
        await with_releases(shown, app, "v1", "v2")
    await shown.plane.deploy("basket", "v1", "production")
    async with shown.page(java_script_enabled=False) as page:
        await page.goto("/apps")
        await page.get_by_role("link", name="Deploy together").click()
        await page.get_by_label("Environment").select_option("production")
        await page.get_by_label("basket").focus()
        await page.keyboard.type("v2")
        await page.get_by_role("button", name="Show what is live there").click()
        await expect(page.get_by_label("basket")).to_have_value("v2")
        await page.get_by_label("checkout").select_option("v1")
        await page.get_by_role("button", name="Continue").press("Enter")
        await expect(page.get_by_text("basket v1 → v2")).to_be_visible()
        await expect(page.get_by_text("checkout nothing → v1")).to_be_visible()
        await page.get_by_label("Reason").fill("one contract")
        await page.get_by_role("button", name="Deploy 2 apps to production").press("Enter")
        await expect(page.get_by_text("2 of 2 gateways serve all 2 releases")).to_be_visible()
        await picture(page, tmp_path, "together-done-light")
    bindings = [await shown.plane.binding(app) for app in ("basket", "checkout")]
    assert [binding.release for binding in bindings] == ["v2", "v1"]
    assert bindings[0].revision == bindings[1].revision


async def test_a_rollout_of_several_is_followed_until_the_last_gateway_serves_all(shown):
    for app in ("left", "right"):
        await with_releases(shown, app, "v1")
    async with SimulatedGateway("slow-one", apply=False).connected(shown.grpc) as gateway, shown.page() as page:
        await page.goto("/deploy?environment=staging&releases=left%3Dv1+right%3Dv1")
        await expect(page.get_by_label("CLI", exact=True)).to_contain_text("pointsman deploy left=v1 right=v1 --to staging")
        await page.get_by_role("button", name="Deploy 2 apps to staging").click()
        await expect(page.get_by_text("2 of 3 gateways serve all 2 releases")).to_be_visible()
        await accessible(page)
        gateway.apply = True
        await expect(page.get_by_text("3 of 3 gateways serve all 2 releases")).to_be_visible(timeout=10_000)
        await page.set_viewport_size({"width": 390, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await accessible(page)


async def test_a_rollout_is_followed_until_the_last_gateway_serves_it(shown, tmp_path):
    await with_releases(shown, "slow", "v1")
    async with SimulatedGateway("slow-one", apply=False).connected(shown.grpc) as gateway, shown.page() as page:
        await page.goto("/apps/slow/deploy?release=v1&environment=staging")
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_text("2 of 3 gateways serve")).to_be_visible()
        await expect(page.get_by_text("1 not yet; they catch up by themselves")).to_be_visible()
        await accessible(page)
        await picture(page, tmp_path, "rollout-light")
        # It answers the next sign of life, within 5 s.
        gateway.apply = True
        await expect(page.get_by_text("3 of 3 gateways serve")).to_be_visible(timeout=10_000)
        await expect(page.get_by_text(re.compile(r"the last one after \d"))).to_be_visible()
        await expect(page.get_by_text("not yet")).to_be_hidden()


async def test_a_rollout_that_cannot_be_followed_any_more_says_so(shown):
    await with_releases(shown, "cut", "v1")
    async with SimulatedGateway("cut-off", apply=False).connected(shown.grpc), shown.page() as page:
        await page.route("**/rollout", lambda route: route.abort())
        await page.goto("/apps/cut/deploy?release=v1&environment=staging")
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_text("The connection to the console broke")).to_be_visible()
        await page.unroute("**/rollout")
        await expect(page.get_by_text("The connection to the console broke")).to_be_hidden(timeout=10_000)
        await expect(page.get_by_text("2 of 3 gateways serve")).to_be_visible()
    shown.complaints[:] = [complaint for complaint in shown.complaints if "ERR_FAILED" not in complaint]


async def test_back_from_where_a_refused_form_led_is_its_page(shown):
    await with_releases(shown, "back", "v1", "v2")
    async with shown.page() as page:
        await page.goto("/apps/back/deploy?release=v1&environment=staging")
        await shown.plane.deploy("back", "v2", "staging")
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_role("alert")).to_contain_text("someone else changed it")
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_role("status")).to_contain_text("v1 is live in staging")
        await page.go_back()
        await expect(page.get_by_text("v1 is live in staging already: nothing would change")).to_be_visible()
    shown.complaints[:] = [complaint for complaint in shown.complaints if "409" not in complaint]


async def test_a_release_that_a_gateway_refuses_is_told_and_may_be_forced(shown):
    await with_releases(shown, "bad", "v1")
    async with SimulatedGateway("picky", refuse=lambda _: "secret KEY is missing").connected(shown.grpc), shown.page() as page:
        await page.goto("/apps/bad/deploy?release=v1&environment=staging")
        await page.get_by_label("Reason").fill("urgent")
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_role("alert")).to_contain_text("secret KEY is missing")
        await accessible(page)
        assert await page.get_by_label("Reason").input_value() == "urgent"
        await page.get_by_label("Do it although gateways refuse it").check()
        await page.get_by_role("button", name="Deploy v1 to staging").click()
        await expect(page.get_by_role("status")).to_contain_text("v1 is live in staging")
        await expect(page.get_by_text("FORCED")).to_be_visible()
    # The browser notes every answer that is a refusal.
    shown.complaints[:] = [complaint for complaint in shown.complaints if "412" not in complaint]


async def test_the_dialog_and_the_menus_are_used_by_keyboard_alone(shown):
    await with_releases(shown, "keys", "v1")
    async with shown.page() as page:
        await page.goto("/apps/keys/releases")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.get_by_label("Actions for v1").focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("link", name="Deploy to Environment")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.get_by_label("Actions for v1")).to_be_focused()
        await page.get_by_role("link", name="Create Release").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog").get_by_label("Release Tag")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("link", name="Create Release")).to_be_focused()
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_lines_for_a_terminal_say_the_reason_and_are_copied_without_a_clipboard_of_the_browser(shown):
    await with_releases(shown, "lines", "v1")
    async with shown.page() as page:
        # As for a page by http from another machine.
        await page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        await page.goto("/apps/lines/deploy?release=v1&environment=staging")
        cli, grpcurl = page.get_by_label("CLI", exact=True), page.get_by_label("grpcurl", exact=True)
        await expect(cli).not_to_contain_text("--reason")
        reason = """it's "urgent" {reason}"""
        await page.get_by_label("Reason").fill(reason)
        words = shlex.split(await cli.inner_text())
        assert words[words.index("--reason") + 1] == reason
        assert words[-2:] == ["--server", shown.grpc]
        assert json.loads(shlex.split(await grpcurl.inner_text())[3])["reason"] == reason
        await page.get_by_role("button", name="Copy").first.click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        await page.get_by_label("Reason").fill("")
        await page.get_by_label("Reason").press("Control+v")
        assert shlex.split(await page.get_by_label("Reason").input_value()) == words


async def test_a_time_is_told_where_the_reader_is_too(shown):
    await with_releases(shown, "times", "v1")
    async with shown.page(timezone_id="Asia/Tokyo", locale="en-GB") as page:
        await page.goto("/apps/times/releases")
        time = page.locator("time").first
        await time.hover()
        title = await time.get_attribute("title") or ""
    found = re.fullmatch(r"(\S+ \S+) UTC \((.+) here\)", title)
    assert found, title
    here, there = datetime.strptime(found[2], "%d/%m/%Y, %H:%M:%S"), datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 -- in words
    assert here - there == timedelta(hours=9)


async def test_two_people_edit_the_draft(shown):
    await with_releases(shown, "both", "v1")
    async with shown.page() as mine, shown.page() as theirs:
        for page, mark in ((mine, "mine"), (theirs, "theirs")):
            await page.goto("/apps/both/draft")
            text = page.get_by_role("textbox", name="Draft")
            await text.fill((await text.input_value()).replace("next", mark))
            await page.get_by_role("link", name="Create Release").click()
            await expect(page.get_by_text("is not saved, and would not be in the release")).to_be_visible()
            await page.keyboard.press("Escape")
        await theirs.get_by_role("button", name="Save draft").click()
        await expect(theirs.get_by_role("status")).to_contain_text("Saved as version 2")
        shown.complaints.clear()
        await mine.get_by_role("button", name="Save draft").click()
        await expect(mine.get_by_role("alert")).to_contain_text("someone else changed it")
        assert "mine" in await mine.get_by_role("textbox", name="Draft").input_value()
        await mine.get_by_role("button", name="Save draft").click()
        await expect(mine.get_by_role("status")).to_contain_text("Saved as version 3")
    # The browser notes every answer that is a refusal.
    assert all("409" in complaint for complaint in shown.complaints)
    shown.complaints.clear()


PAGES = {
    "apps": "/apps",
    "together": "/deploy?environment=staging&releases=support-chat%3Dv1.2.0+search%3Dv7&step=look",
    "together-confirm": "/deploy?environment=production&releases=support-chat%3Dv1.2.0+search%3Dv7",
    "releases": "/apps/support-chat/releases",
    "create-release": "/apps/support-chat/new-release",
    "snapshot": "/apps/support-chat/releases/v1.2.0",
    "compare": "/apps/support-chat/compare?from=v1.1.0&to=v1.2.0",
    "environments": "/apps/support-chat/environments",
    "environments-past": "/apps/support-chat/environments?as_of=0s",
    "environment": "/apps/support-chat/environments/staging",
    "deploy": "/apps/support-chat/deploy",
    "promote": "/apps/support-chat/promote?from=staging&to=production",
    "rollback": "/apps/support-chat/rollback?environment=staging",
    "draft": "/apps/support-chat/draft",
    "prune": "/apps/support-chat/prune?keep_newest=1&keep_deployed=1",
    "gateways": "/gateways",
    "audit": "/audit",
    "empty": "/apps/support-chat/releases?q=nothing",
}
# Also dark, and as on a phone.
KEPT_TWICE = ("releases", "promote", "environments-past", "together", "together-confirm")


@pytest.fixture(scope="module")
async def looks(shown):
    await with_releases(shown, "support-chat", *DESCRIPTIONS)
    await with_releases(shown, "search", "v6", "v7")
    await shown.plane.deploy("search", "v6", "production")
    for tag, environment, reason in (
        ("v1.0.0", "production", "go live"),
        ("v1.1.0", "production", "kinder"),
        ("v1.1.0", "staging", "try it"),
        ("v1.2.0", "staging", "try refunds"),
        ("2026-03-15-fix", "development", ""),
    ):
        await shown.plane.deploy("support-chat", tag, environment, reason=reason)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_accessible_small_and_fits_a_phone(shown, looks, tmp_path, name, scheme):
    # What is always at the window's end would stand amid the whole page.
    await looked_over(shown, PAGES[name], tmp_path, name, scheme, twice=name in KEPT_TWICE, whole=name != "together")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_what_opens_over_a_page_is_accessible(shown, looks, tmp_path, scheme):
    async with shown.page(color_scheme=scheme) as page:
        await page.goto(PAGES["releases"])
        await page.get_by_role("link", name="Create Release").click()
        await accessible(page)
        await picture(page, tmp_path, f"dialog-{scheme}")
        await page.keyboard.press("Escape")
        await page.get_by_label("Actions for v1.2.0").click()
        await accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_page_that_is_not_there_says_what_to_do(shown, looks, tmp_path, scheme):
    await looked_over(shown, "/apps/support-chta/releases", tmp_path, "not-found", scheme)
    async with shown.page() as page:
        await page.goto("/apps/support-chat/releases/v0.9.0")
        await page.get_by_role("link", name="To support-chat").click()
        await expect(page.get_by_role("heading", name="support-chat")).to_be_visible()
    assert all("404" in complaint for complaint in shown.complaints)
    shown.complaints.clear()


async def test_mistakes_in_the_draft_are_accessible_too(shown, looks, tmp_path):
    async with shown.page() as page:
        await page.goto("/apps/support-chat/draft")
        text = page.get_by_role("textbox", name="Draft")
        await text.fill((await text.input_value()).replace("pipeline: tell", "pipeline: tel"))
        await page.get_by_role("button", name="Check only").click()
        await expect(page.get_by_role("alert")).to_contain_text("Did you mean tell?")
        await accessible(page)
        await picture(page, tmp_path, "draft-mistakes-light")
        await page.get_by_role("link", name=re.compile("Line")).click()
        assert "pipeline: tel" in await page.evaluate("getSelection().toString()")
    shown.complaints[:] = [complaint for complaint in shown.complaints if "400" not in complaint]
