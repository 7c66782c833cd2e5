"""Tools that are one HTTP request. The answer is its JSON value, or its text when it is not JSON."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec

from data_plane.hosts import HEADER_REFUSED
from data_plane.steps.answers import read_body, retry_after, send
from data_plane.steps.base import MAX_SHOWN_CHARS, RETRYABLE_STATUSES, Clients, Compiling, StepError, Variables
from pointsman.expressions import TOOL_VARIABLES, ExpressionError, Template, compile_template
from pointsman.upstreams import with_secrets
from pointsman.v1.config_pb2 import HttpTool, Tool
from pointsman.values import NUL_REFUSED, decode_json

BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
# What these names stand for on the web (the Encoding standard, section 4.2); all else is read as UTF-8.
WESTERN = frozenset({"iso-8859-1", "latin1", "windows-1252"})


def compile_http(tool: Tool, compiling: Compiling, *, retry_safe: bool) -> Any:
    """A request by the tool's templates. Raises ExpressionError, SecretMissingError."""
    return _HttpCall(tool, compiling, retry_safe=retry_safe)


class _HttpCall:
    """One tool that is one HTTP request, compiled."""

    def __init__(self, tool: Tool, compiling: Compiling, *, retry_safe: bool) -> None:
        http: HttpTool = tool.http
        self._name = tool.name
        self._excerpt = compiling.excerpt
        self._method = http.method or "GET"
        self._retry_safe = retry_safe
        self._url = compile_template(http.url, variables=TOOL_VARIABLES, quote_url=True)
        self._body = compile_template(http.body, variables=TOOL_VARIABLES) if http.body else None
        self._headers: dict[str, Template] = {}
        self._secrets: dict[str, str] = {}
        for header, value in http.headers.items():
            source, secrets = with_secrets(value)
            self._headers[header] = compile_template(source, variables=(*TOOL_VARIABLES, *secrets))
            self._secrets |= {variable: compiling.secrets.resolve(reference) for variable, reference in secrets.items()}

    async def __call__(self, arguments: dict[str, Any], variables: Variables, clients: Clients) -> Any:
        """The answer: a value when it says that it is JSON, else text. Raises StepError."""
        request = self._request({**variables, "arguments": arguments}, clients)
        response = await send(clients, request, f"tool {self._name!r} at {_origin(request)}", retryable=self._retry_safe)
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
        if _climbs(url):
            raise StepError(f"tool {self._name!r}: a value put into its URL makes '.' or '..' a part of the path")
        if content is None and self._method in BODY_METHODS:
            content = msgspec.json.encode(variables["arguments"])
            headers.setdefault("content-type", "application/json")
        broken = next((name for name, value in headers.items() if "\n" in value or "\r" in value), None)
        if broken:
            raise StepError(f"tool {self._name!r}: header {broken!r} would have a line break")
        try:
            return clients.http.build_request(self._method, url, headers=headers, content=content)
        except UnicodeEncodeError:
            raise StepError(f"tool {self._name!r}: {HEADER_REFUSED}") from None
        except httpx2.InvalidURL as error:
            raise StepError(f"tool {self._name!r}: {url[:MAX_SHOWN_CHARS]!r} is not a URL: {error}") from None

    def _rendered_headers(self, variables: Variables) -> dict[str, str]:
        if not self._headers:
            return {}
        # Only headers see secrets: a URL ends up in the logs of every server on the way.
        seen = {**variables, **self._secrets}
        return {name: template.render(seen) for name, template in self._headers.items()}

    async def _answer(self, response: httpx2.Response, request: httpx2.Request) -> Any:
        body = await read_body(response, f"tool {self._name!r} at {_origin(request)}", retryable=self._retry_safe)
        if response.is_success and "json" in response.headers.get("content-type", ""):
            try:
                return decode_json(body) if body else None
            except ValueError as error:
                raise StepError(f"tool {self._name!r} says that it answers JSON, but the answer {error}") from None
        text = body.decode("cp1252" if response.charset_encoding in WESTERN else "utf-8", errors="replace")
        if not response.is_success:
            shown = f": {self._excerpt(text).strip()}" if text.strip() else ""
            retryable = self._retry_safe and response.status_code in RETRYABLE_STATUSES
            message = f"tool {self._name!r} answered {response.status_code}{shown}"
            raise StepError(message, retryable=retryable, retry_after_seconds=retry_after(response))
        if "\0" in text:
            raise StepError(f"tool {self._name!r} answered text that {NUL_REFUSED}")
        return text


def _climbs(url: str) -> bool:
    """Whether the path has a part that servers read as another part of the tree: what a caller sends must not choose that."""
    path = url.split("#", 1)[0].split("?", 1)[0]
    return any(part in (".", "..") for part in path.split("/"))


def _origin(request: httpx2.Request) -> str:
    """Scheme, host and port: a path or a query may hold what is not for messages."""
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
