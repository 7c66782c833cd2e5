"""A real MCP server over streamable HTTP, as a process of its own: `python -m tests.mcp_server PORT` (0: any) prints its port."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from pointsman.settings import Address
from pointsman.web import listening_socket
from tests.bench.children import child, line

server = MCPServer("orders", log_level="CRITICAL")


@server.tool()
async def find_order(order_id: int) -> dict[str, Any]:
    """Structured content."""
    return {"order_id": order_id, "status": "shipped"}


@server.tool(structured_output=False)
async def greet(name: str) -> str:
    """Text."""
    return f"Hello {name}"


@server.tool()
async def explode() -> str:
    """Raises."""
    raise ToolError("the order book is on fire")


@server.tool()
async def complain(text: str) -> str:
    """Repeats what it was given, as an error."""
    raise ToolError(text)


hung: Counter[str] = Counter()


@server.tool()
async def hang() -> str:
    """Never answers."""
    hung["now"] += 1
    try:
        await asyncio.Event().wait()
    finally:
        hung["now"] -= 1
    return ""


@server.tool()
async def hanging() -> int:
    """How many calls of hang there are now."""
    return hung["now"]


@server.tool(structured_output=False)
async def long_text(count: int) -> str:
    """So many characters."""
    return "x" * count


def main(port: int) -> None:
    """Serves until it is killed."""
    sock = listening_socket(Address("127.0.0.1", port))
    print(sock.getsockname()[1], flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="critical", access_log=False)
    uvicorn.Server(config).run([sock])


@contextlib.asynccontextmanager
async def mcp_server(port: int = 0) -> AsyncIterator[str]:
    """The URL of a server that runs until the end."""
    async with child(sys.executable, "-m", "tests.mcp_server", str(port)) as process:
        yield f"http://127.0.0.1:{await line(process)}/mcp"


if __name__ == "__main__":
    main(int(sys.argv[1]))
