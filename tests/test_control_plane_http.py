"""The control plane's HTTP port: alive, ready, and one shape for everything else."""

import httpx2
import pytest


@pytest.fixture
async def http(control_plane):
    async with httpx2.AsyncClient(base_url=f"http://{control_plane.http}", timeout=10, trust_env=False) as client:
        yield client


async def test_alive_and_ready_with_a_console(http):
    for page in ("/livez", "/readyz", "/apps"):
        assert (await http.get(page)).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/readyz"), ("POST", "/apps/shop")])
async def test_promise_12_what_is_not_there_is_refused_in_the_one_shape(http, method, path):
    response = await http.request(method, path)
    body = response.json()
    assert set(body) == {"error", "message", "details", "status_code", "timestamp"}
    assert (response.status_code, body["error"], body["details"]["endpoint"]) == (404, "ENDPOINT_NOT_FOUND", path)
