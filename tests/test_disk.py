"""The state directory: what was good is served again, what is damaged never is, and nothing that is in it keeps a gateway from starting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from data_plane import disk as disk_module
from data_plane import saved as saved_module
from data_plane.disk import BLOBS, OLD_TABLE, TABLE, Disk
from data_plane.holder import Change, Holder
from data_plane.loading import Compiler, Loader
from data_plane.secrets import Secrets
from data_plane.table import Bound
from pointsman.serving import StartupError
from tests.eventually import eventually
from tests.sample_apps import marked
from tests.scripted_control_plane import snapshot_of

SHOP = ("shop", "production")
RELEASES = {tag: snapshot_of(marked(tag)) for tag in ("v1", "v2", "v3", "v4", "v5", "v6")}
DIGESTS = {digest: tag for tag, (digest, _) in RELEASES.items()}


class Life:
    """One life of a gateway process, as far as its disk is concerned."""

    def __init__(self, folder, *, apps=(), secrets=None) -> None:
        self.disk = Disk(folder, lambda: datetime.now(UTC), apps=apps)
        self.holder = Holder(lambda: datetime.now(UTC))
        self.compiler = Compiler(Secrets(environment=secrets or {}))
        self.fetched: list[str] = []

    async def fetch(self, digest: str) -> bytes:
        self.fetched.append(digest)
        return RELEASES[DIGESTS[digest]][1]

    async def flip(self, revision, *told, unusable=None, complete=False) -> None:
        loader = Loader(self.holder, self.compiler, self.fetch, self.disk)
        unusable = {RELEASES[tag][0]: cause for tag, cause in (unusable or {}).items()}
        bindings = [Bound(app=a, environment=e, release=t, digest=RELEASES[t][0] if t else "", revision=revision) for a, e, t in told]
        for bound in bindings:
            if bound.release and bound.digest not in unusable:
                await loader.get(bound.digest)
        self.holder.flip(Change(revision=revision, store_id="store-1", bindings=bindings, unusable=unusable, complete=complete))

    async def save(self) -> None:
        self.disk.changed()
        await self.disk._save(self.holder)

    def serves(self) -> dict:
        return {key: active.bound.release for key, active in self.holder.table.active.items()}


@contextlib.asynccontextmanager
async def life(folder, **more):
    """Loads what is on disk; nothing is written at the end but what was asked for."""
    found = Life(folder, **more)
    try:
        await found.disk.load(found.holder, found.compiler)
        yield found
    finally:
        found.compiler.close()
        await found.disk.close()


@pytest.fixture
async def folder(tmp_path):
    """Two generations: at revision 2 production had v2, at 3 it has v3, with v2 and v1 behind it; staging has v1."""
    path = tmp_path / "state"
    async with life(path) as first:
        assert not first.holder.table.synced
        await first.flip(1, (*SHOP, "v1"), ("shop", "staging", "v1"))
        await first.save()
        await first.flip(2, (*SHOP, "v2"))
        await first.save()
        await first.flip(3, (*SHOP, "v3"))
        await first.save()
    return path


async def test_promise_09_a_start_from_disk_serves_what_was_served(folder):
    async with life(folder) as second:
        table = second.holder.table
        assert (table.revision, table.store_id, table.synced, table.ready) == (3, "store-1", True, True)
        assert second.serves() == {SHOP: "v3", ("shop", "staging"): "v1"}
        assert {key: active.bound.revision for key, active in table.active.items()} == {SHOP: 3, ("shop", "staging"): 1}
        # What stood by is compiled while serving, and then a rollback needs nothing.
        assert not table.standby.get(SHOP)
        await second.disk.warm(second.holder, second.compiler)
        assert [known.bound.release for known in second.holder.table.standby[SHOP]] == ["v2", "v1"]
        await second.flip(4, (*SHOP, "v1"))
        assert second.fetched == []


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


async def test_promise_09_any_flipped_byte_is_noticed(folder):
    """For every file, bytes all over it: an older generation that was good, or that release refused by name; never damage."""
    found = files(folder)
    assert {path.name for path in found} >= {TABLE, OLD_TABLE}
    assert len(found) == 5
    for path in found:
        good = path.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 100)):
            path.write_bytes(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :])
            with capture_logs() as logs:
                async with life(folder) as damaged:
                    table, serves = damaged.holder.table, damaged.serves()
                    if path.name == TABLE:
                        assert (table.revision, serves) == (2, {SHOP: "v2", ("shop", "staging"): "v1"})
                    elif path.name == OLD_TABLE:
                        assert (table.revision, serves) == (3, {SHOP: "v3", ("shop", "staging"): "v1"})
                    else:
                        broken = DIGESTS["sha256:" + path.name]
                        expected = {SHOP: "v3", ("shop", "staging"): "v1"}
                        assert serves == {key: tag for key, tag in expected.items() if tag != broken}
                        assert {r.bound.release for r in table.rejected.values()} == {broken} & set(expected.values())
                        assert table.ready == (not table.rejected)
                        assert all(f"release {broken} of shop" in rejected.reason for rejected in table.rejected.values())
            if path.name in (TABLE, OLD_TABLE) or broken in ("v1", "v3"):
                assert [line for line in logs if line["log_level"] in ("warning", "error")]
        path.write_bytes(good)


@pytest.mark.parametrize("content", [b"", b"\n", b"garbage", b"\x00" * 4096, None], ids=["empty", "newline", "text", "zeros", "missing"])
async def test_both_tables_unusable_is_an_empty_start(folder, content):
    for name in (TABLE, OLD_TABLE):
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    async with life(folder) as second:
        assert not second.holder.table.synced
        # And it goes on from there.
        await second.flip(9, (*SHOP, "v2"))
        await second.save()
    async with life(folder) as third:
        assert (third.holder.table.revision, third.serves()) == (9, {SHOP: "v2"})


async def test_a_table_of_a_newer_program_is_told_from_damage(folder):
    body = json.dumps({"format": 99, "everything": "else"}).encode()
    newer = saved_module.hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    (folder / TABLE).write_bytes(newer)
    with capture_logs() as logs:
        async with life(folder) as second:
            assert second.holder.table.revision == 2
    assert any("of a newer one" in line.get("problem", "") for line in logs)


async def test_a_directory_in_the_place_of_a_file_does_not_keep_it_from_starting(folder):
    (folder / TABLE).unlink()
    (folder / TABLE).mkdir()
    async with life(folder) as second:
        assert second.holder.table.revision == 2


async def test_a_damaged_table_never_becomes_the_older_generation(folder):
    (folder / TABLE).write_bytes(b"damaged")
    async with life(folder) as second:
        await second.flip(4, (*SHOP, "v4"))
        await second.save()
    (folder / TABLE).write_bytes(b"damaged again")
    async with life(folder) as third:
        assert third.holder.table.revision == 2
        assert third.serves()[SHOP] == "v2"


async def test_a_damaged_release_is_fetched_again(folder):
    blob = folder / BLOBS / RELEASES["v3"][0].removeprefix("sha256:")
    blob.write_bytes(b"damaged")
    async with life(folder) as second:
        assert SHOP not in second.serves()
        await second.flip(3, (*SHOP, "v3"))
        assert second.fetched == [RELEASES["v3"][0]]
        await second.save()
    async with life(folder) as third:
        assert third.serves()[SHOP] == "v3"
        assert third.holder.table.ready


async def test_what_only_stood_by_is_never_served_after_a_start(folder):
    """It may have been rolled back from for a reason."""
    async with life(folder) as second:
        await second.flip(4, (*SHOP, "v1"))
        await second.save()
    (folder / BLOBS / RELEASES["v1"][0].removeprefix("sha256:")).unlink()
    async with life(folder) as third:
        await third.disk.warm(third.holder, third.compiler)
        assert SHOP not in third.serves()
        assert not third.holder.table.ready


async def test_what_was_served_in_the_place_of_a_rejected_release_is_served_again(folder):
    async with life(folder) as second:
        await second.flip(4, (*SHOP, "v4"), unusable={"v4": "no"})
        await second.save()
    async with life(folder) as third:
        assert third.serves()[SHOP] == "v3"
        assert third.holder.table.rejected[SHOP].bound.release == "v4"
        assert third.holder.table.ready
        # What was rejected then is asked for again, and runs if it can now.
        await third.flip(4, (*SHOP, "v4"))
        await third.save()
    async with life(folder) as fourth:
        assert fourth.serves()[SHOP] == "v4"
        assert not fourth.holder.table.rejected


async def test_blobs_that_neither_generation_needs_are_removed_and_no_others(folder):
    def kept():
        return {DIGESTS["sha256:" + path.name] for path in (folder / BLOBS).iterdir()}

    (folder / BLOBS / "abandoned.tmp").write_bytes(b"of a process that was killed")
    async with life(folder) as second:
        await second.disk.warm(second.holder, second.compiler)
        for revision, tag in ((4, "v4"), (5, "v5"), (6, "v6")):
            await second.flip(revision, (*SHOP, tag))
            await second.save()
        # v1 is active in staging; v3, v4, v5 stand by; v2 is in the older generation.
        assert kept() == {"v1", "v2", "v3", "v4", "v5", "v6"}
        await second.flip(7, ("shop", "staging", ""))
        await second.save()
        await second.save()
        assert kept() == {"v3", "v4", "v5", "v6"}


async def test_a_blob_that_is_being_loaded_is_not_removed(folder):
    async with life(folder) as second:
        compiling = asyncio.Event()
        original = second.compiler.compile

        async def slow(digest, snapshot):
            await compiling.wait()
            return await original(digest, snapshot)

        await second.disk.write_blob(*RELEASES["v6"])
        second.compiler.compile = slow
        flip = asyncio.create_task(second.flip(4, (*SHOP, "v6")))
        await eventually(lambda: second.holder.loading)
        await second.save()
        compiling.set()
        await flip
        await second.save()
    async with life(folder) as third:
        assert third.serves()[SHOP] == "v6"


async def test_killed_between_the_two_renames_the_older_generation_is_there(folder):
    (folder / TABLE).rename(folder / OLD_TABLE)
    async with life(folder) as second:
        assert second.holder.table.revision == 3


async def test_a_disk_that_refuses_is_tried_again_and_the_gateway_goes_on(folder, monkeypatch):
    monkeypatch.setattr(disk_module, "RETRY_SECONDS", 0.01)
    write, refused = disk_module._write_beside, []

    def full(path, data):
        if len(refused) < 4:
            refused.append(path.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(disk_module, "_write_beside", full)
    async with life(folder) as second:
        keeping = asyncio.create_task(second.disk.keep(second.holder))
        with capture_logs() as logs:
            await second.flip(4, (*SHOP, "v4"))
            second.disk.changed()
            await eventually(lambda: b'"revision":4' in (folder / TABLE).read_bytes())
        keeping.cancel()
        assert second.serves()[SHOP] == "v4"
        assert len([line for line in logs if "No space left" in line.get("problem", "")]) == 4


async def test_what_is_not_written_yet_is_written_at_the_end(folder):
    async with life(folder) as second:
        keeping = asyncio.create_task(second.disk.keep(second.holder))
        await second.flip(4, (*SHOP, "v4"))
        second.disk.changed()
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        # Cancelled before it ran at all: nothing was begun. From then on the end waits for what is due.
        keeping = asyncio.create_task(second.disk.keep(second.holder))
        await asyncio.sleep(0)
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
    async with life(folder) as third:
        assert third.holder.table.revision == 4


async def test_two_gateways_cannot_share_a_folder(folder):
    async with life(folder):
        with pytest.raises(StartupError, match="in use by another gateway"):
            Life(folder)
    async with life(folder):
        pass


async def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot use --state-dir"):
        Life(tmp_path / "file" / "state")


async def test_asking_for_other_apps_than_before_asks_for_everything_anew(folder):
    async with life(folder) as second:
        await second.flip(4, ("forum", "production", "v1"))
        await second.save()
    async with life(folder, apps=("shop", "blog")) as third:
        # blog may have been bound long before revision 4.
        assert (third.holder.table.revision, third.holder.table.store_id) == (0, "store-1")
        assert third.serves() == {SHOP: "v3", ("shop", "staging"): "v1"}
        await third.flip(5, (*SHOP, "v3"), complete=True)
        assert third.serves() == {SHOP: "v3"}
        await third.save()
    async with life(folder, apps=("blog", "shop")) as fourth:
        assert fourth.holder.table.revision == 5
