"""Tools, whoever calls them: a tool_call step or a model. A new kind of tool is one file and one line in compile_tool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from data_plane.steps.base import CannotCompileError, Clients, Compiling, StepError, Variables
from data_plane.steps.tool_http import compile_http
from data_plane.steps.tool_mcp import compile_mcp
from pointsman.schemas import Schema, compile_schema
from pointsman.v1.config_pb2 import Tool

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})

Call = Callable[[dict[str, Any], Variables, Clients], Awaitable[Any]]


class CompiledTool:
    """One tool. `retry_safe`: a repeat of a call does no harm."""

    def __init__(self, tool: Tool, call: Call, *, retry_safe: bool) -> None:
        self.retry_safe = retry_safe
        self._name = tool.name
        self._call = call
        self._schema: Schema | None = compile_schema(tool.input_schema) if tool.HasField("input_schema") else None

    async def __call__(self, arguments: Any, variables: Variables, clients: Clients) -> Any:
        """The tool's answer, a plain value. Raises StepError, also when it does not take the arguments."""
        if not isinstance(arguments, dict):
            raise StepError(f"its arguments are {type(arguments).__name__}, and must be a map")
        violations = self._schema.violations(arguments) if self._schema else []
        if violations:
            raise StepError(f"tool {self._name!r} does not take these arguments: {'; '.join(map(str, violations))}")
        return await self._call(arguments, variables, clients)


def compile_tool(name: str, compiling: Compiling) -> CompiledTool:
    """Raises CannotCompileError when there is none of that name, or this gateway cannot call tools of its kind."""
    tool = compiling.tools.get(name)
    if tool is None:
        raise CannotCompileError(f"there is no tool {name!r}")
    kind = tool.WhichOneof("kind")
    if kind == "http":
        retry_safe = tool.retry_safe or (tool.http.method or "GET") in IDEMPOTENT_METHODS
        return CompiledTool(tool, compile_http(tool, compiling, retry_safe=retry_safe), retry_safe=retry_safe)
    if kind == "mcp":
        return CompiledTool(tool, compile_mcp(tool, compiling), retry_safe=tool.retry_safe)
    raise CannotCompileError(f"this gateway does not know tools of the kind {kind!r}")
