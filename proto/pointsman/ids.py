"""Ids that sort by the time they were made: UUID version 7 (RFC 9562)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

# Of the 74 bits that are neither time nor mark; the first is left 0, so that counting up has room.
_RANDOM_BITS = 73


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class IdMaker:
    """Makes UUIDv7s that strictly grow within the process: within one millisecond, and when the clock is set back, by counting up."""

    def __init__(self, now_ms: Callable[[], int] = _now_ms) -> None:
        self._now_ms = now_ms
        # Seeded by the system. Nobody must be able to use an id for having guessed it, so it takes no secret randomness.
        self._random = random.Random()  # noqa: S311
        self._lock = threading.Lock()
        self._last_ms = -1
        self._count = 0

    def __call__(self) -> str:
        """A new id, as text."""
        now = self._now_ms()
        with self._lock:
            if now > self._last_ms:
                self._last_ms, self._count = now, self._random.getrandbits(_RANDOM_BITS)
            else:
                now, self._count = self._last_ms, self._count + 1
            count = self._count
        high, low = count >> 62, count & (1 << 62) - 1
        return f"{now >> 16:08x}-{now & 0xFFFF:04x}-{0x7000 | high:04x}-{0x8000 | low >> 48:04x}-{low & 0xFFFFFFFFFFFF:012x}"


new_id = IdMaker()
