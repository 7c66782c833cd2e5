"""Node-RED as a peer: a flow of http in, template, http response, which answers POST /v1/trigger/bench. Installed by npm when it is needed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from tests.bench.children import child
from tests.eventually import eventually
from tests.processes import free_address, run

VERSION = "4.0.9"
INSTALL_SECONDS = 600
START_SECONDS = 60
SETTINGS = """
module.exports = {
    uiHost: "127.0.0.1", uiPort: %s, httpAdminRoot: false, flowFile: "flows.json",
    telemetry: {enabled: false}, logging: {console: {level: "off"}},
};
"""
# A node without a place on the canvas would count as a config node.
_PLACE = {"z": "flow", "x": 100, "y": 100}
FLOWS = [
    {"id": "flow", "type": "tab", "label": "bench"},
    {"id": "in", "type": "http in", **_PLACE, "url": "/v1/trigger/bench", "method": "post", "wires": [["template"]]},
    {
        "id": "template",
        "type": "template",
        **_PLACE,
        "field": "payload",
        "fieldType": "msg",
        "format": "handlebars",
        "syntax": "mustache",
        "template": '{"greeting": "Dear {{payload.customer.tier}} customer", "count": {{payload.items.length}}}',
        "output": "json",
        "wires": [["out"]],
    },
    {"id": "out", "type": "http response", **_PLACE, "statusCode": "200", "headers": {}, "wires": []},
]


@asynccontextmanager
async def node_red(folder: Path) -> AsyncIterator[str]:
    """Its address. Ends the benchmark, and says what is missing, when there is no npm or it cannot be installed."""
    if not shutil.which("npm"):
        sys.exit("Node-RED, a peer of this benchmark, needs npm: apt-get install npm")
    installed = await run(
        "npm", "install", "--prefix", folder, "--no-audit", "--no-fund", f"node-red@{VERSION}", timeout_seconds=INSTALL_SECONDS
    )
    if installed.code:
        sys.exit(f"npm could not install Node-RED:\n{installed.stderr}")
    address = free_address()
    (folder / "settings.js").write_text(SETTINGS % address.rpartition(":")[2])
    (folder / "flows.json").write_text(json.dumps(FLOWS))
    program = folder / "node_modules" / "node-red" / "red.js"
    async with (
        child("node", str(program), "--userDir", str(folder), "--settings", str(folder / "settings.js")),
        httpx2.AsyncClient() as http,
    ):

        async def answers() -> bool:
            try:
                posted = await http.post(f"http://{address}/v1/trigger/bench", json={"customer": {"tier": "gold"}, "items": [1]})
            except httpx2.TransportError:
                return False
            return posted.status_code == 200 and posted.json() == {"greeting": "Dear gold customer", "count": 1}

        await eventually(answers, START_SECONDS)
        yield address
