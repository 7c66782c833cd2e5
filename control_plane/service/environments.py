"""Environments: the names that traffic asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from control_plane.model import Environment
from control_plane.service.calls import Call, Clock, once
from control_plane.service.paging import Page, PageRequest
from control_plane.storage.base import ReadTransaction, Store, Transaction
from pointsman.errors import EnvironmentExists, EnvironmentInUse, EnvironmentNotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedEnvironment:
    """What was deleted, and the revision at which its bindings went (0: it had none)."""

    environment: Environment
    revision: int


async def find_environment(tx: ReadTransaction, environment: str) -> Environment:
    """The environment, or EnvironmentNotFound with near ids."""
    found = await tx.environment(environment)
    if found is None:
        raise EnvironmentNotFound(environment, await tx.environment_ids())
    return found


class Environments:
    """The use cases of EnvironmentService."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, environment: str, description: str, call: Call) -> Environment:
        """A new environment with nothing bound. Raises EnvironmentExists."""
        now = self._clock()
        created = Environment(environment=environment, description=description, create_time=now, created_by=call.actor)

        async def work(tx: Transaction) -> Environment:
            async def create() -> Environment:
                if await tx.environment(environment) is not None:
                    raise EnvironmentExists(environment)
                await tx.insert_environment(created)
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

    async def update(self, environment: str, description: str | None, call: Call) -> Environment:
        """Changes what is not None. Raises EnvironmentNotFound."""
        now = self._clock()

        async def work(tx: Transaction) -> Environment:
            async def update() -> Environment:
                found = await find_environment(tx, environment)
                if description is None:
                    return found
                changed = replace(found, description=description)
                await tx.update_environment(changed)
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
                    await tx.set_binding(app, environment, revision=revision, deployment_id=None)
                await tx.delete_environment(environment)
                return DeletedEnvironment(environment=found, revision=revision)

            return await once(tx, call, now, DeletedEnvironment, delete)

        return await self._store.write(work, dry_run=call.validate_only)
