"""Deploy, Promote, Rollback: what may become live where, and the one way in which it does.

Each of them is a plan: a read-only function from the store to targets. A plan is made twice: once to learn what gateways must
prepare, once inside the transaction that commits it, where it decides. When the two differ the gateways are asked again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec

from control_plane.gateways import DEFAULT_WAIT_SECONDS, Gateways
from control_plane.model import Action, Binding, Deployment, Release, Rollout, Target
from control_plane.service.apps import find_app
from control_plane.service.calls import Call, Clock, once, recall
from control_plane.service.environments import find_environment
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import (
    InvalidField,
    NeverLiveHere,
    NoReleaseDeployed,
    NothingToRollBack,
    ReleaseNotFound,
    RevisionConflict,
    Violation,
)
from pointsman.ids import new_id

MAX_PREPARE_ROUNDS = 3
# Also a caller who does not want to wait gets the gateways' veto: a healthy one answers within milliseconds.
MIN_PREPARE_SECONDS = 1.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What Deploy, Promote and Rollback have in common. `wait_seconds` None is the default wait.

    Of the wait at most `rollout_seconds` are spent after the commit, for a caller that looks for itself who serves it then.
    """

    expected_revision: int | None = None
    reason: str = ""
    wait_seconds: float | None = None
    force: bool = False
    rollout_seconds: float | None = None


class PlannedBinding(msgspec.Struct, frozen=True, kw_only=True):
    """One binding as it shall be. `beneath` is what a later rollback walks back to; `current` what is there now."""

    app: str
    environment: str
    action: Action
    release: str
    digest: str
    beneath: str
    current: Binding | None

    @property
    def live(self) -> Deployment | None:
        """What is live there now."""
        return self.current.deployment if self.current else None

    @property
    def changes(self) -> bool:
        """False when this release is live there already."""
        return self.live is None or self.live.release != self.release

    @property
    def target(self) -> Target:
        """What gateways need to know of it."""
        return Target(app=self.app, environment=self.environment, release=self.release, digest=self.digest)


