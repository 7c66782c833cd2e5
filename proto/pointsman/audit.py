"""The chain of the audit log: whoever changes, adds or takes out an entry has to change the hash of every later one.

The hash of an entry is SHA-256 over the 32 bytes of the hash before it (zeros before the first) and the UTF-8 of a JSON list without
spaces: the microseconds since 1970 of its entry_time, then its FIELDS in their order.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

FIRST = bytes(32)
FIELDS = (
    *("position", "actor", "token_id", "peer", "method", "app", "environment", "detail", "reason"),
    *("before_revision", "revision", "outcome", "message", "count"),
)


def entry_hash(previous: bytes, micros: int, entry: Any) -> bytes:
    """Of an entry that has the FIELDS as attributes, after the one that has the hash `previous`."""
    values = [micros, *(getattr(entry, name) for name in FIELDS)]
    return hashlib.sha256(previous + json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()).digest()
