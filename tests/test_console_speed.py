"""Every page in under 100 ms of server time, and small, with 1,000 releases, 50 environments, 500 gateways and 100,000 executions.

`make bench`, `console`, has a million executions.
"""

from __future__ import annotations

import statistics
import time

import pytest

from tests.full_site import MAX_PAGE_BYTES, MAX_SECONDS, PAGES, full_site

EXECUTIONS = 100_000


@pytest.fixture(scope="module")
async def full(tmp_path_factory):
    async with full_site(tmp_path_factory.mktemp("full"), EXECUTIONS) as found:
        yield found


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_quick_and_small(full, path):
    site, ids = full
    took = []
    for _ in range(7):
        started = time.perf_counter()
        response = await site.http.get(path.format(**ids))
        took.append(time.perf_counter() - started)
        assert response.status_code == 200
    assert len(response.content) < MAX_PAGE_BYTES
    assert statistics.median(took) < MAX_SECONDS, f"{path}: {sorted(took)}"