Plan = Callable[[ReadTransaction], Awaitable[list[PlannedBinding]]]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One target of DeployMany."""

    app: str
    environment: str
    release: str
    expected_revision: int | None


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The new entries of the history, one for each binding that changed, and all the bindings as they are then."""

    deployments: list[Deployment]
    bindings: list[Binding]


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What was committed, in the order asked for, and who serves it; no rollout for a dry run."""

    deployments: list[Deployment]
    bindings: list[Binding]
    rollout: Rollout | None

    @property
    def deployment(self) -> Deployment | None:
        """Of a change of one binding: the new entry of the history, None when nothing changed."""
        return self.deployments[0] if self.deployments else None

    @property
    def binding(self) -> Binding:
        """Of a change of one binding: how it is now."""
        return self.bindings[0]


class _PlanChanged(Exception):
    """What is to be committed is not what the gateways prepared."""


class Deployments:
    """The use cases of DeploymentService, but for the watch."""

    def __init__(self, store: Store, gateways: Gateways, clock: Clock) -> None:
        self._store = store
        self._gateways = gateways
        self._clock = clock

    async def deploy(self, app: str, environment: str, release: str, options: Options, call: Call) -> Deployed:
        """Binds a release. Raises AppNotFound, ReleaseNotFound, EnvironmentNotFound, RevisionConflict, ReleaseRejected."""
        wanted = Wanted(app=app, environment=environment, release=release, expected_revision=options.expected_revision)
        return await self.deploy_many([wanted], options, call)

    async def deploy_many(self, targets: Sequence[Wanted], options: Options, call: Call) -> Deployed:
        """Binds several releases, all or none, at one revision. Raises as deploy, and InvalidField when a binding is named twice."""
        twice = [
            f"targets[{i}]" for i, t in enumerate(targets) if any((t.app, t.environment) == (u.app, u.environment) for u in targets[:i])
        ]
        if twice:
            raise InvalidField([Violation(field, "names the same app and environment as a target before it") for field in twice])

        async def plan(tx: ReadTransaction) -> list[PlannedBinding]:
            planned = []
            for wanted in targets:
                current = await _current(tx, wanted.app, wanted.environment, wanted.expected_revision)
                found = await find_release(tx, wanted.app, wanted.release)
                planned.append(_on_top(found, wanted.environment, Action.DEPLOY, current))
            return planned

        return await self._carry_out(plan, options, call)

    async def promote(self, app: str, from_environment: str, to_environment: str, options: Options, call: Call) -> Deployed:
        """Binds what is live in one environment to another. Raises as deploy, and NoReleaseDeployed."""
        if from_environment == to_environment:
            same = f"{to_environment!r} is also from_environment; name the environment that shall get the release"
            raise InvalidField([Violation("to_environment", same)])

        async def plan(tx: ReadTransaction) -> list[PlannedBinding]:
            source = await _current(tx, app, from_environment, None)
            current = await _current(tx, app, to_environment, options.expected_revision)
            if source is None or source.deployment is None:
                raise NoReleaseDeployed(app, from_environment)
            found = await find_release(tx, app, source.deployment.release)
            return [_on_top(found, to_environment, Action.PROMOTE, current)]

        return await self._carry_out(plan, options, call)

    async def rollback(self, app: str, environment: str, to_release: str, options: Options, call: Call) -> Deployed:
        """Binds an earlier release again. Raises as deploy, and NoReleaseDeployed, NothingToRollBack, NeverLiveHere."""

        async def plan(tx: ReadTransaction) -> list[PlannedBinding]:
            current = await _current(tx, app, environment, options.expected_revision)
            if current is None or current.deployment is None:
                raise NoReleaseDeployed(app, environment)
            if to_release:
                planned = await _rollback_to(tx, current, current.deployment, to_release)
            elif (target := await _beneath(tx, current.deployment)) is None:
                raise NothingToRollBack(app, environment, current.deployment.release)
            else:
                planned = _again(target, target.beneath, current)
            # It may have been pruned.
            await find_release(tx, app, planned.release)
            return [planned]

        return await self._carry_out(plan, options, call)

    async def binding(self, app: str, environment: str) -> Binding:
        """What is live. Raises AppNotFound, EnvironmentNotFound, NoReleaseDeployed."""
        binding = await self._store.read(lambda tx: _current(tx, app, environment, None))
        if binding is None or binding.deployment is None:
            raise NoReleaseDeployed(app, environment)
        return binding

    async def bindings(self, app: str, environment: str, request: PageRequest) -> Page[Binding]:
        """What is live, newest revision first. Raises AppNotFound, EnvironmentNotFound for filters that name nothing."""
        after = request.after("bindings", app, environment, kinds=(int, str, str)) or None

        async def work(tx: ReadTransaction) -> list[Binding]:
            await check_filters(tx, app, environment)
            return await tx.bindings(app=app, environment=environment, after=after, limit=request.limit + 1)

        bindings = await self._store.read(work)
        return request.page(bindings, lambda b: (b.revision, b.app, b.environment), "bindings", app, environment)

    async def history(self, app: str, environment: str, request: PageRequest) -> Page[Deployment]:
        """The history, newest first. Raises AppNotFound; an environment may have been deleted since."""
        after = str(*request.after("deployments", app, environment))

        async def work(tx: ReadTransaction) -> list[Deployment]:
            if app:
                await find_app(tx, app)
            found = await tx.deployments(app=app, environment=environment, after=after, limit=request.limit + 1)
            if environment and not found and not after:
                await find_environment(tx, environment)
            return found

        return request.page(await self._store.read(work), lambda d: (d.deployment_id,), "deployments", app, environment)

    async def check_filters(self, app: str, environment: str) -> None:
        """Raises AppNotFound, EnvironmentNotFound when a filter, unless empty, names nothing."""
        await self._store.read(lambda tx: check_filters(tx, app, environment))

    async def _carry_out(self, plan: Plan, options: Options, call: Call) -> Deployed:
        """Prepare, then commit, then wait for the gateways; the wait that the caller grants is for all of it."""
        wait = DEFAULT_WAIT_SECONDS if options.wait_seconds is None else options.wait_seconds
        began = time.monotonic()
        committed = None
        for _ in range(MAX_PREPARE_ROUNDS):
            prepared = None
            if not options.force and self._gateways.any_connected:
                prepared = await self._prepare(plan, call, max(wait, MIN_PREPARE_SECONDS))
            try:
                committed = await self._commit(plan, prepared, options, call)
                break
            except _PlanChanged:
                continue
        if committed is None:
            raise RevisionConflict(
                "The binding kept changing while gateways prepared for it. Read it again, then decide again.",
                expected="unchanged",
                current="changing",
            )
        rollout = None
        if not call.validate_only:
            started = time.monotonic()
            rest = wait - (started - began)
            rest = rest if options.rollout_seconds is None else min(rest, options.rollout_seconds)
            rollout = await self._gateways.rollout(committed.bindings, rest, started=started)
        return Deployed(deployments=committed.deployments, bindings=committed.bindings, rollout=rollout)

    async def _prepare(self, plan: Plan, call: Call, seconds: float) -> list[Target] | None:
        """Has the gateways get ready; what they got ready for, or None for a repeated request. Raises ReleaseRejected."""

        async def work(tx: ReadTransaction) -> list[PlannedBinding] | None:
            return None if await recall(tx, call) is not None else await plan(tx)

        planned = await self._store.read(work)
        if planned is None:
            return None
        targets = _changing(planned)
        await self._gateways.prepare(targets, seconds)
        return targets

    async def _commit(self, plan: Plan, prepared: list[Target] | None, options: Options, call: Call) -> Committed:
        now = self._clock()

        async def work(tx: Transaction) -> Committed:
            async def commit() -> Committed:
                planned = await plan(tx)
                if prepared is not None and _changing(planned) != prepared:
                    raise _PlanChanged
                return await _bind(tx, planned, options, call, now=now)

            return await once(tx, call, now, Committed, commit)

        return await self._store.write(work, dry_run=call.validate_only)


def _changing(planned: Sequence[PlannedBinding]) -> list[Target]:
    return [binding.target for binding in planned if binding.changes]


async def _bind(tx: Transaction, planned: Sequence[PlannedBinding], options: Options, call: Call, *, now: datetime) -> Committed:
    """Sets what changes, all at one revision."""
    deployments: list[Deployment] = []
    bindings: list[Binding] = []
    for wanted in planned:
        if wanted.current is not None and not wanted.changes:
            bindings.append(wanted.current)
            continue
        deployment = Deployment(
            deployment_id=new_id(),
            app=wanted.app,
            environment=wanted.environment,
            action=wanted.action,
            release=wanted.release,
            digest=wanted.digest,
            previous_release=wanted.live.release if wanted.live else "",
            revision=deployments[0].revision if deployments else await tx.next_revision(),
            actor=call.actor,
            reason=options.reason,
            create_time=now,
            forced=options.force,
            beneath=wanted.beneath,
        )
        await tx.insert_deployment(deployment)
        await tx.set_binding(wanted.app, wanted.environment, revision=deployment.revision, deployment_id=deployment.deployment_id)
        deployments.append(deployment)
        bindings.append(Binding(app=wanted.app, environment=wanted.environment, revision=deployment.revision, deployment=deployment))
    return Committed(deployments=deployments, bindings=bindings)


async def check_filters(tx: ReadTransaction, app: str, environment: str) -> None:
    """Raises AppNotFound, EnvironmentNotFound when a filter, unless empty, names nothing."""
    if app:
        await find_app(tx, app)
    if environment:
        await find_environment(tx, environment)


async def _current(tx: ReadTransaction, app: str, environment: str, expected_revision: int | None) -> Binding | None:
    """What is there now, if it is at the revision that the caller expects (0: unbound; None: any)."""
    await find_app(tx, app)
    await find_environment(tx, environment)
    binding = await tx.binding(app, environment)
    current = binding.revision if binding is not None and binding.deployment is not None else 0
    if expected_revision is not None and expected_revision != current:
        there = f"at revision {current}" if current else "unbound"
        raise RevisionConflict(
            f"App {app!r} in {environment!r} is {there}, not {f'at {expected_revision}' if expected_revision else 'unbound'}: "
            "someone else changed it. Read it again, then decide again.",
            app=app,
            environment=environment,
            expected=expected_revision,
            current=current,
        )
    return binding


async def find_release(tx: ReadTransaction, app: str, tag: str) -> Release:
    """The release, or ReleaseNotFound with near tags, or with when it was pruned."""
    release = await tx.release(app, tag)
    if release is None:
        pruned = await tx.pruning(app, tag)
        raise ReleaseNotFound(app, tag, await tx.release_tags(app), pruned=pruned.prune_time.isoformat() if pruned else "")
    return release


async def _beneath(tx: ReadTransaction, deployment: Deployment) -> Deployment | None:
    return await tx.deployment(deployment.beneath) if deployment.beneath else None


async def _rollback_to(tx: ReadTransaction, current: Binding, live: Deployment, to_release: str) -> PlannedBinding:
    """A named release: down to its newest place beneath what is live, else, if it was live here at all, on top."""
    below = live if live.release == to_release else await _beneath(tx, live)
    while below is not None and below.release != to_release:
        below = await _beneath(tx, below)
    if below is not None:
        return _again(below, below.beneath, current)
    earlier = await tx.last_deployment_of(current.app, current.environment, to_release)
    if earlier is None:
        await find_release(tx, current.app, to_release)
        raise NeverLiveHere(current.app, current.environment, to_release)
    return _again(earlier, live.deployment_id, current)


def _on_top(release: Release, environment: str, action: Action, current: Binding | None) -> PlannedBinding:
    live = current.deployment if current else None
    return PlannedBinding(
        app=release.app,
        environment=environment,
        action=action,
        release=release.tag,
        digest=release.digest,
        beneath=live.deployment_id if live else "",
        current=current,
    )


def _again(earlier: Deployment, beneath: str, current: Binding) -> PlannedBinding:
    return PlannedBinding(
        app=earlier.app,
        environment=earlier.environment,
        action=Action.ROLLBACK,
        release=earlier.release,
        digest=earlier.digest,
        beneath=beneath,
        current=current,
    )
