"""A real Chromium in front of real servers, for the tests of the console, and the pictures that are kept of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from google.protobuf import json_format
from playwright.async_api import Browser, Page, Response, async_playwright

from pointsman.v1 import apps_pb2, releases_pb2
from tests.clients import ControlPlane, control_plane_client
from tests.processes import free_address, start_control_plane, start_gateway
from tests.sample_apps import marked

SCREENSHOTS = Path(__file__).parent / "screenshots"
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
MAX_PAGE_BYTES = 150_000
DESCRIPTIONS = {
    "v1.0.0": "The first one",
    "v1.1.0": "A friendlier greeting",
    "v1.2.0": "Answers refunds; asks for the order's number when it is missing from the message",
    "2026-03-15-fix": "Says so when the order service does not answer",
}


@dataclass
class Shown:
    """A browser in front of a control plane with two gateways."""

    browser: Browser
    url: str
    grpc: str
    plane: ControlPlane
    complaints: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def page(self, **settings: object) -> AsyncIterator[Page]:
        """A window of its own; what its console complains of, and requests to elsewhere, are remembered."""
        context = await self.browser.new_context(base_url=self.url, viewport={"width": 1200, "height": 800}, **settings)
        page = await context.new_page()
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda r: self.complaints.append(r.url) if urlsplit(r.url).netloc != urlsplit(self.url).netloc else None)
        try:
            yield page
        finally:
            await context.close()


@pytest.fixture(scope="module")
async def shown(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    async with contextlib.AsyncExitStack() as running:
        east = free_address()
        server = await running.enter_async_context(start_control_plane(folder, "--gateway-url", f"http://{east}"))
        await running.enter_async_context(start_gateway(folder, server.grpc, "--http", east, gateway_id="east"))
        await running.enter_async_context(start_gateway(folder, server.grpc, gateway_id="west"))
        plane = await running.enter_async_context(control_plane_client(server))
        playwright = await running.enter_async_context(async_playwright())
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = await playwright.chromium.launch(executable_path=chromium, args=flags)
        running.push_async_callback(browser.close)
        shown = Shown(browser, f"http://{server.http}", server.grpc, plane)
        yield shown
        assert shown.complaints == []


async def with_releases(shown: Shown, app: str, *tags: str, plane: ControlPlane | None = None) -> None:
    """An app with releases, and a draft that differs from them."""
    plane = plane or shown.plane
    await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app=app, description="Answers what customers ask"))
    for tag in tags:
        create = releases_pb2.CreateReleaseRequest(app=app, tag=tag, description=DESCRIPTIONS.get(tag, ""))
        json_format.ParseDict(marked(tag), create.config)
        await plane.releases.CreateRelease(create)
    request = apps_pb2.UpdateDraftRequest(app=app)
    json_format.ParseDict(marked("next"), request.config)
    await plane.apps.UpdateDraft(request)


async def accessible(page: Page) -> None:
    """No violation of level A or AA."""
    # What passes is not told, of which a long list has much.
    options = {"runOnly": {"type": "tag", "values": LEVELS}, "resultTypes": ["violations"]}
    found = await Axe().run(page, options=options)
    told = [f"{v['id']}: {v['help']}: {[node['html'][:120] for node in v['nodes'][:3]]}" for v in found.response["violations"]]
    assert not told, told


async def picture(page: Page, folder: Path, name: str, *, whole: bool = True) -> None:
    """Kept for people; never compared. `whole`: the page to its end, not only what fits the window."""
    kept = SCREENSHOTS if os.environ.get("POINTSMAN_SCREENSHOTS") else folder
    await page.screenshot(path=kept / f"{name}.png", full_page=whole)


async def looked_over(shown: Shown, path: str, folder: Path, name: str, scheme: str, *, twice: bool = False, whole: bool = True) -> None:
    """That a page is accessible, small and fits a phone; with `twice` its pictures are kept in dark and as on a phone, too."""
    responses: list[Response] = []
    async with shown.page(color_scheme=scheme) as page:
        page.on("response", lambda response: responses.append(response))  # noqa: PLW0108 -- the handler gets an attribute
        await page.goto(path)
        assert sum([len(await response.body()) for response in responses]) < MAX_PAGE_BYTES
        await accessible(page)
        if scheme == "light" or twice:
            await picture(page, folder, f"{name}-{scheme}", whole=whole)
        await page.set_viewport_size({"width": 390, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await accessible(page)
        if scheme == "light" and twice:
            await picture(page, folder, f"{name}-phone", whole=whole)
