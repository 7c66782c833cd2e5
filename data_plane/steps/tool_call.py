"""tool_call: calls a tool over HTTP. The output is the answer's JSON value, or its text when it is not JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import msgspec

from data_plane.steps.base import (
    MAX_SHOWN_CHARS,
    RETRYABLE_STATUSES,
    CannotCompileError,
    Clients,
    Compiling,
    Runner,
    StepContext,
    StepError,
    Variables,
    cause_of,
    read_body,
    retry_after,
)
from pointsman.expressions import TOOL_VARIABLES, ExpressionError, Template, compile_expression, compile_template
from pointsman.schemas import Schema, compile_schema
from pointsman.upstreams import with_secrets
from pointsman.v1.config_pb2 import HttpTool, Step, Tool
from pointsman.values import NUL_REFUSED, decode_json

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


def compile_step(compiling: Compiling, step: Step) -> Runner:
    """A request to the tool with arguments from an expression."""
    name = step.tool_call.tool
    tool = compiling.tools.get(name)
    if tool is None:
        raise CannotCompileError(f"there is no tool {name!r}")
    arguments = compile_expression(step.tool_call.arguments) if step.tool_call.arguments else None
    call = compile_tool(tool, compiling)

    async def run(variables: Variables, context: StepContext) -> Any:
        try:
            given = arguments.evaluate(variables) if arguments else {}
        except ExpressionError as error:
            raise StepError(f"its arguments: {error}") from None
        return await call(given, variables, context.clients)

    return run


ToolCaller = Callable[[Any, Variables, Clients], Awaitable[Any]]
"""(arguments, variables, clients) -> the tool's answer. Raises StepError."""


def compile_tool(tool: Tool, compiling: Compiling) -> ToolCaller:
    """Raises CannotCompileError when this gateway cannot call tools of that kind."""
    kind = tool.WhichOneof("kind")
    if kind != "http":
        raise CannotCompileError(f"this gateway does not know tools of the kind {kind!r}")
    return HttpCall(tool, compiling)


class HttpCall:
    """One tool that is one HTTP request, compiled."""

    def __init__(self, tool: Tool, compiling: Compiling) -> None:
        http: HttpTool = tool.http
        self._name = tool.name
        self._method = http.method or "GET"
        self._retry_safe = tool.retry_safe or self._method in IDEMPOTENT_METHODS
        self._schema: Schema | None = compile_schema(tool.input_schema) if tool.HasField("input_schema") else None
        self._url = compile_template(http.url, variables=TOOL_VARIABLES, quote_url=True)
        self._body = compile_template(http.body, variables=TOOL_VARIABLES) if http.body else None
        self._headers: dict[str, Template] = {}
        self._secrets: dict[str, str] = {}
        for header, value in http.headers.items():
            source, secrets = with_secrets(value)
            self._headers[header] = compile_template(source, variables=(*TOOL_VARIABLES, *secrets))
            self._secrets |= {variable: compiling.secrets.resolve(reference) for variable, reference in secrets.items()}

    async def __call__(self, arguments: Any, variables: Variables, clients: Clients) -> Any:
        """The answer. Raises StepError."""
        if not isinstance(arguments, dict):
            raise StepError(f"its arguments are {type(arguments).__name__}, and must be a map")
        violations = self._schema.violations(arguments) if self._schema else []
        if violations:
            raise StepError(f"tool {self._name!r} does not take these arguments: {'; '.join(map(str, violations))}")
        request = self._request({**variables, "arguments": arguments}, clients)
        try:
            response = await clients.http.send(request, stream=True)
        except httpx2.TransportError as error:
            raise StepError(f"tool {self._name!r} at {_origin(request)}: {cause_of(error)}", retryable=self._retry_safe) from None
        try:
            return await self._answer(response, request)
        finally:
            await response.aclose()

    def _request(self, variables: Variables, clients: Clients) -> httpx2.Request:
        try:
            url = self._url.render(variables)
            headers = self._rendered_headers(variables)
            content = self._body.render(variables).encode() if self._body else None
        except ExpressionError as error:
            raise StepError(f"tool {self._name!r}: {error}") from None
        if content is None and self._method in BODY_METHODS:
            content = msgspec.json.encode(variables["arguments"])
            headers.setdefault("content-type", "application/json")
        broken = next((name for name, value in headers.items() if "\n" in value or "\r" in value), None)
        if broken:
            raise StepError(f"tool {self._name!r}: header {broken!r} would have a line break")
        try:
            return clients.http.build_request(self._method, url, headers=headers, content=content)
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise StepError(f"tool {self._name!r}: {url[:MAX_SHOWN_CHARS]!r} is not a URL: {error}") from None

    def _rendered_headers(self, variables: Variables) -> dict[str, str]:
        if not self._headers:
            return {}
        # Only headers see secrets: a URL ends up in the logs of every server on the way.
        seen = {**variables, **self._secrets}
        return {name: template.render(seen) for name, template in self._headers.items()}

    async def _answer(self, response: httpx2.Response, request: httpx2.Request) -> Any:
        body = await read_body(response, f"tool {self._name!r} at {_origin(request)}", retryable=self._retry_safe)
        text = body.decode(errors="replace")
        if not response.is_success:
            shown = f": {text[:MAX_SHOWN_CHARS].strip()}" if text.strip() else ""
            retryable = self._retry_safe and response.status_code in RETRYABLE_STATUSES
            after = retry_after(response)
            message = f"tool {self._name!r} answered {response.status_code}{shown}"
            raise StepError(message, retryable=retryable, retry_after_seconds=after)
        if "json" not in response.headers.get("content-type", ""):
            if "\0" in text:
                raise StepError(f"tool {self._name!r} answered text that {NUL_REFUSED}")
            return text
        try:
            return decode_json(body) if body else None
        except ValueError as error:
            raise StepError(f"tool {self._name!r} says that it answers JSON, but the answer {error}") from None


def _origin(request: httpx2.Request) -> str:
    """Scheme, host and port: a path or a query may hold what is not for messages."""
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
