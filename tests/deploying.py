"""Callers that deploy, roll back and read at random, and keep a history of what they saw: for the checker of linearizability."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from pointsman.v1 import deployments_pb2, deployments_pb2_grpc
from tests.clients import OWN_CONNECTION, ControlPlane, apps_pb2, grpc, refusal_of
from tests.linearizability import LOST, Operation
from tests.sample_apps import marked

RELEASES = ("v1", "v2", "v3", "v4")
NOTHING_CHANGED = "Nothing was changed"
ENVIRONMENTS = ("staging", "production")
Histories = dict[str, list[Operation]]


def new_histories() -> Histories:
    """By environment."""
    return {environment: [] for environment in ENVIRONMENTS}


async def make_releases(plane: ControlPlane) -> None:
    """The app `shop` with its releases."""
    await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="shop"))
    for tag in RELEASES:
        await plane.create_release("shop", tag, marked(tag))


async def call_for(address: str, seed: str, histories: Histories, calls: int) -> None:
    """So many calls, one after the other, over a connection of their own."""
    async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
        caller = Caller(deployments_pb2_grpc.DeploymentServiceStub(channel), seed, histories)
        for _ in range(calls):
            await caller.call()


class Caller:
    """Calls with a seed, one after the other, and what came of each, by environment."""

    def __init__(self, stub: Any, seed: str, histories: Histories) -> None:
        self.stub = stub
        self.chance = random.Random(seed)
        self.histories = histories
        self.seen: dict[str, int] = {}
        self.calls = 0
        self.name = seed.replace(" ", ".")
        self.lost = False
        """Nobody answered the last call."""

    async def call(self) -> None:
        """One call; a deploy sometimes with what the caller has last seen for expected_revision."""
        environment = self.chance.choice(tuple(self.histories))
        kind = self.chance.choices(("deploy", "rollback", "get"), (5, 3, 4))[0]
        wanted = self.chance.choice(RELEASES) if kind == "deploy" else ""
        expected = self.seen.get(environment, 0) if kind == "deploy" and self.chance.random() < 0.3 else None
        self.lost = False
        self.calls += 1
        start = time.monotonic()
        try:
            binding = await self._send(kind, environment, wanted, expected)
            found = {"revision": binding.revision, "release": binding.release}
        except grpc.aio.AioRpcError as error:
            found = self._refused(kind, error)
        if found is None:
            return
        end = math.inf if found.get("outcome") == LOST else time.monotonic()
        self.seen[environment] = found.get("revision", 0) or self.seen.get(environment, 0)
        self.histories[environment].append(
            Operation(kind=kind, start=start, end=end, wanted=wanted, expected=expected, call=self._call_name, **found)
        )

    @property
    def _call_name(self) -> str:
        """Whom the history names as the actor of this very call."""
        return f"{self.name}.{self.calls}"

    async def _send(self, kind: str, environment: str, wanted: str, expected: int | None) -> Any:
        metadata = (("x-actor", self._call_name),)
        if kind == "get":
            request = deployments_pb2.GetBindingRequest(app="shop", environment=environment)
            return (await self.stub.GetBinding(request, timeout=10)).binding
        if kind == "rollback":
            back = deployments_pb2.RollbackRequest(app="shop", environment=environment)
            return (await self.stub.Rollback(back, timeout=10, metadata=metadata)).binding
        request = deployments_pb2.DeployRequest(app="shop", environment=environment, release=wanted)
        if expected is not None:
            request.expected_revision = expected
        return (await self.stub.Deploy(request, timeout=10, metadata=metadata)).binding

    def _refused(self, kind: str, error: grpc.aio.AioRpcError) -> dict[str, Any] | None:
        """What the history has of it; None for a read that told nothing."""
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            self.lost = True
            # Who says that nothing was changed is held to it: the call is none of the history then.
            return None if kind == "get" or NOTHING_CHANGED in (error.details() or "") else {"outcome": LOST}
        refusal = refusal_of(error)
        if refusal.reason == "NO_RELEASE_DEPLOYED":
            # A rollback of nothing says so; a read sees nothing.
            return {"outcome": "NOTHING_TO_ROLL_BACK"} if kind == "rollback" else {"revision": 0}
        if refusal.metadata.get("current") == "changing":
            # Others were always quicker: nothing was changed, and nothing told.
            return None
        if refusal.reason == "REVISION_CONFLICT":
            return {"outcome": refusal.reason, "revision": int(refusal.metadata["current"])}
        assert refusal.reason == "NOTHING_TO_ROLL_BACK", refusal
        return {"outcome": refusal.reason}
