"""W3C trace context: the trace that a caller belongs to is put on record and passed on to what is called."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""Of the trigger that runs; empty when its caller named none."""

TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id_of(traceparent: str) -> str:
    """The trace id, 32 hex digits; empty when the header is absent or is not one, as the standard asks."""
    found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else ""


def traceparent() -> str:
    """For a call that a trigger makes: a span of its own in the caller's trace; empty when there is none."""
    trace_id = TRACE_ID.get()
    return f"00-{trace_id}-{secrets.token_hex(8)}-01" if trace_id else ""
