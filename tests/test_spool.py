"""The spool: in order, bounded, counted, and undisturbed by damage."""

from __future__ import annotations

import os

import pytest

from data_plane.spool import CHECKSUM_BYTES, JOIN_BYTES, JOIN_RECORDS, MIB, Spool

LETTERS = [bytes([65 + number]) * 100 for number in range(26)]


async def everything(spool):
    found = []
    while spool.depth:
        await spool.wait()
        with spool.oldest() as batch:
            found.append(await spool.read(batch))
            await spool.done(batch)
    return b"".join(found)


async def kept(spool, count, data):
    """As what nobody takes within a moment."""
    spool.append(count, data)
    await spool.keep()


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return tmp_path / "executions" if request.param == "disk" else None


async def test_what_goes_in_comes_out_in_order_and_leaves_nothing_behind(folder):
    spool = Spool(folder, MIB)
    for letter in LETTERS:
        await kept(spool, 1, letter)
    assert (spool.depth, spool.size_bytes) == (26, 2600)
    assert await everything(spool) == b"".join(LETTERS)
    assert (spool.depth, spool.size_bytes, spool.dropped) == (0, 0, 0)
    await spool.drained()
    assert folder is None or not list(folder.iterdir())


@pytest.fixture
def each_apart(monkeypatch):
    """No batch is joined to another."""
    monkeypatch.setattr("data_plane.spool.JOIN_BYTES", 0)


async def test_small_ones_are_joined_but_for_the_oldest(folder):
    spool = Spool(folder, 64 * MIB)
    for letter in LETTERS:
        await kept(spool, 1, letter)
    assert folder is None or len(list(folder.iterdir())) == 2
    await kept(spool, 1, b"x" * JOIN_BYTES)
    await kept(spool, JOIN_RECORDS, b"y")
    await kept(spool, 1, b"z")
    counts = []
    while spool.depth:
        with spool.oldest() as batch:
            counts.append(batch.count)
            await spool.done(batch)
    assert counts == [1, 25, 1, JOIN_RECORDS, 1]


@pytest.mark.usefixtures("each_apart")
async def test_the_oldest_goes_when_there_is_no_room_and_is_counted(folder):
    spool = Spool(folder, 1000)
    for letter in LETTERS:
        await kept(spool, 1, letter)
    assert spool.dropped == 16
    assert await everything(spool) == b"".join(LETTERS[-10:])
    assert folder is None or not list(folder.iterdir())


@pytest.mark.usefixtures("each_apart")
async def test_the_batch_that_is_being_delivered_is_not_given_up(folder):
    spool = Spool(folder, 250)
    await kept(spool, 1, LETTERS[0])
    with spool.oldest() as delivering:
        for letter in LETTERS[1:]:
            await kept(spool, 1, letter)
        await spool.done(delivering)
    assert await everything(spool) == LETTERS[-1]
    assert spool.dropped == 24


@pytest.mark.usefixtures("each_apart")
async def test_another_process_takes_over_what_is_left(tmp_path):
    first = Spool(tmp_path, MIB)
    for letter in LETTERS[:3]:
        await kept(first, 1, letter)
    second = Spool(tmp_path, MIB)
    assert second.depth == 3
    await kept(second, 1, LETTERS[3])
    assert await everything(second) == b"".join(LETTERS[:4])


@pytest.mark.parametrize("damage", [*range(CHECKSUM_BYTES + 300), "half", "gone"])
async def test_damage_costs_the_batch_that_it_hit_and_is_counted(tmp_path, damage):
    spool = Spool(tmp_path, MIB)
    await kept(spool, 3, b"".join(LETTERS[:3]))
    await kept(spool, 1, LETTERS[3])
    path = min(tmp_path.iterdir())
    if damage == "half":
        os.truncate(path, 150)
    elif damage != "gone":
        data = bytearray(path.read_bytes())
        data[damage] ^= 0xFF
        path.write_bytes(data)
    spool = Spool(tmp_path, MIB)
    if damage == "gone":
        path.unlink()
    assert await everything(spool) == LETTERS[3]
    assert spool.dropped == 3


async def test_a_disk_that_takes_nothing_leaves_memory(tmp_path, monkeypatch):
    spool = Spool(tmp_path, MIB)

    def full(_self, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    await kept(spool, 3, b"".join(LETTERS[:3]))
    assert (spool.depth, list(tmp_path.iterdir())) == (3, [])
    assert await everything(spool) == b"".join(LETTERS[:3])


async def test_what_is_delivered_at_once_never_reaches_the_disk_and_what_is_not_does_once(tmp_path):
    spool = Spool(tmp_path, MIB)
    spool.append(1, LETTERS[0])
    assert await everything(spool) == LETTERS[0]
    await spool.keep()
    assert not list(tmp_path.iterdir())
    spool.append(1, LETTERS[1])
    await spool.keep()
    await spool.keep()
    assert [path.name.rpartition("-")[2] for path in tmp_path.iterdir()] == ["1.executions"]


@pytest.mark.parametrize("moment", ["delivered", "being delivered", "given up"])
async def test_what_goes_while_it_is_written_down_leaves_no_file(tmp_path, monkeypatch, moment):
    spool = Spool(tmp_path, MIB)
    for letter in LETTERS[:3]:
        await kept(spool, 1, letter)
    spool.append(1, LETTERS[3])
    write, taken = Spool._write, []

    def meanwhile(self, path, data):
        assert data == b"".join(LETTERS[1:4]), "joined to the one before it"
        whole = write(self, path, data)
        first, joined = self._batches[0], self._batches[1]
        if moment == "being delivered":
            joined.on_its_way = True
        else:
            self._forget(first)
            self._forget(joined)
            for batch in (first, joined):
                batch.path.unlink()
                taken.append(batch.data)
            self.dropped += 3 * (moment == "given up")
        return whole

    monkeypatch.setattr(Spool, "_write", meanwhile)
    await spool.keep()
    assert b"".join(taken) + await everything(spool) == b"".join(LETTERS[:4])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("each_apart")
async def test_beyond_what_memory_takes_it_is_read_back_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("data_plane.spool.MAX_MEMORY_BYTES", 250)
    spool = Spool(tmp_path, MIB)
    for letter in LETTERS:
        await kept(spool, 1, letter)
    assert await everything(spool) == b"".join(LETTERS)
