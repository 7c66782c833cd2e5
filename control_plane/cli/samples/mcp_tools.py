"""The MCP server of mcp-agent, over streamable HTTP: two tools of a shop. Needs the extra mcp.

`python -m control_plane.cli.samples.mcp_tools PORT` serves http://127.0.0.1:PORT/mcp until SIGTERM, as a child of dev.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from control_plane.cli.samples import SERVICES
from control_plane.cli.samples.orders import order
from control_plane.cli.samples.serving import serve_until_told

STOCK = {"lamp": 7, "chair": 24, "kettle": 0, "cup": 310}

server = MCPServer("shop", log_level="CRITICAL")


@server.tool()
async def find_order(order_id: str) -> dict[str, Any]:
    """Finds an order by its number."""
    found = order(order_id)
    if found is None:
        raise ToolError(f"there is no order {order_id}")
    return dict(found)


@server.tool()
async def check_stock(item: str) -> dict[str, Any]:
    """How many of an item there are."""
    if item not in STOCK:
        raise ToolError(f"there is no item {item!r}; there are {', '.join(STOCK)}")
    return {"item": item, "in_stock": STOCK[item]}


def _begin(port: int) -> threading.Thread:
    # Bound here, so that whoever is told that it is ready can connect.
    sock = socket.create_server(("127.0.0.1", port))
    serving = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical", access_log=False))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [sock]}, name="mcp", daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    serve_until_told(SERVICES["tools"].title, int(sys.argv[1]), _begin)
