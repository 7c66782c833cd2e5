"""Tools of MCP servers, over streamable HTTP. The answer is the structured content, or else the text."""

from __future__ import annotations

from typing import Any

import msgspec

from data_plane.mcp_sessions import McpUnavailableError, is_installed
from data_plane.steps.base import MAX_ANSWER_BYTES, CannotCompileError, Clients, Compiling, StepError, Variables
from pointsman.v1.config_pb2 import Tool
from pointsman.values import NUL_REFUSED, decode_json


def compile_mcp(tool: Tool, compiling: Compiling) -> Any:
    """A call of the server's tool. Raises CannotCompileError without the extra, SecretMissingError."""
    if not is_installed():
        raise CannotCompileError("MCP tools need the extra mcp on this gateway: pip install 'pointsman[mcp]'")
    url, name = tool.mcp.url, tool.mcp.tool or tool.name
    headers = {key: compiling.secrets.resolve(value) for key, value in tool.mcp.headers.items()}
    who, retry_safe = f"tool {tool.name!r}", tool.retry_safe

    async def call(arguments: dict[str, Any], _variables: Variables, clients: Clients) -> Any:
        # Not before the first call: the library takes a second to import.
        from mcp import MCPError
        from pydantic import ValidationError

        try:
            result = await clients.mcp.call(url, headers, name, arguments)
        except McpUnavailableError as error:
            retryable = error.retryable and (retry_safe or not error.may_have_run)
            raise StepError(f"{who}: its MCP server: {error}", retryable=retryable) from None
        except MCPError as error:
            raise StepError(f"{who}: its MCP server refused the call: {compiling.excerpt(str(error))}") from None
        except ValidationError as error:
            raise StepError(f"{who}: its MCP server did not answer as MCP does: {error.error_count()} errors") from None
        except RuntimeError as error:
            # Of the library, when an answer is not as the protocol has it, and BrokenPromiseError.
            raise StepError(f"{who}: {compiling.excerpt(str(error).splitlines()[0])}") from None
        return _answer(who, result, compiling)

    return call


def _answer(who: str, result: Any, compiling: Compiling) -> Any:
    text = "\n".join(block.text for block in result.content if block.type == "text")
    if result.is_error:
        raise StepError(f"{who} failed: {compiling.excerpt(text).strip() or 'it gave no reason'}")
    if result.structured_content is not None:
        try:
            return decode_json(msgspec.json.encode(result.structured_content))
        except ValueError as error:
            raise StepError(f"{who}: its answer {error}") from None
    if len(text) > MAX_ANSWER_BYTES:
        raise StepError(f"{who} answered more than {MAX_ANSWER_BYTES} bytes")
    if "\0" in text:
        raise StepError(f"{who} answered text that {NUL_REFUSED}")
    return text
