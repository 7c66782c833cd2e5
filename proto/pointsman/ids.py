"""Ids that sort by the time they were made: UUID version 7 (RFC 9562)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_RANDOM_BITS = 74


class IdMaker:
    """Makes UUIDv7s that strictly grow within the process: within one millisecond, and when the clock is set back, by counting up."""

    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> str:
        """A new id, as text."""
        fresh = self._now_ms() << _RANDOM_BITS | int.from_bytes(os.urandom(10)) >> 6
        with self._lock:
            self._last = value = max(fresh, self._last + 1)
        milliseconds, high, low = value >> _RANDOM_BITS, value >> 62 & 0xFFF, value & (1 << 62) - 1
        text = f"{milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


new_id = IdMaker()
