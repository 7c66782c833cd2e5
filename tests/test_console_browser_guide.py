"""The whole guide in a real Chromium, signed in, by one control plane and by two replicas of one store that take turns."""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import dataclass, field

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from control_plane.cli.samples import sample_text
from control_plane.cli.samples.orders import order_service
from tests.console_browser import accessible, picture
from tests.eventually import eventually
from tests.postgres_server import MISSING, available, running_postgres
from tests.processes import free_address, start_control_plane, start_gateway

APP = "walk"
QUESTION = "Where is order 1234?"


@dataclass
class Replicas:
    """Control planes that are one to a person: each page is asked of the next one."""

    browser: Browser
    urls: list[str]
    planes: list[str]
    secret: str
    gateway: str
    asked: itertools.count = field(default_factory=itertools.count)

    async def open(self, page: Page, path: str) -> None:
        """The page, by the next replica."""
        await page.goto(self.urls[next(self.asked) % len(self.urls)] + path)


@pytest.fixture(scope="module", params=["one", "two replicas"])
async def replicas(request, chromium, tmp_path_factory):
    """Closed by a first admin's token; no gateway yet."""
    folder = tmp_path_factory.mktemp("guide")
    gateway = free_address()
    flags = ["--gateway-url", f"http://{gateway}"]
    async with contextlib.AsyncExitStack() as running:
        count = 1
        if request.param != "one":
            if not available():
                pytest.skip(MISSING)
            count = 2
            postgres = running.enter_context(running_postgres())
            flags += ["--store", postgres.url(postgres.new_database())]
        token = folder / "token"
        servers = []
        for _ in range(count):
            more = [] if servers else ["--bootstrap-token-file", str(token)]
            servers.append(await running.enter_async_context(start_control_plane(folder, *flags, *more)))
        playwright = await running.enter_async_context(async_playwright())
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = await playwright.chromium.launch(executable_path=chromium, args=options)
        running.push_async_callback(browser.close)
        urls, planes = [f"http://{server.http}" for server in servers], [server.grpc for server in servers]
        yield Replicas(browser, urls, planes, token.read_text().strip(), gateway)


async def signed_in(replicas: Replicas, page: Page) -> None:
    await replicas.open(page, "/")
    await page.get_by_label("Token").fill(replicas.secret)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Apps")).to_be_visible()


async def accessible_in_both(page: Page) -> None:
    """In dark and in light, which it leaves on."""
    for scheme in ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        await accessible(page)


async def new_token(replicas: Replicas, page: Page, name: str, role: str, **limits: str) -> str:
    """Its secret."""
    await replicas.open(page, "/tokens")
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Role").select_option(role)
    for label, value in limits.items():
        await page.get_by_label(label.replace("_", " ")).fill(value)
    await page.get_by_role("button", name="Create Token").click()
    await expect(page.get_by_text("Copy it now: it is shown this once.")).to_be_visible()
    return await page.get_by_label("Secret").inner_text()


async def released(replicas: Replicas, page: Page, tag: str, draft: str) -> None:
    """The draft, saved, as a release that is live in staging."""
    await replicas.open(page, f"/apps/{APP}/draft")
    await page.get_by_role("textbox", name="Draft").fill(draft)
    await page.get_by_role("button", name="Save draft").click()
    await expect(page.get_by_role("status")).to_contain_text("Saved as version")
    await replicas.open(page, f"/apps/{APP}/releases")
    await page.get_by_role("link", name="Create Release").first.click()
    dialog = page.get_by_role("dialog", name="Create Release")
    await dialog.get_by_label("Release Tag").fill(tag)
    await expect(dialog.get_by_text(f"{tag} is free.")).to_be_visible()
    await dialog.get_by_label("Deploy after release").check()
    await dialog.get_by_label("Environment").select_option("staging")
    await dialog.get_by_role("button", name="Release & Deploy").click()
    await expect(page.get_by_role("status")).to_contain_text(f"{tag} is live in staging")
    await expect(page.get_by_text("1 of 1 gateway serves")).to_be_visible()


