"""How environments treat staleness, as the control plane keeps it and tells it to gateways."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import grpc.aio
import pytest

from control_plane.hub import Hub
from control_plane.model import StaleAction
from control_plane.service.calls import Call, utc_now
from control_plane.service.environments import EnvironmentChange, Environments
from control_plane.storage import open_store
from pointsman.errors import InvalidField
from pointsman.v1 import environments_pb2, gateways_pb2_grpc
from pointsman.v1 import gateways_pb2 as pb
from tests.clients import OWN_CONNECTION, control_plane_client, refused
from tests.processes import start_control_plane

ANN = Call(actor="ann")
REFUSE = EnvironmentChange(max_staleness=timedelta(seconds=30), stale_action=StaleAction.REFUSE)
NO_LIMIT = EnvironmentChange(max_staleness=timedelta(0))


class Plane:
    def __init__(self, store) -> None:
        self.store, self.hub, self.environments = store, Hub(store), Environments(store, utc_now)

    async def revision(self) -> int:
        return await self.store.read(lambda tx: tx.revision())

    async def told(self, since: int = 0) -> dict:
        """What gateways are told, by environment."""
        await self.hub.refresh()
        policies = self.hub.policies_newer_than(since)
        return {p.environment: (p.max_staleness and p.max_staleness.total_seconds(), p.stale_action.name) for p in policies}


@pytest.fixture
async def plane(tmp_path):
    store = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
    yield Plane(store)
    await store.close()


async def test_a_new_policy_is_told_at_a_revision_and_a_new_description_is_not(plane):
    changed = await plane.environments.update("production", REFUSE, ANN)
    assert (changed.max_staleness, changed.stale_action, await plane.revision()) == (timedelta(seconds=30), StaleAction.REFUSE, 1)
    assert await plane.environments.get("production") == changed
    for no_change in (REFUSE, EnvironmentChange(description="What users get now."), EnvironmentChange(stale_action=StaleAction.REFUSE)):
        await plane.environments.update("production", no_change, ANN)
    assert await plane.revision() == 1
    await plane.environments.update("production", EnvironmentChange(max_staleness=timedelta(seconds=5)), ANN)
    assert await plane.told(since=1) == {"production": (5.0, "REFUSE")}
    assert plane.hub.shortest_staleness_seconds == 5
    unlimited = await plane.environments.update("production", NO_LIMIT, ANN)
    assert (unlimited.max_staleness, unlimited.description) == (None, "What users get now.")
    assert await plane.told(since=2) == {"production": (None, "REFUSE")}
    assert plane.hub.shortest_staleness_seconds == float("inf")


async def test_a_dry_run_and_a_limit_that_is_too_short_change_nothing(plane):
    await plane.environments.update("production", REFUSE, Call(actor="ann", validate_only=True))
    for short in (timedelta(microseconds=1), timedelta(seconds=0.999)):
        with pytest.raises(InvalidField, match=r"max_staleness: .* is less than 1s"):
            await plane.environments.update("production", EnvironmentChange(max_staleness=short), ANN)
        with pytest.raises(InvalidField):
            await plane.environments.create("canary", EnvironmentChange(max_staleness=short), ANN)
    assert await plane.revision() == 0


async def test_a_repeat_is_answered_as_the_first_was_and_changes_nothing(plane):
    call = Call(actor="ann", request_id=str(uuid.uuid4()), fingerprint="f")
    first = await plane.environments.update("production", REFUSE, call)
    await plane.environments.update("production", NO_LIMIT, ANN)
    assert await plane.environments.update("production", REFUSE, call) == first
    assert (await plane.environments.get("production")).max_staleness is None


async def test_an_environment_that_is_made_anew_starts_without_a_limit(plane):
    await plane.environments.create("canary", REFUSE, ANN)
    assert await plane.told() == {"canary": (30.0, "REFUSE")}
    assert (await plane.environments.delete("canary", ANN, force=False)).revision == 0
    assert await plane.told(since=1) == {"canary": (None, "SERVE")}
    made = await plane.environments.create("canary", EnvironmentChange(), ANN)
    assert (made.max_staleness, made.stale_action) == (None, StaleAction.SERVE)
    assert (await plane.environments.get("canary")).max_staleness is None


async def policies_of(updates, wanted: int) -> list[tuple[str, float, str]]:
    """Of the first update that has so many."""
    async with asyncio.timeout(10):
        while len(found := (await updates.read()).update.staleness_policies) != wanted:
            pass
    name = environments_pb2.Environment.StaleAction.Name
    return sorted((p.environment, p.max_staleness.ToTimedelta().total_seconds(), name(p.stale_action)) for p in found)


async def test_gateways_are_told_all_policies_first_and_then_what_is_new(tmp_path):
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane:

        async def update(environment: str, seconds: float, action: str = "FLAG") -> None:
            request = environments_pb2.UpdateEnvironmentRequest(environment=environment, stale_action=action)
            request.max_staleness.FromTimedelta(timedelta(seconds=seconds))
            await plane.environments.UpdateEnvironment(request)

        await update("production", 600)
        await update("staging", 60, "REFUSE")
        await update("development", 6)
        async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
            hello = pb.SyncRequest.Hello(gateway_id="g1", instance_id=str(uuid.uuid4()), environments=["production", "staging"], revision=3)
            call = gateways_pb2_grpc.GatewayServiceStub(channel).Sync()
            await call.write(pb.SyncRequest(hello=hello))
            # Also to one that has applied the revision already: it may have done so before it knew of policies.
            assert await policies_of(call, 2) == [("production", 600, "FLAG"), ("staging", 60, "REFUSE")]
            await update("staging", 0)
            assert await policies_of(call, 1) == [("staging", 0, "FLAG")]
            # Within 1 s it is spoken to thrice and more, where a word comes every 5 s else.
            await update("production", 1)
            assert await policies_of(call, 1) == [("production", 1, "FLAG")]
            async with asyncio.timeout(4):
                for _ in range(4):
                    await call.read()
            call.cancel()
        short = environments_pb2.UpdateEnvironmentRequest(environment="production")
        short.max_staleness.FromTimedelta(timedelta(seconds=0.5))
        refusal = await refused(plane.environments.UpdateEnvironment(short))
        assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ("max_staleness",))
