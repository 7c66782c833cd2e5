"""Environments: the names that traffic asks for."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from control_plane.model import Environment, StaleAction, StalenessPolicy
from control_plane.service.calls import Call, Clock, once
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import EnvironmentExists, EnvironmentInUse, EnvironmentNotFound, InvalidField, Violation

MIN_MAX_STALENESS = timedelta(seconds=1)
NEVER_STALE = timedelta(0)


class DeletedEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted, and the revision at which its bindings went (0: it had none)."""

    environment: Environment
    revision: int


async def find_environment(tx: ReadTransaction, environment: str) -> Environment:
    """The environment, or EnvironmentNotFound with near ids."""
    found = await tx.environment(environment)
    if found is None:
        raise EnvironmentNotFound(environment, await tx.environment_ids())
    return found


class EnvironmentChange(msgspec.Struct, frozen=True, kw_only=True):
    """What shall change; None is left as it is. A `max_staleness` of 0: never stale."""

    description: str | None = None
    max_staleness: timedelta | None = None
    stale_action: StaleAction | None = None

    def applied_to(self, found: Environment) -> Environment:
        """The environment with the change made."""
        limit = found.max_staleness if self.max_staleness is None else self.max_staleness
        return msgspec.structs.replace(
            found,
            description=found.description if self.description is None else self.description,
            max_staleness=None if limit == NEVER_STALE else limit,
            stale_action=self.stale_action or found.stale_action,
        )


class Environments:
    """The use cases of EnvironmentService."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, environment: str, change: EnvironmentChange, call: Call) -> Environment:
        """A new environment with nothing bound. Raises EnvironmentExists, InvalidField."""
        _check(change)
        now = self._clock()
        new = Environment(environment=environment, description="", create_time=now, created_by=call.actor)
        created = change.applied_to(new)

        async def work(tx: Transaction) -> Environment:
            async def create() -> Environment:
                if await tx.environment(environment) is not None:
                    raise EnvironmentExists(environment)
                await tx.insert_environment(created)
                await _tell_gateways(tx, new, created)
                return created

            return await once(tx, call, now, Environment, create)

        return await self._store.write(work, dry_run=call.validate_only)

    async def get(self, environment: str) -> Environment:
        """One environment. Raises EnvironmentNotFound."""
        return await self._store.read(lambda tx: find_environment(tx, environment))

    async def list(self, request: PageRequest) -> Page[Environment]:
        """Environments, newest first."""
        after = str(*request.after())
        environments = await self._store.read(lambda tx: tx.environments(after=after, limit=request.limit + 1))
        return request.page(environments, lambda environment: (environment.environment,))

    async def update(self, environment: str, change: EnvironmentChange, call: Call) -> Environment:
        """Changes what shall change. Raises EnvironmentNotFound, InvalidField."""
        _check(change)
        now = self._clock()

        async def work(tx: Transaction) -> Environment:
            async def update() -> Environment:
                found = await find_environment(tx, environment)
                changed = change.applied_to(found)
                await tx.update_environment(changed)
                await _tell_gateways(tx, found, changed)
                return changed

            return await once(tx, call, now, Environment, update)

        return await self._store.write(work, dry_run=call.validate_only)

    async def delete(self, environment: str, call: Call, *, force: bool) -> DeletedEnvironment:
        """Deletes it; with force also unbinds what is bound there. Raises EnvironmentNotFound, EnvironmentInUse."""
        now = self._clock()

        async def work(tx: Transaction) -> DeletedEnvironment:
            async def delete() -> DeletedEnvironment:
                found = await find_environment(tx, environment)
                apps = await tx.bound_apps(environment)
                if apps and not force:
                    raise EnvironmentInUse(environment, apps)
                revision = await tx.next_revision() if apps else 0
                for app in apps:
                    await tx.unbind(app, environment, revision=revision, unbind_time=now)
                await tx.delete_environment(environment)
                # One that is made anew under this name starts without a limit, on every gateway.
                await _tell_gateways(tx, found, msgspec.structs.replace(found, max_staleness=None, stale_action=StaleAction.SERVE))
                return DeletedEnvironment(environment=found, revision=revision)

            return await once(tx, call, now, DeletedEnvironment, delete)

        return await self._store.write(work, dry_run=call.validate_only)


def _check(change: EnvironmentChange) -> None:
    limit = change.max_staleness
    if limit is not None and NEVER_STALE < limit < MIN_MAX_STALENESS:
        given = f"{limit.total_seconds():g}s is less than {MIN_MAX_STALENESS.total_seconds():g}s; give at least that, or 0 for no limit"
        raise InvalidField([Violation("max_staleness", given)])


async def _tell_gateways(tx: Transaction, before: Environment, after: Environment) -> None:
    """A new policy is a change that gateways see, at a revision of its own; a new description is not."""
    if (before.max_staleness, before.stale_action) == (after.max_staleness, after.stale_action):
        return
    await tx.set_staleness_policy(
        StalenessPolicy(
            environment=after.environment,
            revision=await tx.next_revision(),
            max_staleness=after.max_staleness,
            stale_action=after.stale_action,
        )
    )
