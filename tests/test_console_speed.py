"""Every page in under 100 ms of server time, and small, with 1,000 releases, 50 environments and 500 gateways."""

from __future__ import annotations

import contextlib
import statistics
import time

import pytest

from control_plane.model import Identity
from control_plane.service.environments import EnvironmentChange
from tests.console_app import ANN, open_site
from tests.sample_apps import marked

RELEASES, ENVIRONMENTS, GATEWAYS = 1000, 50, 500
MAX_SECONDS = 0.1
MAX_PAGE_BYTES = 150_000
PAGES = (
    "/apps",
    "/apps/shop/releases",
    "/apps/shop/releases?q=v99",
    "/apps/shop/releases?q=nothing-like-it",
    "/apps/shop/releases/v999",
    "/apps/shop/compare?from=v1&to=v999",
    "/apps/shop/new-release",
    "/apps/shop/environments",
    "/apps/shop/environments/staging",
    "/apps/shop/deploy",
    "/apps/shop/deploy?release=v1&environment=staging",
    "/apps/shop/promote?from=staging&to=production",
    "/apps/shop/rollback?environment=staging",
    "/apps/shop/draft",
    "/gateways",
)


@pytest.fixture(scope="module")
async def full_site(tmp_path_factory):
    async with open_site(tmp_path_factory.mktemp("full")) as site, contextlib.AsyncExitStack() as connected:
        for number in range(RELEASES):
            await site.release("shop", f"v{number}", description="What is in it, in a few words.")
        for number in range(ENVIRONMENTS - 3):
            await site.parts.environments.create(f"test-{number}", EnvironmentChange(description=""), ANN)
            await site.deploy("shop", f"v{number}", f"test-{number}")
        for number in range(50):
            await site.deploy("shop", f"v{number}", "staging", reason="tried by hand")
        await site.draft("shop", "next", tools=marked("x", "http://127.0.0.1:1/")["tools"])
        await site.parts.hub.refresh()
        watcher = await connected.enter_async_context(site.parts.hub.watcher(60.0))
        for number in range(GATEWAYS):
            identity = Identity(
                gateway_id=f"gateway-{number}",
                instance_id=f"0193a1b2-0000-7000-8000-{number:012}",
                version="0.1.0",
                apps=frozenset(),
                environments=frozenset(),
                peer="ipv4:127.0.0.1:50000",
            )
            revision = site.parts.hub.revision - number % 2
            connected.enter_context(site.parts.gateways.connected(identity, watcher, revision=revision, held=()))
        yield site


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_quick_and_small(full_site, path):
    took = []
    for _ in range(7):
        started = time.perf_counter()
        response = await full_site.http.get(path)
        took.append(time.perf_counter() - started)
        assert response.status_code == 200
    assert len(response.content) < MAX_PAGE_BYTES
    assert statistics.median(took) < MAX_SECONDS, f"{path}: {sorted(took)}"
