"""What a gateway serves, for whoever calls it: a list of endpoints, and an OpenAPI 3.1 document of one app in one environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pointsman
from data_plane.loaded import LoadedEndpoint
from data_plane.lookup import Asked, Here, find_release
from data_plane.table import Active, Table

TRIGGER_PREFIX = "/v1/trigger/"

_ERROR = {
    "type": "object",
    "required": ["error", "message", "details", "status_code", "timestamp"],
    "additionalProperties": False,
    "properties": {
        "error": {"type": "string", "description": "The reason, such as INVALID_INPUT."},
        "message": {"type": "string", "description": "For a person: what, which value, what to do."},
        "details": {"type": "object", "description": "The values that the message names."},
        "status_code": {"type": "integer"},
        "timestamp": {"type": "string", "format": "date-time"},
    },
}
# Keywords of JSON Schema that hold values, not schemas.
_VALUES = frozenset({"const", "enum", "default", "examples"})
_REFUSALS = {
    "400": "The input does not satisfy the schema, or a header is wrong.",
    "401": "No token, or one that does not count.",
    "403": "The token does not allow this.",
    "404": "Nothing is deployed there, or the release has no such endpoint.",
    "412": "The release that X-Release names is not loaded.",
    "413": "The body is too large.",
    "429": "Too many triggers; Retry-After says when to try again.",
    "502": "A step failed.",
    "503": "The gateway is behind, not synced, or shutting down.",
    "504": "A step, or the whole trigger, ran out of time.",
}
_ANSWER_HEADERS = {
    "X-Execution-Id": "The execution on record.",
    "X-App": "Whose endpoint ran.",
    "X-Environment": "Where.",
    "X-Release": "The release that ran.",
    "X-Release-Digest": "Its digest.",
    "X-Revision": "At which it was bound.",
    "X-Gateway": "Who ran it.",
}


Covers = Callable[[str, str, str], bool]
"""(app, environment, path) -> whether the caller may trigger it."""


def list_endpoints(table: Table, app: str, environment: str, covers: Covers) -> dict[str, Any]:
    """Every endpoint that the caller may trigger, by app, environment and path; of one app, one environment where they are named."""
    found = []
    for key in sorted(table.active):
        active = table.active[key]
        if (app or active.bound.app) == active.bound.app and (environment or active.bound.environment) == active.bound.environment:
            found += [_listed(active, endpoint) for endpoint in _covered(active, covers)]
    return {"endpoints": found}


def describe(table: Table, here: Here, app: str, environment: str, covers: Covers) -> dict[str, Any]:
    """The OpenAPI document of what a trigger of this app in this environment would meet; both may be empty, as in a trigger.

    Raises:
        PointsmanError: as find_release, when a trigger would be refused too.
    """
    active = find_release(Asked(endpoint="", input=None, app=app, environment=environment), table, here)
    bound = active.bound
    endpoints = _covered(active, covers)
    paths = {f"{TRIGGER_PREFIX}{endpoint.path}": {endpoint.method.lower(): _operation(active, endpoint)} for endpoint in endpoints}
    inputs = {_input_name(endpoint): _input_schema(endpoint) for endpoint in endpoints}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{bound.app} in {bound.environment}",
            "version": bound.release,
            "description": f"{bound.digest}, bound at revision {bound.revision}; by Pointsman {pointsman.__version__}.",
        },
        "paths": paths,
        "security": [{"token": []}, {}],
        "components": {
            "schemas": {"Error": _ERROR, **inputs},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Where tokens are in use."}},
            "responses": {
                status: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
                for status, what in _REFUSALS.items()
            },
        },
    }


def _covered(active: Active, covers: Covers) -> list[LoadedEndpoint]:
    bound = active.bound
    return [endpoint for path, endpoint in sorted(active.loaded.endpoints.items()) if covers(bound.app, bound.environment, path)]


def _listed(active: Active, endpoint: LoadedEndpoint) -> dict[str, Any]:
    bound = active.bound
    return {
        "app": bound.app,
        "environment": bound.environment,
        "release": bound.release,
        "digest": bound.digest,
        "revision": bound.revision,
        "name": endpoint.name,
        "path": endpoint.path,
        "method": endpoint.method,
        "timeout_seconds": endpoint.timeout_seconds,
        "max_concurrency": endpoint.max_concurrency,
        "input_schema": endpoint.schema.source if endpoint.schema else {"type": "object"},
    }


def _operation(active: Active, endpoint: LoadedEndpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": f"Runs {endpoint.name}.",
        "parameters": [*_headers(active), *(_query(endpoint) if endpoint.method == "GET" else ())],
        "responses": {
            "200": {
                "description": "The pipeline's output.",
                "headers": {name: {"description": what, "schema": {"type": "string"}} for name, what in _ANSWER_HEADERS.items()},
                "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {"type": "string"}}},
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in _REFUSALS},
        },
    }
    if endpoint.method != "GET":
        schema = {"$ref": _input_pointer(endpoint)}
        # An empty body is an empty object.
        required = bool(endpoint.schema and endpoint.schema.violations({}))
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return operation


def _input_name(endpoint: LoadedEndpoint) -> str:
    return f"{endpoint.name}.input"


def _input_pointer(endpoint: LoadedEndpoint) -> str:
    return f"#/components/schemas/{_input_name(endpoint)}"


def _input_schema(endpoint: LoadedEndpoint) -> dict[str, Any]:
    """What is taken: always an object."""
    source = endpoint.schema.source if endpoint.schema else {}
    moved: dict[str, Any] = _moved(source, _input_pointer(endpoint))
    return {"type": "object", **moved}


def _moved(schema: Any, root: str) -> Any:
    """The schema with its references to itself (`#/$defs/...`) as they are from where it stands in the document."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _VALUES else _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved


def _headers(active: Active) -> list[dict[str, Any]]:
    bound = active.bound
    told = {
        "X-App": ({"type": "string", "const": bound.app}, "Whose endpoint; may be left out where the gateway serves one app only."),
        "X-Environment": ({"type": "string", "const": bound.environment}, "Where; absent: the gateway's default environment."),
        "X-Min-Revision": ({"type": "integer", "minimum": 0}, "Never run on anything older."),
        "X-Release": ({"type": "string"}, "Run exactly this release, or refuse."),
        "Idempotency-Key": ({"type": "string", "maxLength": 255}, "A repeat within 10 minutes gets the first answer again."),
    }
    required = ("X-App", "X-Environment")
    return [
        {"name": name, "in": "header", "required": name in required, "schema": schema, "description": what}
        for name, (schema, what) in told.items()
    ]


def _query(endpoint: LoadedEndpoint) -> list[dict[str, Any]]:
    source = _input_schema(endpoint)
    properties, required = source.get("properties", {}), source.get("required", ())
    return [{"name": name, "in": "query", "required": name in required, "schema": schema} for name, schema in properties.items()]
