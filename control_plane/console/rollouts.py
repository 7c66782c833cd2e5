"""Who serves what was deployed, looked at as it happens."""

from __future__ import annotations

import time
from collections import OrderedDict

import msgspec

from control_plane.console.parts import Parts
from control_plane.model import Binding, Rollout

# A healthy gateway flips within milliseconds; who takes longer is followed on the next page.
ROLLOUT_SECONDS = 0.25
MAX_REMEMBERED = 1000
MAX_NAMED = 50


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

    async def look(self, binding: Binding, wait_seconds: float = 0.0, *, watched: bool = False) -> Progress:
        """Who serves the binding. Comes back as soon as all do, at the latest after the wait.

        Only one who `watched` since before the last gateway applied it can say how long that took.
        """
        assert binding.deployment is not None, "only what is live is rolled out"
        since_commit = (self._parts.clock() - binding.deployment.create_time).total_seconds()
        started = time.monotonic() - since_commit
        rollout = await self._parts.gateways.rollout([binding], wait_seconds, started=started)
        if watched:
            self.took(rollout)
        return Progress(rollout, self._took.get(rollout.revision) if not rollout.pending else None)
