"""What a stream tells of an execution as it goes, and the bounded way from the runner to a reader that may be slow.

An event's `data` is the message of TriggerStreamResponse by the proto JSON mapping, so that both doors tell the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

# Of one execution: some hundred steps at most, so only text can be more, and text is joined.
JOIN_DELTAS_BEYOND = 64


class Event(msgspec.Struct):
    """`name` is the field of TriggerStreamResponse, such as `step_started`. With `stale_seconds` the head of the answer says so."""

    name: str
    data: dict[str, Any]
    stale_seconds: int | None = None

    @property
    def dotted(self) -> str:
        """As SSE and the contract name it: `step.started`."""
        return self.name.replace("_", ".", 1)


Emit = Callable[[Event], None]


def step_started(stage: str, step: str, kind: str) -> Event:
    """A step begins."""
    return Event("step_started", {"stage": stage, "step": step, "kind": kind})


def step_finished(stage: str, step: str, outcome: str, *, attempts: int, seconds: float, error: str) -> Event:
    """A step has ended."""
    data: dict[str, Any] = {"stage": stage, "step": step, "outcome": outcome, "attempts": attempts, "duration": f"{seconds:.6f}s"}
    return Event("step_finished", data | ({"error": error} if error else {}))


def output_delta(step: str, text: str) -> Event:
    """Text that a model has written."""
    return Event("output_delta", {"step": step, "text": text})


class Events:
    """A queue with one reader. When it is slow, the pieces of a step's text become one event, as long as only text comes between them."""

    def __init__(self) -> None:
        self._waiting: list[Event] = []
        self._more: dict[str, tuple[Event, list[str]]] = {}
        """By step, an event that waits, and text that goes on with it."""
        self._reader: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """Never waits."""
        if event.name != "output_delta":
            self._join()
            self._waiting.append(event)
        elif (known := self._more.get(event.data["step"])) is not None:
            known[1].append(event.data["text"])
        else:
            if len(self._waiting) > JOIN_DELTAS_BEYOND:
                self._more[event.data["step"]] = (event, [event.data["text"]])
            self._waiting.append(event)
        self._wake()

    async def take(self) -> list[Event]:
        """All that wait, so that they can be written at once; waits for the first."""
        if not self._waiting:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self.taken()

    def taken(self) -> list[Event]:
        """All that wait, now."""
        self._join()
        taken, self._waiting = self._waiting, []
        return taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def _join(self) -> None:
        for event, parts in self._more.values():
            event.data["text"] = "".join(parts)
        self._more.clear()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
