"""Triggers that wait for their turn: in order, in bounded numbers, not longer than they have, and without losing a turn."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from msgspec.structs import replace

from data_plane.limits import Limits
from data_plane.loaded import LoadedEndpoint, LoadedPipeline
from pointsman.errors import RateLimited
from tests.eventually import eventually


def endpoint(limit: int) -> LoadedEndpoint:
    pipeline = LoadedPipeline(name="p", stages=(), output=None)
    return LoadedEndpoint(name="e", path="e", method="POST", timeout_seconds=60, max_concurrency=limit, schema=None, pipeline=pipeline)


class Crowd:
    """Triggers of one endpoint. `running` and `most`: how many are inside now, and were at most; `order` has who came in."""

    def __init__(self, limit: int) -> None:
        self.limits, self.endpoint = Limits(), endpoint(limit)
        self.running = self.most = 0
        self.order: list[int] = []
        self.go = asyncio.Event()

    def come(self, number: int = 0, *, seconds: float = 60.0, environment: str = "production", limit: int = 0) -> asyncio.Task[None]:
        return asyncio.create_task(self._one(number, seconds, environment, limit))

    async def _one(self, number: int, seconds: float, environment: str, limit: int) -> None:
        asked = replace(self.endpoint, max_concurrency=limit or self.endpoint.max_concurrency)
        async with self.limits.turn(asked, "shop", environment, time.monotonic() + seconds):
            self.order.append(number)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.go.wait()
            finally:
                self.running -= 1

    async def waiting(self, count: int) -> None:
        await eventually(lambda: sum(len(line.waiting) for line in self.limits._lines.values()) == count)


async def test_those_who_wait_come_in_order_and_as_many_wait_as_run():
    crowd = Crowd(2)
    tasks = [crowd.come(number) for number in range(4)]
    await crowd.waiting(2)
    with pytest.raises(RateLimited, match=r"'e' runs 2 triggers at a time .* as many wait") as refused:
        await crowd.come(4)
    assert (refused.value.retry_after_seconds, refused.value.metadata) == (1.0, {"limit": "2", "endpoint": "e"})
    crowd.go.set()
    await asyncio.gather(*tasks)
    assert (crowd.order, crowd.most) == ([0, 1, 2, 3], 2)
    assert not crowd.limits._lines


async def test_nobody_waits_longer_than_there_is_time():
    crowd = Crowd(1)
    first = crowd.come(0)
    late, patient = crowd.come(1, seconds=0.05), crowd.come(2)
    with pytest.raises(RateLimited, match="as many wait"):
        await patient
    with pytest.raises(RateLimited, match="none ended within the time"):
        await late
    # The place that was given up is free again.
    next_one = crowd.come(3)
    await crowd.waiting(1)
    crowd.go.set()
    await asyncio.gather(first, next_one)
    assert crowd.order == [0, 3]


async def test_who_leaves_the_line_is_not_waited_for():
    crowd = Crowd(2)
    tasks = [crowd.come(number) for number in range(4)]
    await crowd.waiting(2)
    tasks[2].cancel()
    tasks[0].cancel()
    await eventually(lambda: crowd.order == [0, 1, 3])
    crowd.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (crowd.most, crowd.limits._lines) == (2, {})


async def test_a_turn_that_comes_as_its_owner_leaves_is_passed_on():
    crowd = Crowd(1)
    async with crowd.limits.turn(crowd.endpoint, "shop", "production", time.monotonic() + 60):
        leaving = crowd.come(1)
        await crowd.waiting(1)
    # It has the turn, and has not been woken yet.
    leaving.cancel()
    await asyncio.wait({leaving})
    assert (leaving.cancelled(), crowd.order, crowd.limits._lines) == (True, [], {})
    crowd.go.set()
    await crowd.come(2)
    assert crowd.order == [2]


async def test_environments_have_lines_of_their_own_and_a_release_with_more_room_lets_more_in():
    crowd = Crowd(1)
    tasks = [crowd.come(0), crowd.come(1, environment="staging")]
    await eventually(lambda: crowd.running == 2)
    tasks.append(crowd.come(2, limit=2))
    await eventually(lambda: crowd.running == 3)
    crowd.go.set()
    await asyncio.gather(*tasks)
    assert not crowd.limits._lines


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_comes_and_goes_no_turn_is_lost(seed):
    chance = random.Random(seed)
    crowd = Crowd(3)
    crowd.go.set()
    tasks: list[asyncio.Task[None]] = []
    for number in range(200):
        tasks.append(crowd.come(number, seconds=chance.choice([0.0, 60.0]), limit=chance.choice([1, 2, 3])))
        for _ in range(chance.randrange(4)):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} <= {type(None), RateLimited, asyncio.CancelledError}
    assert 0 < crowd.most <= 3
    assert (crowd.running, crowd.limits._lines) == (0, {})
