"""Work that waits for its turn to write, and how work that may await nothing foreign is driven. Shared by every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from control_plane.storage.base import Transaction

T = TypeVar("T")
FOREIGN = "a transaction may await nothing but its own methods"


@dataclass(slots=True)
class Job:
    """One call of Store.write."""

    work: Callable[[Transaction], Awaitable[Any]]
    dry_run: bool
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        """Gives the verdict to the caller, if it still waits."""
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


def run_to_end(work: Awaitable[T]) -> T:
    """Runs a coroutine that awaits nothing but a transaction's methods, which never wait, without an event loop.

    Raises:
        RuntimeError: when it awaits anything else.
    """
    coroutine = cast("Coroutine[Any, Any, T]", work)
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(FOREIGN)
