"""What the tools of an MCP server promise to answer, their output schemas, and whether they do.

In place of the library's own check, which keeps the schemas that it saw first as long as a session lasts, and matches patterns by
backtracking: a server could keep the whole gateway busy for ever with one of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from pointsman.schemas import Schema, compile_source

# Of a server that has always one more, no further ones are read.
MAX_PAGES = 10
MAX_SHOWN = 3

log = structlog.get_logger()


class BrokenPromiseError(RuntimeError):
    """An answer is not as the tool's output schema promises; the message says how."""


class Promises:
    """Of one session; `client` is the library's."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url
        self._schemas: dict[str, Schema | None] = {}
        """None: nothing is promised, or nothing that can be checked."""

    async def check(self, name: str, result: Any) -> None:
        """Raises BrokenPromiseError, and mcp.MCPError when the server does not list its tools."""
        if name in self._schemas and not self._problem(name, result):
            return
        # Not known yet, or changed since.
        self._schemas[name] = await self._listed(name)
        if problem := self._problem(name, result):
            raise BrokenPromiseError(problem)

    def _problem(self, tool: str, result: Any) -> str:
        schema = self._schemas[tool]
        if schema is None:
            return ""
        if result.structured_content is None:
            return f"its tool {tool!r} has an output schema, and gave no structured content"
        broken = "; ".join(map(str, schema.violations(result.structured_content)[:MAX_SHOWN]))
        return f"its tool {tool!r} gave what its output schema does not allow: {broken}" if broken else ""

    async def _listed(self, tool: str) -> Schema | None:
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor, cache_mode="bypass")
            for listed in page.tools:
                if listed.name == tool:
                    return await self._compiled(tool, listed.output_schema) if listed.output_schema is not None else None
            cursor = page.next_cursor
            if not cursor:
                break
        return None

    async def _compiled(self, tool: str, source: dict[str, Any]) -> Schema | None:
        try:
            return await asyncio.to_thread(compile_source, source)
        except ValueError as error:
            # The server's affair: whoever calls its tool cannot mend the schema, and its answers may be good all the same.
            log.warning("answers of an MCP tool are not checked", tool=tool, url=self._url, error=str(error).splitlines()[0])
            return None
