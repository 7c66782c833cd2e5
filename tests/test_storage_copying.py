"""pointsman copy-store: everything, under the same identity, from any engine to any, also when it was broken off."""

from __future__ import annotations

import sqlite3
from datetime import timedelta

import pytest
from msgspec.structs import replace

from control_plane.model import Draft, Environment, RememberedRequest, digest_of
from control_plane.storage import CannotCopyStore, CannotOpenStore, copying, open_any_store, open_store
from control_plane.storage.copying import NOT_COPIED, TABLES, copy_store
from tests.clients import cli, cli_done, control_plane_client, gateway_client
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked
from tests.test_storage_contract import NOW, a_deployment, a_pruning, a_release, an_app, postgres, sqlite, write

ENGINES = {"sqlite": sqlite, "postgres": postgres}


@pytest.fixture
def new_url(request, tmp_path):
    """Gives the URL of a new store of an engine."""
    numbers = iter(range(100))

    def url(engine: str) -> str:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return ENGINES[engine](request, folder)

    return url


async def fill(url: str, releases: int = 40) -> None:
    """A store with everything in it, things that are gone included."""
    store = await open_store(url)

    async def work(tx) -> None:
        await tx.delete_environment("development")
        await tx.insert_environment(Environment(environment="canary", description="ä", create_time=NOW, created_by="ann"))
        for app in ("shop", "zoo", "bar"):
            await tx.insert_app(an_app(app))
        await tx.replace_draft("shop", Draft(config=b"\0draft", version=3, update_time=NOW))
        for number in range(releases):
            data = b"%d" % number * 1000
            await tx.insert_snapshot(digest_of(data), data)
            await tx.insert_release(a_release(f"v{number}", digest=digest_of(data)))
            revision = await tx.next_revision()
            await tx.insert_deployment(replace(a_deployment(f"d{number}", f"v{number}", revision), digest=digest_of(data)))
            await tx.set_binding("shop", "staging", revision=revision, deployment_id=f"d{number}")
        await tx.insert_deployment(replace(a_deployment("gone", "v0", await tx.next_revision(), "canary"), digest=digest_of(b"0" * 1000)))
        await tx.set_binding("shop", "canary", revision=await tx.revision(), deployment_id="gone")
        await tx.unbind("shop", "canary", revision=await tx.next_revision(), unbind_time=NOW)
        old = a_release("old", digest=digest_of(b"old"))
        await tx.insert_snapshot(old.digest, b"old")
        await tx.insert_release(old)
        await tx.insert_deployment(replace(a_deployment("dold", "old", await tx.next_revision()), digest=old.digest))
        await tx.prune_releases([a_pruning(old)])
        await tx.remember_request(RememberedRequest(caller="ann", request_id="1", fingerprint="f", answer=b"\xff", create_time=NOW))

    try:
        await store.write(work)
    finally:
        await store.close()


async def everything(url: str) -> dict[str, list[tuple]]:
    """All rows of all tables."""
    store = await open_any_store(url)

    async def work(tx):
        found = {table: [] for table in TABLES}
        for table in TABLES:
            described = await copying._describe(store, table, tx)
            columns = ", ".join(sorted(described.columns))
            rows = await tx.rows(f"SELECT {columns} FROM {table} ORDER BY {', '.join(described.key)}")
            found[table] = [tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in rows]
        return found | {"counter": [(store.store_id, await tx.revision())]}

    try:
        return await store.read(work)
    finally:
        await store.close()


@pytest.mark.parametrize("target_engine", ENGINES)
@pytest.mark.parametrize("source_engine", ENGINES)
async def test_everything_is_there_as_it_was_and_goes_on(new_url, source_engine, target_engine):
    source, target = new_url(source_engine), new_url(target_engine)
    await fill(source)
    before = await everything(source)
    copied = await copy_store(source, target)
    assert await everything(target) == before == await everything(source)
    assert {name: count.rows for name, count in copied.tables.items()} == {name: len(before[name]) for name in TABLES}
    assert (copied.store_id, copied.revision) == before["counter"][0]
    store = await open_store(target)
    try:
        await write(store, lambda tx: tx.insert_release(replace(a_release("newest"), digest=digest_of(b"0" * 1000))))
        newest = await store.read(lambda tx: tx.releases("shop", after="", limit=2))
        assert [release.tag for release in newest] == ["newest", "v39"]
        assert await store.write(lambda tx: tx.next_revision()) == copied.revision + 1
    finally:
        await store.close()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_copy_that_was_broken_off_is_no_store_until_it_is_finished(new_url, engine, monkeypatch):
    source, target = new_url("sqlite"), new_url(engine)
    await fill(source, releases=300)
    insert, pieces = copying._insert, []

    async def breaks(into, store, table, rows):
        await insert(into, store, table, rows)
        pieces.append(table.name)
        if pieces.count("releases") == 2:
            raise CannotCopyStore("planted")

    monkeypatch.setattr(copying, "_insert", breaks)
    with pytest.raises(CannotCopyStore, match="planted"):
        await copy_store(source, target)
    monkeypatch.undo()
    with pytest.raises(CannotOpenStore, match="finish it with `pointsman copy-store`"):
        await open_store(target)

    store = await open_store(source)
    await write(
        store,
        lambda tx: tx.insert_app(an_app("later")),
        lambda tx: tx.replace_draft("shop", Draft(config=b"later", version=4, update_time=NOW + timedelta(1))),
        lambda tx: tx.insert_snapshot(digest_of(b"later"), b"later"),
        lambda tx: tx.insert_release(a_release("later", digest=digest_of(b"later"))),
        lambda tx: tx.next_revision(),
    )
    await store.close()
    copied = await copy_store(source, target)
    assert await everything(target) == await everything(source)
    assert copied.tables["snapshots"] == copying.Count(rows=301, copied=1)
    assert 0 < copied.tables["releases"].copied < 301


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_cannot_be_copied_is_refused_and_left_alone(new_url, engine):
    source, target, third = new_url(engine), new_url(engine), new_url("sqlite")
    await fill(source, releases=2)
    await fill(target, releases=1)
    before = await everything(target)
    with pytest.raises(CannotCopyStore, match="is not empty"):
        await copy_store(source, target)
    assert await everything(target) == before
    await copy_store(source, third)
    with pytest.raises(CannotCopyStore, match="or a finished copy of it"):
        await copy_store(source, third)
    with pytest.raises(CannotCopyStore, match="is not empty"):
        await copy_store(target, third)
    with pytest.raises(CannotOpenStore, match="in use by another control plane"):
        await copy_store(third, third)
    assert await everything(third) == await everything(source)


