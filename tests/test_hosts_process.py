"""--allow-host through real processes: what a gateway that other machines reach may call, by the address that a name leads to."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.clients import gateway_client
from tests.processes import start_gateway
from tests.scripted_control_plane import ScriptedControlPlane
from tests.scripted_upstream import ScriptedUpstream

SHOP = ("shop", "production")
# Other machines could reach its gRPC port, so this machine is to it as any other that has no public address.
REACHABLE = ("--listen", "0.0.0.0:0", "--insecure")


def calling(port: int) -> dict[str, object]:
    """Endpoints that call a tool by name and by address, and a model by name."""
    kinds = {
        "name": {"tool_call": {"tool": "by-name"}},
        "address": {"tool_call": {"tool": "by-address"}},
        "model": {"inference": {"model": "by-name", "prompt": "Hi"}},
    }
    return {
        "endpoints": [{"name": name, "pipeline": name} for name in kinds],
        "pipelines": [{"name": name, "stages": [{"name": "s", "steps": [{"name": "it", **kind}]}]} for name, kind in kinds.items()],
        "tools": [
            {"name": "by-name", "http": {"url": f"http://localhost:{port}/echo"}},
            {"name": "by-address", "http": {"url": f"http://127.0.0.1:{port}/echo"}},
        ],
        "models": [{"name": "by-name", "targets": [{"base_url": f"http://localhost:{port}/v1"}]}],
    }


@pytest.mark.parametrize(
    ("flags", "answered", "says"),
    [
        (REACHABLE, set(), "is no public address; start the gateway with --allow-host"),
        ((*REACHABLE, "--allow-host", "*.example.com"), set(), "this gateway may not call"),
        ((*REACHABLE, "--allow-host", "localhost"), {"name", "model"}, "this gateway may not call 127.0.0.1"),
        ((*REACHABLE, "--allow-host", "127.0.0.0/8"), {"name", "address", "model"}, ""),
        ((), {"name", "address", "model"}, ""),
    ],
)
async def test_hosts_are_called_as_the_flag_says(tmp_path, flags, answered, says):
    async with ScriptedUpstream().running() as upstream, ScriptedControlPlane().running() as plane:
        upstream.completions = ["Hello"]
        async with start_gateway(tmp_path, plane.address, *flags) as server:
            server.grpc = server.grpc.replace("0.0.0.0", "127.0.0.1")
            async with gateway_client(server) as gate:
                digest = plane.release(calling(urlsplit(upstream.url).port or 0))
                await (await plane.stream()).update(1, (*SHOP, "v1", digest), synced=True)
                for endpoint in ("name", "address", "model"):
                    response = await gate.post("shop", endpoint, json={})
                    if endpoint in answered:
                        assert response.status_code == 200, response.text
                    else:
                        assert (response.status_code, response.json()["error"]) == (502, "STEP_FAILED")
                        assert (response.json()["details"]["stage"], response.json()["details"]["step"]) == ("s", "it")
                        assert says in response.json()["message"]
        assert len(upstream.seen) == len(answered)
