"""How long ago the control plane was last heard, and which environments are stale for it.

While all is fresh a trigger looks at one empty mapping. A timer fills it when a limit has passed, the next word empties it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from data_plane.holder import Holder
from data_plane.table import Policy, StaleAction
from pointsman.errors import Behind

# A timer may come a little early.
SHORTEST_TIMER_SECONDS = 0.01

log = structlog.get_logger()


class Staleness:
    """Judges the holder's table. `clock` gives seconds and never goes back."""

    def __init__(self, holder: Holder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.stale: Mapping[str, Policy] = {}
        """The policies of the environments that are stale now, by environment; replaced, never changed."""
        self._holder = holder
        self.on_change: Callable[[], None] = lambda: None
        """Called when `stale` has changed."""
        self._clock = clock
        self._heard_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float | None:
        """How long ago the control plane was last heard; None when never, as far as is known."""
        return None if self._heard_at is None else self._clock() - self._heard_at

    @property
    def unready(self) -> list[str]:
        """Environments for which this gateway shall not be ready: stale, of that action, and bound here."""
        if not self.stale:
            return []
        table = self._holder.table
        bound = {environment for _, environment in (*table.active, *table.rejected)}
        return sorted(name for name, policy in self.stale.items() if policy.action is StaleAction.UNREADY and name in bound)

    @property
    def ready(self) -> bool:
        """Whether to be sent traffic: something is served for everything that is bound, and nothing that is stale says otherwise."""
        return self._holder.table.ready and not self.unready

    def heard(self) -> None:
        """The control plane has said something."""
        self._heard_at = self._clock()
        if self.stale:
            self.check()

    def resume(self, seconds: float) -> None:
        """After a start from disk: the process before this one heard of the control plane so long ago."""
        self._heard_at = self._clock() - seconds
        self.check()

    def check(self) -> None:
        """Looks anew at what is stale: when the table has changed, and when a limit passes."""
        age = self.seconds or 0.0
        policies = self._holder.table.policies.values()
        stale = {policy.environment: policy for policy in policies if age > policy.max_staleness_seconds}
        self._wake_in(min((p.max_staleness_seconds - age for p in policies if p.environment not in stale), default=None))
        if stale.keys() != self.stale.keys():
            log.warning(
                "the control plane was not heard for too long" if stale else "no environment is stale any more", stale=sorted(stale)
            )
        changed, self.stale = stale != self.stale, stale
        if changed:
            self.on_change()

    def admit(self, environment: str) -> int | None:
        """What a trigger in the environment is to know: how stale its answer is, in seconds; None when it need not be told.

        Raises:
            Behind: the environment refuses to be served stale.
        """
        policy = self.stale.get(environment)
        if policy is None:
            return None
        seconds = int(self.seconds or 0)
        if policy.action is StaleAction.REFUSE:
            raise Behind(
                f"This gateway last heard of the control plane {seconds} s ago, and environment {environment!r} is not served after "
                f"{policy.max_staleness_seconds:g} s (its max_staleness); try again, or another gateway.",
                environment=environment,
                staleness_seconds=seconds,
                max_staleness_seconds=f"{policy.max_staleness_seconds:g}",
            )
        return seconds if policy.action is StaleAction.FLAG else None

    def _wake_in(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(max(seconds, SHORTEST_TIMER_SECONDS), self.check)