async def test_another_stores_unfinished_copy_and_one_that_lost_rows_are_refused(new_url, monkeypatch):
    first, second, target = new_url("sqlite"), new_url("sqlite"), new_url("sqlite")
    await fill(first)
    await fill(second)

    async def changed(*_):
        raise CannotCopyStore("planted")

    monkeypatch.setattr(copying, "_finish", changed)
    with pytest.raises(CannotCopyStore, match="planted"):
        await copy_store(first, target)
    monkeypatch.undo()
    with pytest.raises(CannotCopyStore, match="is not empty, it holds an unfinished copy"):
        await copy_store(second, target)
    store = await open_store(first)
    await write(store, lambda tx: tx.forget_requests(before=NOW + timedelta(1)))
    await store.close()
    with pytest.raises(CannotCopyStore, match=r"has 1 requests, and .* 0: it was changed since"):
        await copy_store(first, target)


async def test_a_store_that_a_control_plane_uses_is_neither_copied_nor_filled(new_url, tmp_path):
    used, free = new_url("postgres"), new_url("postgres")
    async with start_control_plane(tmp_path, "--store", used):
        for source, target in ((used, free), (free, used)):
            with pytest.raises(CannotCopyStore, match=r"is in use by the control plane at .*; stop it first"):
                await copy_store(source, target)
    await copy_store(used, free)


async def test_a_damaged_snapshot_is_not_copied(new_url):
    source, target = new_url("sqlite"), new_url("sqlite")
    await fill(source)
    database = sqlite3.connect(source.removeprefix("sqlite:///"))
    database.execute("DROP TRIGGER snapshots_refuse_update")
    database.execute("UPDATE snapshots SET data = x'00' WHERE digest = ?", [digest_of(b"7" * 1000)])
    database.commit()
    database.close()
    with pytest.raises(CannotCopyStore, match=f"{digest_of(b'7' * 1000)} in .* is damaged, it hashes to {digest_of(bytes(1))}"):
        await copy_store(source, target)


async def test_every_table_is_copied_or_known_to_be_each_stores_own(new_url):
    """A new table belongs into TABLES or NOT_COPIED."""
    for engine, sql in (
        ("sqlite", "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%'"),
        ("postgres", "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"),
    ):
        store = await open_store(new_url(engine))
        found = {row[0] for row in await store.read(lambda tx, sql=sql: tx.rows(sql))}
        await store.close()
        assert found - set(NOT_COPIED) == set(TABLES)


async def test_an_installation_moves_to_postgresql_and_its_gateways_go_on(new_url, tmp_path):
    target = new_url("postgres")
    async with start_control_plane(tmp_path) as old:
        async with start_gateway(tmp_path, old.grpc) as gateway_server, gateway_client(gateway_server) as gate:
            async with control_plane_client(old) as plane:
                app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
                before = (await plane.deploy(app, "v1")).binding
            source = f"sqlite:///{tmp_path}/pointsman.db"
            refused = await cli("copy-store", "--from", source, "--to", target)
            assert (refused.code, refused.stderr.count("\n")) == (1, 1)
            assert "in use by another control plane" in refused.stderr
            await old.stop()
            told = await cli_done("copy-store", "--from", source, "--to", target)
            assert "releases: 2 (2 copied now)" in told
            assert "revision 1: everything is there, every digest is right" in told
            async with start_control_plane(tmp_path, "--store", target, "--listen", old.grpc) as new:
                async with control_plane_client(new) as plane:
                    assert await plane.binding(app) == before

                    async def connected() -> bool:
                        return (await gate.status()).connected

                    await eventually(connected)
                    deployed = await plane.deploy(app, "v2")
                    assert deployed.rollout.gateways_applied == deployed.rollout.gateways_total == 1
                    assert deployed.binding.revision == before.revision + 1
                    assert (await gate.trigger(app)).release == "v2"
