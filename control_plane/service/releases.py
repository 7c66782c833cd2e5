"""Releases: immutable snapshots of an app under a tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
import structlog

from control_plane.model import Release, ReleaseState, digest_of
from control_plane.service.apps import check_size, find_app
from control_plane.service.calls import Call, Clock, once, recall, record
from control_plane.service.deployments import Deployed, Deployments, Options, find_release
from control_plane.service.environments import find_environment
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import InvalidField, PointsmanError, ReleaseConflict, ReleaseNotFound, StoreUnavailable, Violation

log = structlog.get_logger()


class ReleaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A release with what is derived: its state and where it is bound now. `snapshot` only when it was asked for."""

    release: Release
    state: ReleaseState
    environments: list[str]
    snapshot: bytes | None = None


async def describe(tx: ReadTransaction, releases: Sequence[Release]) -> list[ReleaseInfo]:
    """Derives the states of releases of one app."""
    if not releases:
        return []
    app, tags = releases[0].app, [release.tag for release in releases]
    live = await tx.live_environments(app, tags)
    ever = await tx.ever_live(app, [tag for tag in tags if tag not in live])
    return [
        ReleaseInfo(
            release=release,
            state=_state(bound=release.tag in live, once_bound=release.tag in ever),
            environments=live.get(release.tag, []),
        )
        for release in releases
    ]


def _state(*, bound: bool, once_bound: bool) -> ReleaseState:
    if bound:
        return ReleaseState.DEPLOYED
    return ReleaseState.SUPERSEDED if once_bound else ReleaseState.READY


class Releases:
    """The use cases of ReleaseService, and FetchSnapshot."""

    def __init__(self, store: Store, deployments: Deployments, clock: Clock) -> None:
        self._store = store
        self._deployments = deployments
        self._clock = clock

    async def create(
        self,
        *,
        app: str,
        tag: str,
        description: str,
        config: bytes | None,
        deploy_to: str,
        call: Call,
        options: Options | None = None,
    ) -> tuple[ReleaseInfo, Deployed | None]:
        """Freezes a checked config, or the draft, under a tag; then deploys it, with the options, when deploy_to names an environment.

        The release is committed before gateways are asked to prepare it, since they fetch it by digest; when they reject it, it
        stays, READY, and the error says so. Raises AppNotFound, EnvironmentNotFound, InvalidField, ReleaseConflict, TooLarge, and
        what Deployments.deploy raises.
        """
        if config is not None:
            check_size(config)
        now = self._clock()

        async def work(tx: Transaction) -> Release:
            async def create() -> Release:
                return await self._freeze(tx, app, tag, description, config, call.actor, now, deploy_to)

            if not deploy_to:
                return await once(tx, call, now, Release, create)
            # With deploy_to the request is remembered with its deployment, which comes after.
            repeated = await recall(tx, call) is not None
            release = await tx.release(app, tag) if repeated else None
            if release is None:
                release = await create()
                await record(tx, call, now)
            return release

        release = await self._store.write(work, dry_run=call.validate_only)
        deployed = None
        if deploy_to and not call.validate_only:
            try:
                deployed = await self._deployments.deploy(app, deploy_to, tag, options or Options(), call)
            except PointsmanError as error:
                error.message = f"Release {tag!r} was created, but not deployed: {error.message}"
                raise
        if call.validate_only:
            return ReleaseInfo(release=release, state=ReleaseState.READY, environments=[]), None
        return (await self._store.read(lambda tx: describe(tx, [release])))[0], deployed

    @staticmethod
    async def _freeze(
        tx: Transaction, app: str, tag: str, description: str, config: bytes | None, actor: str, now: datetime, deploy_to: str
    ) -> Release:
        await find_app(tx, app)
        if deploy_to:
            await find_environment(tx, deploy_to)
        if config is None:
            draft = await tx.draft(app)
            if draft.version == 0:
                empty = f"absent, and the draft of app {app!r} is still empty; give a config, or fill the draft with UpdateDraft first"
                raise InvalidField([Violation("config", empty)], app=app)
            config = draft.config
        digest = digest_of(config)
        existing = await tx.release(app, tag)
        if existing is not None:
            if existing.digest != digest:
                raise ReleaseConflict(app, tag, digest, existing.digest)
            return existing
        pruned = await tx.pruning(app, tag)
        if pruned is not None:
            raise ReleaseConflict(app, tag, digest, pruned.digest, pruned=True)
        release = Release(
            app=app, tag=tag, description=description, digest=digest, size_bytes=len(config), create_time=now, created_by=actor
        )
        await tx.insert_snapshot(digest, config)
        await tx.insert_release(release)
        return release

    async def get(self, app: str, tag: str, *, with_snapshot: bool) -> ReleaseInfo:
        """One release. Raises AppNotFound, ReleaseNotFound, StoreUnavailable when its bytes are damaged."""

        async def work(tx: ReadTransaction) -> ReleaseInfo:
            await find_app(tx, app)
            release = await find_release(tx, app, tag)
            info = (await describe(tx, [release]))[0]
            if not with_snapshot:
                return info
            snapshot = await self._verified(tx, release.digest)
            return ReleaseInfo(release=release, state=info.state, environments=info.environments, snapshot=snapshot)

        return await self._store.read(work)

    async def configs(self, app: str, *tags: str) -> list[bytes]:
        """The bytes of these releases, of the draft for an empty tag, all of one moment. Raises as get."""

        async def work(tx: ReadTransaction) -> list[bytes]:
            await find_app(tx, app)
            return [await self._config(tx, app, tag) for tag in tags]

        return await self._store.read(work)

    async def _config(self, tx: ReadTransaction, app: str, tag: str) -> bytes:
        if not tag:
            return (await tx.draft(app)).config
        return await self._verified(tx, (await find_release(tx, app, tag)).digest)

    async def list(self, app: str, request: PageRequest, *, matching: str = "") -> Page[ReleaseInfo]:
        """Releases of the app, newest first, without their bytes; only those that `matching` is found in. Raises AppNotFound."""
        filters = (app, matching) if matching else (app,)
        after = str(*request.after(*filters))

        async def work(tx: ReadTransaction) -> list[ReleaseInfo]:
            await find_app(tx, app)
            return await describe(tx, await tx.releases(app, after=after, limit=request.limit + 1, matching=matching))

        return request.page(await self._store.read(work), lambda info: (info.release.tag,), *filters)

    async def newest_tags(self, each: int) -> Mapping[str, Sequence[str]]:
        """Of every app that has releases, at most so many of their tags, newest first."""
        return await self._store.read(lambda tx: tx.newest_tags(each=each))

    async def snapshot(self, digest: str) -> bytes:
        """The bytes with this digest. Raises ReleaseNotFound, StoreUnavailable when they are damaged."""
        return await self._store.read(lambda tx: self._verified(tx, digest))

    async def _verified(self, tx: ReadTransaction, digest: str) -> bytes:
        data = await tx.snapshot(digest)
        if data is None:
            raise ReleaseNotFound("", digest)
        actual = digest_of(data)
        if actual != digest:
            log.error("a stored snapshot is damaged", digest=digest, actual=actual, store=self._store.location)
            raise StoreUnavailable(
                f"The stored snapshot {digest} is damaged: it hashes to {actual}. It is never served; restore the store from a backup.",
                store=self._store.location,
                cause="damaged snapshot",
                digest=digest,
                actual=actual,
            )
        return data
