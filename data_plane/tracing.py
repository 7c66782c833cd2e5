"""W3C trace context: the trace that a caller belongs to is put on record and passed on to what is called."""

from __future__ import annotations

import re

TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id_of(traceparent: str) -> str:
    """The trace id, 32 hex digits; empty when the header is absent or is not one, as the standard asks."""
    found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else ""
