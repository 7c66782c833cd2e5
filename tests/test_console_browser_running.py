"""The console's pages about what runs, in a real Chromium: accessible, small, light and dark, on a phone; the live view in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from datetime import timedelta

import pytest
from playwright.async_api import expect

from pointsman.v1 import apps_pb2, deployments_pb2
from pointsman.v1 import executions_pb2 as pb
from tests.clients import control_plane_client
from tests.console_browser import DESCRIPTIONS, accessible, looked_over, picture, shown, with_releases
from tests.eventually import eventually
from tests.executions import ran, report
from tests.processes import start_control_plane
from tests.sample_apps import marked

__all__ = ["shown"]

APP = "support-chat"
# What follows an event by more than this is not live.
LIVE_SECONDS = 0.3
PAGES = {
    "executions": f"/apps/{APP}/executions",
    "executions-failed": f"/apps/{APP}/executions?errors=yes&environment=production",
    "executions-none": f"/apps/{APP}/executions?release=v9",
    "execution": f"/apps/{APP}/executions/{{failed}}",
    "execution-refused": f"/apps/{APP}/executions/{{refused}}",
    "summary": f"/apps/{APP}/summary",
    "report": f"/apps/{APP}/reports/{{deployment}}",
    "try": f"/apps/{APP}/try?environment=production",
    "try-bounds": f"/apps/{APP}/try?environment=production&release=v1.1.0&min_revision=1",
    "shared-environments": "/environments",
    "environment-delete": "/environments/production",
    "tokens-none": "/tokens",
}
LONG = ("executions", "executions-failed", "report")
KEPT_TWICE = ("try", "execution", "summary", "executions")
STEPS = (
    ("understand", "classify", "inference", 0.0, 0.31),
    ("look up", "order", "tool_call", 0.32, 0.1),
    ("look up", "history", "tool_call", 0.32, 0.2),
)


def answered(release: str, ago: float, chance: random.Random, *, worse: bool) -> pb.Execution:
    """As the sample runs: two stages of steps, then an answer; a worse release is slower and fails more often."""
    slow = chance.uniform(1.6, 2.6) if worse else chance.uniform(0.7, 1.4)
    failed = chance.random() < (0.14 if worse else 0.01)
    one = ran(APP, release, ago=ago, seconds=slow, endpoint="chat", outcome="FAILED" if failed else "SUCCEEDED", gateway_id="east")
    del one.steps[:]
    last = ("answer", "reply", "inference", 0.53, 0.46)
    for stage, name, kind, begins, lasts in (*STEPS, last):
        ok = not (failed and name == "reply")
        step = one.steps.add(stage=stage, name=name, kind=kind, attempts=1 if ok else 3)
        step.outcome = pb.Execution.StepExecution.SUCCEEDED if ok else pb.Execution.StepExecution.FAILED
        step.start_time.FromMicroseconds(one.start_time.ToMicroseconds() + int(begins * slow * 1e6))
        step.duration.FromTimedelta(timedelta(seconds=lasts * slow))
        if not ok:
            step.error = "models.example answered 503 three times"
    if failed:
        one.error_reason, one.error_message = "STEP_FAILED", "Step 'reply' failed: models.example answered 503 three times."
        one.input = '{"message": "Where is order 1234?"}'
    return one


@pytest.fixture(scope="module")
async def looks(shown):
    """Executions of the last quarter of an hour, in which a release was replaced by a worse one; the ids that paths name."""
    await with_releases(shown, APP, *DESCRIPTIONS)
    for tag, environment in (("v1.0.0", "staging"), ("v1.1.0", "production"), ("v1.2.0", "production")):
        await shown.plane.deploy(APP, tag, environment)
    request = deployments_pb2.ListDeploymentsRequest(app=APP, environment="production")
    deployment = (await shown.plane.deployments.ListDeployments(request)).deployments[0]
    chance = random.Random(7)
    found = [answered("v1.1.0", ago, chance, worse=False) for ago in range(850, 400, -2)]
    found += [answered("v1.2.0", ago, chance, worse=True) for ago in range(400, 1, -2)]
    for one in found[-200:]:
        one.revision = deployment.revision
    await report(shown.plane, *found, dropped=12)
    refused = ran(APP, "", ago=2, seconds=0.0004, endpoint="chatt", outcome="REFUSED", error_reason="ENDPOINT_NOT_FOUND")
    refused.error_message = "There is no endpoint 'chatt' in release 'v1.2.0'. Did you mean 'chat'?"
    del refused.steps[:]
    await report(shown.plane, refused, gateway_id="west")
    failed = next(one for one in reversed(found) if one.error_reason)
    return {"failed": failed.execution_id, "refused": refused.execution_id, "deployment": deployment.deployment_id}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_accessible_small_and_fits_a_phone(shown, looks, tmp_path, name, scheme):
    path = PAGES[name].format(**looks)
    await looked_over(shown, path, tmp_path, name, scheme, twice=name in KEPT_TWICE, whole=name not in LONG)


async def test_the_live_view_follows_with_its_filters_in_time_and_stays_bounded(shown, looks, tmp_path):
    async with shown.page() as page:
        await page.goto(f"/apps/{APP}/executions")
        await page.get_by_label("Outcome").select_option("FAILED")
        await page.get_by_role("button", name="Filter").click()
        await page.get_by_role("link", name="Follow live").click()
        await expect(page.get_by_text("Following. New executions appear on top.")).to_be_visible()
        rows = page.locator("tbody tr")
        took = []
        for _ in range(5):
            new = ran(APP, outcome="FAILED")
            told = page.wait_for_selector(f"#e-{new.execution_id}", state="attached")
            started = time.monotonic()
            await report(shown.plane, ran(APP), new)
            await told
            took.append(time.monotonic() - started)
            assert await rows.first.get_attribute("id") == f"e-{new.execution_id}"
        assert sorted(took)[2] < LIVE_SECONDS, took
        assert await page.get_by_role("table").get_by_text("SUCCEEDED").count() == 0
        for _ in range(6):
            await report(shown.plane, *(ran(APP, outcome="FAILED") for _ in range(60)))
        await expect(page.get_by_text("more came too quickly to be shown")).to_be_visible()
        assert await rows.count() <= 200
        await accessible(page)
        await picture(page, tmp_path, "executions-live-light", whole=False)
        await page.get_by_role("link", name="Stop following").click()
        await expect(page.get_by_role("link", name="Follow live")).to_be_visible()


async def test_a_live_view_says_that_nothing_came_yet_and_that_it_lost_the_connection(shown):
    await with_releases(shown, "quiet", "v1")
    async with shown.page() as page:
        await page.goto("/apps/quiet/executions?live=yes")
        await expect(page.get_by_text("None yet.")).to_be_visible()
        await accessible(page)
        await report(shown.plane, ran("quiet"))
        await expect(page.get_by_role("cell", name="SUCCEEDED")).to_be_visible()
        await expect(page.get_by_text("None yet.")).to_be_hidden()
        await page.route("**/tail*", lambda route: route.abort())
        await page.reload()
        await expect(page.locator(".warn[role=status]")).to_contain_text("The connection broke; trying again.")
        await accessible(page)
    shown.complaints[:] = [complaint for complaint in shown.complaints if "ERR_FAILED" not in complaint]


async def test_a_trigger_is_told_as_it_goes_and_can_be_stopped(shown, tmp_path):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def pause(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with contextlib.suppress(ConnectionError):
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(pause, "127.0.0.1", 0) as server, shown.page() as page:
        app = "slow-chat"
        await shown.plane.apps.CreateApp(apps_pb2.CreateAppRequest(app=app))
        config = marked("v1", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await shown.plane.create_release(app, "v1", config)
        await shown.plane.deploy(app, "v1", "staging")
        await page.goto(f"/apps/{app}/try")
        await page.get_by_label("message").fill("hello")
        answer = page.get_by_role("region", name="Answer")
        for ends in ("Stop", "by itself"):
            asked.clear()
            await page.get_by_role("button", name="Send to staging").first.click()
            await asyncio.wait_for(asked.wait(), 10)
            await expect(answer.get_by_text("RUNNING").first).to_be_visible()
            await expect(answer.get_by_text("begin / start")).to_be_visible()
            await accessible(page)
            if ends == "Stop":
                await picture(page, tmp_path, "try-running-light")
                await page.get_by_role("button", name="Stop").first.click()
                await expect(answer.get_by_text("Stopped: the gateway cancels it.")).to_be_visible()
            else:
                go_on.set()
                await expect(answer.get_by_text("SUCCEEDED after")).to_be_visible()
                await expect(answer.get_by_label("Output")).to_contain_text('"message": "hello"')
                await accessible(page)
                await picture(page, tmp_path, "try-answer-light")

        async def cancelled() -> bool:
            request = pb.ListExecutionsRequest(app=app, outcome=pb.Execution.CANCELLED)
            return len((await shown.plane.executions.ListExecutions(request)).executions) == 1

        await eventually(cancelled)


@pytest.mark.parametrize("scripts", [False, True])
async def test_a_trigger_can_be_held_to_a_release(shown, looks, scripts):
    async with shown.page(java_script_enabled=scripts) as page:
        await page.goto(f"/apps/{APP}/try?environment=production")
        await page.get_by_text("More", exact=True).click()
        for release, told in (("v0.9.0", "RELEASE_NOT_LOADED"), ("v1.1.0", '"last": "v1.1.0"')):
            await page.get_by_label("Release").fill(release)
            await page.get_by_role("button", name="Choose").click()
            await page.get_by_label("message").fill("hello")
            await page.get_by_role("button", name="Send to production").first.click()
            await expect(page.get_by_role("region", name="Answer").get_by_text(told)).to_be_visible()
            await expect(page.get_by_label("CLI")).to_contain_text(f"--release {release}")


async def test_without_scripts_a_trigger_is_answered_with_the_page(shown, looks):
    async with shown.page(java_script_enabled=False) as page:
        await page.goto(f"/apps/{APP}/environments/production")
        await page.get_by_role("link", name="Try it").last.click()
        await page.get_by_label("message").fill("hello")
        await page.get_by_role("button", name="Send to production").first.click()
        answer = page.get_by_role("region", name="Answer")
        await expect(answer.get_by_text("SUCCEEDED after")).to_be_visible()
        await expect(answer.get_by_label("Output")).to_contain_text('"last": "v1.2.0"')
        await page.goto(f"/apps/{APP}/executions?live=yes")
        await expect(page.get_by_role("status")).to_contain_text("Following needs scripts")


async def test_after_a_restart_nothing_is_missing(shown, tmp_path):
    """The browser connects again by itself, and is told the newest ones anew."""
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane, shown.page() as page:
        await with_releases(shown, "elsewhere", plane=plane)
        await page.goto(f"http://{server.http}/apps/elsewhere/executions?live=yes")
        await expect(page.get_by_text("Following. New executions appear on top.")).to_be_visible()
        await server.stop()
        await expect(page.get_by_text("The connection broke; trying again.")).to_be_visible()
        await server.start()
        async with control_plane_client(server) as again:
            await report(again, late := ran("elsewhere"))
        await expect(page.locator(f"#e-{late.execution_id}")).to_be_attached(timeout=20_000)
        await expect(page.get_by_text("Following. New executions appear on top.")).to_be_visible()
    shown.complaints[:] = [one for one in shown.complaints if "ERR_" not in one and server.http not in one]
