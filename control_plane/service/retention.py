"""Which releases need not be kept, and the one way in which they go."""

from __future__ import annotations

import msgspec

from control_plane.model import Pruning
from control_plane.service.apps import find_app
from control_plane.service.calls import Call, Clock, once
from control_plane.service.releases import ReleaseInfo, describe
from control_plane.storage.base import Store, Transaction

DEFAULT_KEEP_DEPLOYED = 10
# In one call, which is one transaction: others wait for it.
MAX_PRUNED = 500


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What went, oldest first, and how many bytes of snapshots with it; whether there is more that could go."""

    releases: list[ReleaseInfo]
    freed_bytes: int
    more: bool


class Retention:
    """The use case of PruneReleases."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def prune(self, app: str, keep_newest: int, keep_deployed: int | None, call: Call) -> Pruned:
        """Deletes releases that are old and out of use, as Store.prunable_releases says, and keeps a record of each. Raises AppNotFound."""
        now = self._clock()
        kept = DEFAULT_KEEP_DEPLOYED if keep_deployed is None else keep_deployed

        async def work(tx: Transaction) -> Pruned:
            async def prune() -> Pruned:
                await find_app(tx, app)
                found = await tx.prunable_releases(app, keep_newest=keep_newest, keep_deployed=kept, limit=MAX_PRUNED + 1)
                going = await describe(tx, found[:MAX_PRUNED])
                prunings = [
                    Pruning(
                        app=app,
                        tag=release.tag,
                        digest=release.digest,
                        size_bytes=release.size_bytes,
                        prune_time=now,
                        pruned_by=call.actor,
                    )
                    for release in (info.release for info in going)
                ]
                freed = await tx.prune_releases(prunings) if prunings else 0
                return Pruned(releases=going, freed_bytes=freed, more=len(found) > MAX_PRUNED)

            return await once(tx, call, now, Pruned, prune)

        return await self._store.write(work, dry_run=call.validate_only)
