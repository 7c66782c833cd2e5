"""Snapshots on their way to gateways: made ready once for all who ask, and nobody who is slow holds up the others."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from control_plane.rpc import snapshots
from control_plane.rpc.snapshots import CHUNK_BYTES, MAX_TRANSFERS, Snapshots
from pointsman.errors import ReleaseNotFound
from pointsman.v1 import gateways_pb2 as pb
from tests.eventually import eventually

LARGE = bytes(range(256)) * 4096


class Releases:
    """Has some bytes, and counts how often they are read."""

    def __init__(self, **known: bytes) -> None:
        self.known = known
        self.reads = 0

    async def snapshot(self, digest):
        self.reads += 1
        await asyncio.sleep(0)
        if digest not in self.known:
            raise ReleaseNotFound("", digest)
        return self.known[digest]


async def fetched(served, digest):
    messages = [pb.FetchSnapshotResponse.FromString(message) async for message in served.stream(digest)]
    assert [message.size_bytes for message in messages[1:]] == [0] * (len(messages) - 1)
    data = b"".join(message.data for message in messages)
    assert messages[0].size_bytes == len(data)
    return data


async def test_a_large_release_is_read_and_serialised_once_for_a_thousand_gateways(monkeypatch):
    made = []
    message = pb.FetchSnapshotResponse

    def counting(**fields):
        made.append(fields)
        return message(**fields)

    monkeypatch.setattr(snapshots.pb, "FetchSnapshotResponse", counting)
    releases = Releases(large=LARGE)
    served = Snapshots(releases)

    async def take():
        return b"".join([message async for message in served.stream("large")])

    found = await asyncio.gather(*(take() for _ in range(1000)))
    assert releases.reads == 1
    assert len(made) == len(LARGE) // CHUNK_BYTES
    # The very same bytes went to everybody.
    assert len({hashlib.sha256(data).hexdigest() for data in found}) == 1


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(LARGE)])
async def test_every_size_arrives_whole(size):
    assert await fetched(Snapshots(Releases(some=LARGE[:size])), "some") == LARGE[:size]


async def test_what_failed_is_asked_for_anew():
    releases = Releases()
    served = Snapshots(releases)
    for _ in range(2):
        with pytest.raises(ReleaseNotFound):
            await fetched(served, "late")
    releases.known["late"] = b"here"
    assert await fetched(served, "late") == b"here"
    assert releases.reads == 3


async def test_no_more_is_kept_than_a_limit(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_KEPT_BYTES", 3 * len(LARGE))
    releases = Releases(**{str(number): LARGE for number in range(5)})
    served = Snapshots(releases)
    for number in range(5):
        await fetched(served, str(number))
    assert releases.reads == 5
    await fetched(served, "4")
    assert releases.reads == 5
    await fetched(served, "0")
    assert releases.reads == 6


async def test_what_nobody_asks_for_any_more_is_let_go(monkeypatch):
    monkeypatch.setattr(snapshots, "KEPT_SECONDS", 0.01)
    releases = Releases(large=LARGE)
    served = Snapshots(releases)
    await fetched(served, "large")
    await eventually(lambda: not served._kept)


async def test_slow_readers_delay_others_for_a_bounded_time(monkeypatch):
    monkeypatch.setattr(snapshots, "SLOW_SECONDS", 0.05)
    served = Snapshots(Releases(large=LARGE))
    stuck = [served.stream("large") for _ in range(2 * MAX_TRANSFERS)]
    # All of them get their first message, though none takes a second one.
    async with asyncio.timeout(5):
        await asyncio.gather(*(anext(stream) for stream in stuck))
        assert await fetched(served, "large") == LARGE
    for stream in stuck:
        await stream.aclose()
    assert served._turns._value == MAX_TRANSFERS
