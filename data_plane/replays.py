"""Idempotency-Key: who repeats a trigger within ten minutes gets the first answer again, and nothing runs twice.

For one gateway process: a repeat that a load balancer sends to another one runs there. Triggers that were refused have run nothing, so
they are not remembered; those whose steps failed or timed out have, and are.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from data_plane.lookup import Asked
from data_plane.record import Answer
from pointsman.errors import InvalidField, PointsmanError, StepFailed, StepTimeout, Violation

MEMORY_SECONDS = 600.0
MAX_REMEMBERED = 10_000
MAX_REMEMBERED_BYTES = 64 * 1024 * 1024
MAX_KEY_CHARS = 255
# Beside what an answer's output takes.
ENTRY_BYTES = 1024

Key = tuple[str, ...]
_encode = msgspec.json.Encoder(order="sorted").encode


class _First(msgspec.Struct):
    """The first trigger with a key. `ended` has its answer, the error of its steps, or None when it is as if it had never been."""

    fingerprint: bytes
    until: float
    ended: asyncio.Future[Answer | PointsmanError | None]
    size: int = ENTRY_BYTES


class Replays:
    """The answers of one gateway, by key. `clock` is a time.monotonic()."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._firsts: OrderedDict[Key, _First] = OrderedDict()
        self._bytes = 0

    async def once(self, asked: Asked, run: Callable[[], Awaitable[Answer]]) -> Answer:
        """run()'s answer, or the first one again, with `replayed`. A repeat that comes while the first runs waits for it.

        Raises:
            InvalidField: the key is none, or was used with another request.
            PointsmanError: whatever run() raises; of steps also for a repeat, with `replayed` in its metadata.
        """
        _check(asked.idempotency_key)
        key = (asked.token_id, asked.idempotency_key, asked.app, asked.environment, asked.endpoint.removeprefix("/"))
        fingerprint = hashlib.sha256(_encode([asked.input, asked.release, asked.min_revision, asked.method])).digest()
        while True:
            self._forget_old()
            first = self._firsts.get(key)
            if first is None:
                return await self._run(key, fingerprint, run)
            if first.fingerprint != fingerprint:
                used = "was used within the last 10 minutes with another request; give each new request a key of its own"
                violation = Violation("Idempotency-Key", f"{asked.idempotency_key!r} {used}")
                raise InvalidField([violation], idempotency_key=asked.idempotency_key)
            ended = await asyncio.shield(first.ended)
            if isinstance(ended, PointsmanError):
                again = copy.copy(ended)
                again.metadata = {**ended.metadata, "replayed": "true"}
                raise again
            if ended is not None:
                return msgspec.structs.replace(ended, replayed=True)

    async def _run(self, key: Key, fingerprint: bytes, run: Callable[[], Awaitable[Answer]]) -> Answer:
        first = _First(fingerprint, self._clock() + MEMORY_SECONDS, asyncio.get_running_loop().create_future())
        self._firsts[key] = first
        self._bytes += first.size
        ended: Answer | PointsmanError | None = None
        try:
            answer = ended = await run()
        except (StepFailed, StepTimeout) as error:
            ended = error
            raise
        else:
            return answer
        finally:
            first.ended.set_result(ended)
            if ended is None:
                self._forget(key)
            elif isinstance(ended, Answer):
                self._bytes -= first.size
                first.size += len(_encode(ended.output))
                self._bytes += first.size
                self._forget_old()

    def _forget_old(self) -> None:
        """What is too old, and the oldest of what is too much; those that still run stay."""
        now = self._clock()
        while self._firsts:
            key, first = next(iter(self._firsts.items()))
            too_much = len(self._firsts) > MAX_REMEMBERED or self._bytes > MAX_REMEMBERED_BYTES
            if not first.ended.done() or not (too_much or first.until < now):
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self._bytes -= self._firsts.pop(key).size


def _check(key: str) -> None:
    if len(key) > MAX_KEY_CHARS or not key.isprintable():
        shown = f"{key[:40]!r} must be 1 to {MAX_KEY_CHARS} printable characters; a UUID is a good one"
        raise InvalidField([Violation("Idempotency-Key", shown)])
