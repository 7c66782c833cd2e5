"""The one JSON shape of errors over HTTP."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from pointsman.errors import PointsmanError


def error_body(error: PointsmanError) -> bytes:
    """The error as JSON: `{"error", "message", "details", "status_code", "timestamp"}` of errors.proto."""
    details: dict[str, Any] = dict(error.metadata)
    if error.violations:
        details["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    body = {
        "error": error.reason_name,
        "message": error.message,
        "details": details,
        "status_code": error.http_status,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return msgspec.json.encode(body)


def error_headers(error: PointsmanError) -> list[tuple[bytes, bytes]]:
    """Content type, and Retry-After in whole seconds, rounded up, where a repeat makes sense."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    return headers
