"""Who serves what was deployed, looked at as it happens."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from control_plane.console.pages import server_sent
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit
from control_plane.model import Binding, Rollout

# A healthy gateway flips within milliseconds; who takes longer is followed on the next page.
ROLLOUT_SECONDS = 0.25
MAX_REMEMBERED = 1000
MAX_NAMED = 50
# How late the live view may be.
LOOK_SECONDS = 0.2
# A browser connects again by itself; nothing stays open for ever.
STREAM_SECONDS = 600.0


class Progress(msgspec.Struct, frozen=True):
    """A rollout, and how long it took to the last gateway, where that was seen here."""

    rollout: Rollout
    took_seconds: float | None

    @property
    def done(self) -> bool:
        """Whether every gateway has answered, one way or the other."""
        return not self.rollout.pending


class Rollouts:
    """Looks at rollouts, and remembers how long the latest ones took."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._took: OrderedDict[int, float] = OrderedDict()

    def took(self, rollout: Rollout) -> None:
        """Remembers a rollout that is complete; the first time counts."""
        if rollout.total and not rollout.pending and rollout.revision not in self._took:
            self._took[rollout.revision] = rollout.seconds
            if len(self._took) > MAX_REMEMBERED:
                self._took.popitem(last=False)

    async def look(self, bindings: Sequence[Binding], wait_seconds: float = 0.0, *, watched: bool = False) -> Progress:
        """Who serves all of these bindings. Comes back as soon as all gateways do, at the latest after the wait.

        Only one who `watched` since before the last gateway applied it can say how long that took.
        """
        committed = max(binding.deployment.create_time for binding in bindings if binding.deployment is not None)
        started = time.monotonic() - (self._parts.clock() - committed).total_seconds()
        rollout = await self._parts.gateways.rollout(bindings, wait_seconds, started=started)
        if watched:
            self.took(rollout)
        return Progress(rollout, self._took.get(rollout.revision) if not rollout.pending else None)

    async def events(self, visit: Visit, find: Callable[[], Awaitable[Sequence[Binding]]]) -> AsyncIterator[str]:
        """Server-sent events about the bindings that `find` gives, each with the part of the page that changes, until all have answered."""
        told, watched, ends = "", False, time.monotonic() + STREAM_SECONDS
        while not self._parts.hub.closing and time.monotonic() < ends:
            bindings = await find()
            if not bindings:
                break
            progress = await self.look(bindings, LOOK_SECONDS if told else 0.0, watched=watched)
            watched = not progress.done
            shown = visit.fragment("_rollout.html", progress=progress, serves=served(bindings), max_named=MAX_NAMED)
            if shown != told:
                told = shown
                yield server_sent("rollout", shown)
            if progress.done:
                break
        # Else the browser would connect again.
        yield server_sent("end", "")


def served(bindings: Sequence[Binding]) -> str:
    """What a gateway serves that is on all of them: the release, where there is one."""
    first = bindings[0].deployment
    return first.release if len(bindings) == 1 and first is not None else f"all {len(bindings)} releases"