async def tried(replicas: Replicas, page: Page, environment: str, tag: str, outcome: str) -> None:
    """A trigger from the page, and on to its record, which may come a little later."""
    await replicas.open(page, f"/apps/{APP}/try?environment={environment}&endpoint=chat")
    await page.get_by_label("message").fill(QUESTION)
    await page.get_by_role("button", name=f"Send to {environment}").first.click()
    answer = page.get_by_role("region", name="Answer")
    await expect(answer.get_by_text(outcome).first).to_be_visible()
    await expect(answer.get_by_role("link", name=tag)).to_be_visible()
    record = await answer.get_by_role("link", name="Its record, with the timeline").get_attribute("href")
    heading = page.get_by_role("heading", name=re.compile("^Execution [0-9a-f]"))

    async def on_record():
        await replicas.open(page, record)
        return await heading.count()

    await eventually(on_record)
    await expect(heading).to_contain_text(outcome)


async def promoted(replicas: Replicas, page: Page, tag: str) -> None:
    await replicas.open(page, f"/apps/{APP}/environments/staging")
    await page.get_by_role("link", name="Promote").click()
    await page.get_by_role("button", name="Continue").click()
    await page.get_by_role("button", name=f"Promote {tag} to production").click()
    await expect(page.get_by_role("status")).to_contain_text(f"{tag} is live in production")


async def test_the_whole_guide(replicas, tmp_path):
    with order_service(0) as orders:
        async with contextlib.AsyncExitStack() as running:
            context = await replicas.browser.new_context(viewport={"width": 1200, "height": 800})
            running.push_async_callback(context.close)
            page = await context.new_page()
            await replicas.open(page, "/")
            await accessible_in_both(page)
            await picture(page, tmp_path, "sign-in-light")
            await signed_in(replicas, page)
            secret = await new_token(replicas, page, "gateway east", "GATEWAY")
            await new_token(replicas, page, "ci", "DEPLOYER", Only_in_environments="staging", Expires_in="90d")
            await accessible(page)
            await running.enter_async_context(
                start_gateway(tmp_path, replicas.planes[-1], "--http", replicas.gateway, gateway_id="east", POINTSMAN_TOKEN=secret)
            )

            await replicas.open(page, "/apps")
            await page.get_by_label("Name").fill(APP)
            await page.get_by_role("button", name="Create App").click()
            sound = sample_text(orders=orders)
            await released(replicas, page, "v1.0.0", sound)
            await tried(replicas, page, "staging", "v1.0.0", "SUCCEEDED")
            await expect(page.get_by_role("heading", name="Steps")).to_be_visible()
            await promoted(replicas, page, "v1.0.0")

            await released(replicas, page, "v1.1.0", sound.replace("input.message.lowerAscii()", "input.massage.lowerAscii()"))
            await promoted(replicas, page, "v1.1.0")
            await tried(replicas, page, "production", "v1.1.0", "FAILED")
            await expect(page.get_by_text("in stage understand, step words")).to_be_visible()
            await accessible(page)

            await replicas.open(page, f"/apps/{APP}/executions?errors=yes")
            await expect(
                page.get_by_role("table", name="Failed executions, newest first").get_by_role("link", name="v1.1.0")
            ).to_be_visible()
            await replicas.open(page, f"/apps/{APP}/releases")
            await page.get_by_label("Actions for v1.1.0").click()
            await page.get_by_role("link", name="Rollback to Previous in production").click()
            await page.get_by_label("Reason").fill("it fails")
            await page.get_by_role("button", name="Roll back to v1.0.0").click()
            await expect(page.get_by_role("status")).to_contain_text("v1.0.0 is live in production")
            await page.get_by_role("link", name="What v1.1.0 did").first.click()
            await expect(page.get_by_text("Replaced because: it fails")).to_be_visible()
            await tried(replicas, page, "production", "v1.0.0", "SUCCEEDED")

            await replicas.open(page, "/tokens")
            await accessible_in_both(page)
            await picture(page, tmp_path, "tokens-light")
            await page.get_by_role("link", name="Revoke ci").click()
            await accessible_in_both(page)
            await picture(page, tmp_path, "token-revoke-light")
            await page.get_by_role("button", name="Revoke ci").click()
            await expect(page.get_by_role("status")).to_contain_text("so do 1 of 1 connected gateway")
            await accessible(page)


async def test_signing_in_and_out_counts_everywhere(replicas):
    context = await replicas.browser.new_context()
    page = await context.new_page()
    await signed_in(replicas, page)
    for _ in replicas.urls:
        await replicas.open(page, "/gateways")
        await expect(page.get_by_role("heading", name="Gateways")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    for _ in replicas.urls:
        await replicas.open(page, "/gateways")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await context.close()
