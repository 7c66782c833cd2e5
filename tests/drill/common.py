"""What every drill does: callers that deploy, watchers that resume, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pointsman.v1 import deployments_pb2, deployments_pb2_grpc
from tests.clients import OWN_CONNECTION, grpc
from tests.deploying import ENVIRONMENTS, Caller, Histories, new_histories
from tests.eventually import eventually
from tests.linearizability import Operation, is_linearizable, with_found

BACK_SECONDS = 60.0
CAMPAIGN_SECONDS = 1800.0


class Result(NamedTuple):
    """One row of the table. `lost`: what was acknowledged and is not there, or answers that no order explains."""

    drill: str
    operations: int
    faults: int
    lost: int
    worst_outage_seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.drill:<10} {self.operations:>10} {self.faults:>7} {self.lost:>5} {self.worst_outage_seconds:>12.2f} s   seed {self.seed}"


HEADING = f"{'drill':<10} {'operations':>10} {'faults':>7} {'lost':>5} {'worst outage':>14}"


@dataclass
class Campaign:
    """Callers on some addresses until so many calls have been answered; a call that is lost is followed by a wait for the way back."""

    addresses: Sequence[str]
    seed: int
    wanted: int
    histories: Histories = field(default_factory=new_histories)
    answered: int = 0
    lost_calls: int = 0
    """Calls that failed or whose answer was lost."""
    worst_gap: float = 0.0
    _last_answer: float = field(default_factory=time.monotonic)

    async def run(self, callers: int) -> None:
        """Until it is done."""
        await asyncio.gather(*(self._call(number) for number in range(callers)))

    def start_from(self, environment: str, release: str) -> None:
        """What was deployed before the first call, at the revision 1 of a new store."""
        first = Operation(kind="deploy", start=0, end=0, wanted=release, revision=1, release=release)
        self.histories[environment].append(first)

    async def reached(self, answered: int) -> None:
        """Waits until so many calls have been answered."""
        await eventually(lambda: self.answered >= min(answered, self.wanted), timeout_seconds=CAMPAIGN_SECONDS)

    async def _call(self, number: int) -> None:
        async with contextlib.AsyncExitStack() as channels:
            stubs = []
            for address in self.addresses:
                channel = await channels.enter_async_context(grpc.aio.insecure_channel(address, OWN_CONNECTION))
                stubs.append(deployments_pb2_grpc.DeploymentServiceStub(channel))
            caller = Caller(stubs[number % len(stubs)], f"{self.seed} {number}", self.histories)
            while not self.is_over:
                before = sum(map(len, self.histories.values()))
                await caller.call()
                if caller.lost:
                    self.lost_calls += 1
                    await self._way_back(stubs, number)
                elif sum(map(len, self.histories.values())) > before:
                    now = time.monotonic()
                    self.worst_gap = max(self.worst_gap, now - self._last_answer)
                    self._last_answer = now
                    self.answered += 1

    async def _way_back(self, stubs: Sequence[Any], number: int) -> None:
        """Until a read is answered again; else each caller would fill the history with calls that nobody heard."""
        request = deployments_pb2.GetBindingRequest(app="shop", environment=ENVIRONMENTS[0])
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            try:
                await stubs[number % len(stubs)].GetBinding(request, timeout=2, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return
                await asyncio.sleep(0.02)
            else:
                return
        raise AssertionError(f"no answer for {BACK_SECONDS:g} s")

    @property
    def is_over(self) -> bool:
        """Enough calls were answered."""
        return self.answered >= self.wanted

    async def unexplained(self, address: str) -> int:
        """How many bindings have a history that no order explains."""
        happened = {one.actor: (one.revision, one.release) for one in await _deployments(address)}
        return sum(not is_linearizable(with_found(history, happened)) for history in self.histories.values())

    @property
    def operations(self) -> int:
        """Calls that changed something, or may have."""
        return sum(one.kind != "get" for history in self.histories.values() for one in history)


class Watch:
    """A watcher that resumes whenever its stream breaks: what it has seen last of each binding, and whether a revision ever went back."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.seen: dict[str, tuple[int, str]] = {}
        self.revision = 0
        self.went_back = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Watch]:
        """Watches until the end of the context."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        async with grpc.aio.insecure_channel(self._address, OWN_CONNECTION) as channel:
            stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    request = deployments_pb2.WatchBindingsRequest(app="shop", after_revision=self.revision)
                    async for message in stub.WatchBindings(request, wait_for_ready=True):
                        self._take(message)
                await asyncio.sleep(random.uniform(0.01, 0.05))

    def _take(self, message: deployments_pb2.WatchBindingsResponse) -> None:
        if message.revision < self.revision:
            self.went_back += 1
        self.revision = max(self.revision, message.revision)
        if message.HasField("binding"):
            binding = message.binding
            self.seen[binding.environment] = (binding.revision, binding.release)


async def wrong_in(watches: Sequence[Watch], address: str) -> int:
    """How many bindings some watcher does not know as they are in the end, and how often a revision went back."""
    wrong = sum(watch.went_back for watch in watches)
    async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
        stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
        for environment in ENVIRONMENTS:
            binding = (await stub.GetBinding(deployments_pb2.GetBindingRequest(app="shop", environment=environment), timeout=10)).binding
            for watch in watches:
                final = (binding.revision, binding.release)
                with contextlib.suppress(AssertionError):
                    await eventually(lambda watch=watch, environment=environment, final=final: watch.seen.get(environment) == final)
                wrong += watch.seen.get(environment) != final
    revisions = [deployment.revision for deployment in await _deployments(address)]
    # Newest first: none may be as new as the one before it.
    return wrong + sum(newer <= older for newer, older in itertools.pairwise(revisions))


async def _deployments(address: str) -> list[deployments_pb2.Deployment]:
    """The whole history, newest first."""
    found: list[deployments_pb2.Deployment] = []
    request = deployments_pb2.ListDeploymentsRequest(app="shop", page_size=500)
    async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
        stub = deployments_pb2_grpc.DeploymentServiceStub(channel)
        while True:
            page = await stub.ListDeployments(request, timeout=20)
            found += page.deployments
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
