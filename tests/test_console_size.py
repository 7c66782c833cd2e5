"""Every page is small on a full store: 1,000 releases, 200 apps, 50 environments, 500 gateways, an app of 1,200 steps. `make bench`, `console`, times them."""

from __future__ import annotations

import pytest

from tests.full_site import MAX_PAGE_BYTES, PAGES, full_site

EXECUTIONS = 2_000


@pytest.fixture(scope="module")
async def full(tmp_path_factory):
    async with full_site(tmp_path_factory.mktemp("full"), EXECUTIONS) as found:
        yield found


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_small(full, path):
    site, ids = full
    response = await site.http.get(path.format(**ids))
    assert response.status_code == 200
    assert len(response.content) < MAX_PAGE_BYTES
