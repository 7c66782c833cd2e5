"""Staleness by the clocks: when exactly a limit has passed, and what is left of it over a restart, whatever the clocks do."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import pytest

from data_plane import heard as heard_module
from data_plane.heard import HEARD, HeardFile, Moment, this_moment
from data_plane.holder import Change, Holder
from data_plane.staleness import Staleness
from data_plane.table import Policy, StaleAction
from pointsman.errors import Behind
from tests.eventually import eventually


class Scene:
    """A gateway's judgement, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.holder = Holder(lambda: datetime.now(UTC))
        self.staleness = Staleness(self.holder, clock=lambda: self.now)
        self.changes: list[list[str]] = []
        self.staleness.on_change = lambda: self.changes.append(sorted(self.staleness.stale))

    def told(self, revision: int, complete: bool = False, **limits: tuple[float, StaleAction] | None) -> None:
        policies = {name: limit and Policy(name, *limit) for name, limit in limits.items()}
        self.holder.flip(Change(revision=revision, store_id="s", bindings=[], unusable={}, policies=policies, complete=complete))
        self.staleness.check()

    def after(self, seconds: float) -> list[str]:
        self.now += seconds
        self.staleness.check()
        return sorted(self.staleness.stale)


@pytest.fixture
async def scene():
    return Scene()


async def test_stale_is_what_is_longer_ago_than_the_limit_and_each_environment_has_its_own(scene):
    scene.staleness.heard()
    scene.told(1, production=(30, StaleAction.REFUSE), staging=(10, StaleAction.FLAG))
    assert scene.after(10) == []
    assert scene.after(0.001) == ["staging"]
    assert scene.staleness.admit("staging") == 10
    assert scene.staleness.admit("production") is None
    assert scene.after(20) == ["production", "staging"]
    with pytest.raises(Behind, match="30 s ago, and environment 'production' is not served after 30 s"):
        scene.staleness.admit("production")
    assert scene.staleness.seconds == pytest.approx(30.001)
    scene.staleness.heard()
    assert (scene.staleness.stale, scene.staleness.seconds) == ({}, 0)
    assert scene.changes == [["staging"], ["production", "staging"], []]


async def test_words_while_all_is_fresh_cost_nothing_and_put_the_limit_off(scene):
    scene.staleness.heard()
    scene.told(1, production=(30, StaleAction.REFUSE))
    for _ in range(10):
        scene.now += 29
        scene.staleness.heard()
    assert scene.after(29) == []
    assert scene.changes == []


async def test_the_timer_finds_what_no_one_asks_for(scene):
    scene.staleness.heard()
    scene.told(1, production=(30, StaleAction.UNREADY))
    scene.now += 29.98
    scene.told(2)
    scene.now += 1
    await eventually(lambda: scene.changes == [["production"]])


async def test_policies_come_change_and_go(scene):
    scene.staleness.heard()
    scene.told(1, production=(30, StaleAction.REFUSE), staging=(30, StaleAction.FLAG))
    assert scene.after(31) == ["production", "staging"]
    scene.told(2, production=(30, StaleAction.FLAG))
    assert scene.staleness.admit("production") == 31
    scene.told(3, staging=None)
    assert sorted(scene.staleness.stale) == ["production"]
    # What a control plane tells to one that knows nothing is all there is.
    scene.told(4, complete=True, canary=(60, StaleAction.REFUSE))
    assert list(scene.holder.table.policies) == ["canary"]
    assert scene.staleness.stale == {}


async def test_after_a_start_from_disk_the_time_before_it_counts(scene):
    scene.told(1, production=(30, StaleAction.REFUSE))
    # Never heard, as far as is known: nothing can be said of it.
    assert (scene.staleness.seconds, scene.after(100)) == (None, [])
    scene.staleness.resume(29.0)
    assert (scene.staleness.seconds, scene.staleness.stale) == (29.0, {})
    assert scene.after(2) == ["production"]
    scene.staleness.resume(3600.0)
    assert sorted(scene.staleness.stale) == ["production"]


@pytest.mark.parametrize(
    ("before", "later", "seconds"),
    [
        (Moment(1000), Moment(1010), 10),
        # The clock was set back, or is not set yet: not younger than it was when it was written.
        (Moment(1000), Moment(10), 0),
        # On the same boot only the uptime counts, wherever the clock jumps.
        (Moment(1000, "boot-1", 50), Moment(10, "boot-1", 70), 20),
        (Moment(1000, "boot-1", 50), Moment(9_000_000, "boot-1", 70), 20),
        # On another boot, or on a machine whose uptime is another one, only the clock does.
        (Moment(1000, "boot-1", 50), Moment(1010, "boot-2", 70), 10),
        (Moment(1000, "boot-1", 50), Moment(1010, "boot-1", 5), 10),
    ],
)
def test_how_long_ago_a_moment_was(before, later, seconds):
    assert before.seconds_until(later) == seconds


def test_this_moment_is_after_the_last_one():
    first = this_moment()
    assert 0 <= first.seconds_until(this_moment()) < 60


async def written(file: HeardFile) -> None:
    """Until the word is on disk."""
    file.heard()
    keeping = asyncio.create_task(file.keep())
    await eventually(lambda: not file._heard.is_set())
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_the_next_process_knows_when_the_last_word_was(tmp_path):
    at = Moment(1000)
    file = HeardFile(tmp_path, lambda: at)
    await written(file)
    await eventually((tmp_path / HEARD).exists)
    at = Moment(1045)
    assert await HeardFile(tmp_path, lambda: at).seconds_ago() == 45
    # The moment of the word is what counts, not that of writing it.
    file.heard()
    at = Moment(2000)
    keeping = asyncio.create_task(file.keep())
    await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    async def kept() -> bool:
        return await HeardFile(tmp_path, lambda: at).seconds_ago() == 2000 - 1045

    await eventually(kept)


async def test_whichever_byte_of_it_is_wrong_the_last_change_counts(tmp_path):
    at = Moment(5000.0)
    await written(HeardFile(tmp_path, lambda: at))
    await eventually((tmp_path / HEARD).exists)
    table = tmp_path / "table.json"
    table.write_text("what is in it does not matter here")
    os.utime(table, (4000, 4000))
    good = (tmp_path / HEARD).read_bytes()
    for position in range(len(good)):
        (tmp_path / HEARD).write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert await HeardFile(tmp_path, lambda: at).seconds_ago() == 1000, position
    for lost in (b"", b"[]"):
        (tmp_path / HEARD).write_bytes(lost)
        assert await HeardFile(tmp_path, lambda: at).seconds_ago() == 1000
    (tmp_path / HEARD).write_bytes(heard_module.seal(b'{"wall": "soon"}'))
    assert await HeardFile(tmp_path, lambda: at).seconds_ago() == 1000


async def test_a_disk_that_refuses_costs_only_the_time(tmp_path):
    file = HeardFile(tmp_path / "gone", lambda: Moment(1000))
    await written(file)
    assert not (tmp_path / "gone").exists()
