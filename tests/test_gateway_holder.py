"""The table and what stays compiled beside it: the limits hold, and a flip is one assignment."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from data_plane import holder as holder_module
from data_plane.holder import PREPARED_RELEASES, STANDBY_RELEASES, Change, Holder
from data_plane.loaded import LoadedRelease
from data_plane.table import Bound
from pointsman.errors import Behind

SHOP = ("shop", "production")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def holder():
    return Holder(Clock())


def flip(holder, revision, *told, size_bytes=1):
    """told: (app, environment, release)"""
    for _, _, release in told:
        if release and f"d-{release}" not in holder.held:
            holder.keep(LoadedRelease(digest=f"d-{release}", size_bytes=size_bytes, endpoints={}))
    bindings = [Bound(app=a, environment=e, release=r, digest=f"d-{r}", revision=revision) for a, e, r in told]
    holder.flip(Change(revision=revision, store_id="s", bindings=bindings, unusable={}))


def standby(holder, key=SHOP):
    return [known.bound.release for known in holder.table.standby.get(key, ())]


def test_the_last_releases_of_a_binding_stay_compiled(holder):
    for revision in range(1, STANDBY_RELEASES + 3):
        flip(holder, revision, (*SHOP, f"v{revision}"))
    assert standby(holder) == ["v4", "v3", "v2"]
    assert sorted(holder.held) == ["d-v2", "d-v3", "d-v4", "d-v5"]
    # To and fro between two of them pushes none out.
    for revision in range(10, 20):
        flip(holder, revision, (*SHOP, ("v4", "v5")[revision % 2]))
    assert standby(holder) == ["v4", "v3", "v2"]


def test_the_bytes_that_only_the_standby_holds_are_limited(holder, monkeypatch):
    monkeypatch.setattr(holder_module, "STANDBY_BYTES", 250)
    other = ("blog", "production")
    flip(holder, 1, (*SHOP, "v1"), (*other, "v1"), size_bytes=100)
    for revision in (2, 3, 4):
        flip(holder, revision, (*SHOP, f"v{revision}"), size_bytes=100)
    # v1 is active elsewhere and costs nothing.
    assert standby(holder) == ["v3", "v2", "v1"]
    flip(holder, 5, (*SHOP, "v5"), size_bytes=100)
    assert standby(holder) == ["v4", "v3"]
    # Now v1 is held by the standby alone, twice, and is what was loaded last.
    flip(holder, 6, (*other, "v5"))
    assert (standby(holder), standby(holder, other)) == (["v4"], ["v1"])
    assert set(holder.held) == {"d-v5", "d-v4", "d-v1"}


def test_what_is_prepared_is_limited_and_leaves_when_it_is_served(holder, monkeypatch):
    monkeypatch.setattr(holder_module, "PREPARED_BYTES", 250)
    for name in ("a", "b", "c"):
        holder.keep(LoadedRelease(digest=name, size_bytes=100, endpoints={}))
    assert sorted(holder.held) == ["b", "c"]
    holder.keep(LoadedRelease(digest="large", size_bytes=1000, endpoints={}))
    assert sorted(holder.held) == ["large"]
    for n in range(PREPARED_RELEASES + 5):
        holder.keep(LoadedRelease(digest=str(n), size_bytes=0, endpoints={}))
    assert len(holder.held) == PREPARED_RELEASES


def test_telling_again_what_is_served_changes_nothing(holder):
    flip(holder, 1, (*SHOP, "v1"))
    before = holder.table.active[SHOP]
    flip(holder, 1, (*SHOP, "v1"))
    assert holder.table.active[SHOP] is before


def test_the_same_release_bound_anew_has_the_new_revision(holder):
    flip(holder, 1, (*SHOP, "v1"))
    flip(holder, 4, (*SHOP, "v1"))
    assert holder.table.active[SHOP].bound.revision == 4
    assert standby(holder) == []


def test_promise_02_whoever_captured_a_release_keeps_it(holder):
    flip(holder, 1, (*SHOP, "v1"))
    table = holder.table
    flip(holder, 2, (*SHOP, "v2"))
    assert table.active[SHOP].bound.release == "v1"
    assert table.revision == 1


async def test_promise_06_waiting_for_a_revision(holder):
    flip(holder, 1, (*SHOP, "v1"))
    waiting = asyncio.create_task(holder.wait_for(3, 5))
    await asyncio.sleep(0)
    flip(holder, 2, (*SHOP, "v2"))
    await asyncio.sleep(0)
    assert not waiting.done()
    flip(holder, 3, (*SHOP, "v1"))
    await waiting
    with pytest.raises(Behind) as refused:
        await holder.wait_for(4, 0.01)
    assert (refused.value.metadata["asked"], refused.value.metadata["has"]) == ("4", "3")
