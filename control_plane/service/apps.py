"""Apps and their drafts."""

from __future__ import annotations

from datetime import datetime

import msgspec

from control_plane.model import App, Draft, digest_of
from control_plane.service.calls import Call, Clock, once
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import AppExists, AppNotFound, RevisionConflict, TooLarge
from pointsman.rules import MAX_SNAPSHOT_BYTES


class DraftInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A draft, the digest a release of it would have, and whether that differs from the app's newest release."""

    config: bytes
    version: int
    update_time: datetime | None
    digest: str
    has_changes: bool


def check_size(config: bytes) -> None:
    """Raises TooLarge when the serialised config is over the limit of a snapshot."""
    if len(config) > MAX_SNAPSHOT_BYTES:
        raise TooLarge("The serialised config", limit=MAX_SNAPSHOT_BYTES, given=len(config))


async def find_app(tx: ReadTransaction, app: str) -> App:
    """The app, or AppNotFound with near ids."""
    found = await tx.app(app)
    if found is None:
        raise AppNotFound(app, await tx.app_ids())
    return found


class Apps:
    """The use cases of AppService."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, app: str, description: str, call: Call) -> App:
        """A new app with an empty draft. Raises AppExists."""
        now = self._clock()
        created = App(app=app, description=description, create_time=now, created_by=call.actor)

        async def work(tx: Transaction) -> App:
            async def create() -> App:
                if await tx.app(app) is not None:
                    raise AppExists(app)
                await tx.insert_app(created)
                return created

            return await once(tx, call, now, App, create)

        return await self._store.write(work, dry_run=call.validate_only)

    async def get(self, app: str) -> App:
        """One app. Raises AppNotFound."""
        return await self._store.read(lambda tx: find_app(tx, app))

    async def list(self, request: PageRequest) -> Page[App]:
        """Apps, newest first."""
        after = str(*request.after())
        apps = await self._store.read(lambda tx: tx.apps(after=after, limit=request.limit + 1))
        return request.page(apps, lambda app: (app.app,))

    async def draft(self, app: str) -> DraftInfo:
        """The draft. Raises AppNotFound."""

        async def work(tx: ReadTransaction) -> DraftInfo:
            await find_app(tx, app)
            draft = await tx.draft(app)
            newest = await tx.releases(app, after="", limit=1)
            digest = digest_of(draft.config)
            return DraftInfo(
                config=draft.config,
                version=draft.version,
                update_time=draft.update_time,
                digest=digest,
                has_changes=draft.version > 0 and (not newest or newest[0].digest != digest),
            )

        return await self._store.read(work)

    async def update_draft(self, app: str, config: bytes, expected_version: int | None, call: Call) -> App:
        """Replaces the draft by a config that was checked. Raises AppNotFound, RevisionConflict, TooLarge."""
        check_size(config)
        now = self._clock()

        async def work(tx: Transaction) -> App:
            async def update() -> App:
                found = await find_app(tx, app)
                if expected_version is not None and expected_version != found.draft_version:
                    raise RevisionConflict(
                        f"The draft of app {app!r} is at version {found.draft_version}, not {expected_version}: someone else changed it. "
                        "Read it again, then decide again.",
                        app=app,
                        expected=expected_version,
                        current=found.draft_version,
                    )
                version = found.draft_version + 1
                await tx.replace_draft(app, Draft(config=config, version=version, update_time=now))
                return msgspec.structs.replace(found, draft_version=version, draft_update_time=now)

            return await once(tx, call, now, App, update)

        return await self._store.write(work, dry_run=call.validate_only)
