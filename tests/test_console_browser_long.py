"""Names, tags and reasons as long as they may be, and as many environments: every page still fits, on a desk and on a phone."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from pointsman.v1 import environments_pb2, releases_pb2
from tests.console_browser import accessible, picture, shown, with_releases
from tests.executions import ran, report

__all__ = ["shown"]

APP = "an-app-with-a-name-of-sixty-three-characters-which-is-the-limit"
PLACE = "an-environment-with-a-name-of-sixty-three-characters-all-in-all"
# Words that break, and a word that does not.
TAG = "a-tag-that-was-made-of-a-branch-and-a-commit-" + "5c2e9f7b" * 10 + "end"
REASON = "because " * 30 + "x" * 300
PAGES = (
    "/apps",
    f"/deploy?environment={PLACE}&step=look",
    f"/deploy?environment={PLACE}&releases={APP}%3Dv1+other%3Dv1",
    f"/apps/{APP}/releases",
    f"/apps/{APP}/new-release",
    f"/apps/{APP}/releases/{TAG}",
    f"/apps/{APP}/compare?from=v1&to={TAG}",
    f"/apps/{APP}/environments",
    f"/apps/{APP}/environments?as_of=0s",
    f"/apps/{APP}/environments/{PLACE}",
    f"/apps/{APP}/deploy",
    f"/apps/{APP}/deploy?release={TAG}&environment=production",
    f"/apps/{APP}/promote?from={PLACE}&to=production",
    f"/apps/{APP}/rollback?environment={PLACE}",
    f"/apps/{APP}/editor",
    f"/apps/{APP}/changes",
    f"/apps/{APP}/executions?errors=yes",
    f"/apps/{APP}/summary",
    f"/apps/{APP}/try?environment={PLACE}",
    f"/apps/{APP}/prune?keep_newest=1&keep_deployed=1",
    "/environments",
    f"/environments/{PLACE}",
    "/gateways",
    "/audit",
)


@pytest.fixture(scope="module")
async def long(shown):
    assert (len(APP), len(PLACE), len(TAG)) == (63, 63, 128)
    await with_releases(shown, APP, "v1")
    await with_releases(shown, "other", "v1")
    for name in (PLACE, *(f"customer-{number}-preview" for number in range(46))):
        await shown.plane.environments.CreateEnvironment(environments_pb2.CreateEnvironmentRequest(environment=name, description=REASON))
    await shown.plane.releases.CreateRelease(releases_pb2.CreateReleaseRequest(app=APP, tag=TAG, description=REASON))
    for tag, environment in (("v1", PLACE), (TAG, PLACE), (TAG, "staging")):
        await shown.plane.deploy(APP, tag, environment, reason=REASON)
    failed = ran(APP, TAG, environment=PLACE, outcome="FAILED", error_reason="STEP_FAILED", gateway_id="g" * 128)
    failed.error_message = f"Step 'reply' failed: {REASON}"
    await report(shown.plane, failed, gateway_id="g" * 128)


@pytest.mark.parametrize("path", PAGES)
async def test_everything_is_within_the_page(shown, long, path):
    async with shown.page() as page:
        await page.goto(path)
        for width in (1200, 390):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_fifty_environments_are_seen_at_a_glance(shown, long, tmp_path):
    """Those with something live first; the others take a line each."""
    async with shown.page() as page:
        await page.goto(f"/apps/{APP}/environments")
        await expect(page.locator(".card")).to_have_count(2)
        await expect(page.locator(".idle li")).to_have_count(48)
        assert await page.evaluate("document.documentElement.scrollHeight") < 2000
        await accessible(page)
        await picture(page, tmp_path, "environments-many-light")
        await page.get_by_role("link", name="Deploy to customer-7-preview").click()
        await expect(page.get_by_label("Environment")).to_have_value("customer-7-preview")
