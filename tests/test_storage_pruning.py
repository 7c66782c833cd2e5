"""Releases that go: the one path that the database lets delete, on every backend, and how a store from before is brought there."""

from __future__ import annotations

import pytest

from control_plane.storage import open_store, postgres_schema
from control_plane.storage.migrations import steps
from tests.test_storage_contract import BACKENDS, NOW, a_deployment, a_pruning, a_release, bind, filled, write

REFUSED = "never change: DELETE is refused"


@pytest.fixture(params=BACKENDS)
def url(request, tmp_path):
    return BACKENDS[request.param](request, tmp_path)


@pytest.fixture
async def store(url):
    opened = await open_store(url)
    yield opened
    await opened.close()


async def sql(store, statement: str, *parameters: object) -> list:
    return await store.write(lambda tx: tx.rows(statement, *parameters))


async def held(store) -> tuple:
    """Bindings and history."""

    async def work(tx):
        return await tx.bindings_since(0), await tx.deployments(app="", environment="", after="", limit=99)

    return await store.read(work)


async def prunable(store, *, newest: int = 1, deployed: int = 1, limit: int = 9) -> list[str]:
    found = await store.read(lambda tx: tx.prunable_releases("shop", keep_newest=newest, keep_deployed=deployed, limit=limit))
    return [release.tag for release in found]


async def test_what_is_bound_new_or_lately_deployed_is_not_prunable(store):
    await filled(store)
    for number in range(3, 8):
        await write(store, lambda tx, number=number: tx.insert_release(a_release(f"v{number}")))
    for number, (release, environment) in enumerate(
        [("v1", "staging"), ("v2", "staging"), ("v3", "staging"), ("v4", "production"), ("v1", "staging"), ("v5", "production")]
    ):
        await bind(store, f"d{number}", release, environment)
    assert await prunable(store) == ["v2", "v3", "v4", "v6"]
    assert await prunable(store, newest=2) == ["v2", "v3", "v4"]
    assert await prunable(store, newest=9) == []
    assert await prunable(store, deployed=2) == ["v2", "v6"]
    assert await prunable(store, deployed=3) == ["v6"]
    assert await prunable(store, deployed=0) == ["v2", "v3", "v4", "v6"]
    assert await prunable(store, limit=2) == ["v2", "v3"]
    await write(store, lambda tx: tx.unbind("shop", "production", revision=9, unbind_time=NOW))
    assert await prunable(store) == ["v2", "v3", "v4", "v6"]
    assert await prunable(store, deployed=0) == ["v2", "v3", "v4", "v5", "v6"]


async def test_a_pruned_release_leaves_its_record_its_history_and_a_snapshot_that_others_share(store):
    await filled(store)
    await write(
        store,
        lambda tx: tx.insert_snapshot("sha256:own", b"of v3 alone"),
        lambda tx: tx.insert_release(a_release("v3", digest="sha256:own")),
    )
    await bind(store, "d1", "v1")
    await bind(store, "d2", "v2")
    shared, own = a_release("v1"), a_release("v3", digest="sha256:own")
    assert await store.write(lambda tx: tx.prune_releases([a_pruning(shared)])) == 0
    assert await store.write(lambda tx: tx.prune_releases([a_pruning(own)])) == len(b"of v3 alone")
    assert await store.read(lambda tx: tx.release("shop", "v1")) is None
    assert await store.read(lambda tx: tx.pruning("shop", "v1")) == a_pruning(shared)
    assert await store.read(lambda tx: tx.pruning("shop", "v2")) is None
    assert await store.read(lambda tx: tx.snapshot("sha256:1")) == b"one"
    assert await store.read(lambda tx: tx.snapshot("sha256:own")) is None
    assert (await store.read(lambda tx: tx.deployment("d1"))).release == "v1"
    assert [release.tag for release in await store.read(lambda tx: tx.releases("shop", after="", limit=9))] == ["v2"]


async def test_promise_01_nothing_goes_without_its_record_and_nothing_comes_back(store):
    await filled(store)
    await bind(store, "d1", "v1")
    with pytest.raises(Exception, match=REFUSED):
        await store.write(lambda tx: tx.prune_releases([a_pruning(a_release("v1"))]))
    with pytest.raises(Exception, match=REFUSED):
        await store.write(lambda tx: tx.prune_releases([a_pruning(a_release("v2", digest="sha256:other"))]))
    for statement in ("DELETE FROM releases WHERE tag = 'v2'", "DELETE FROM snapshots"):
        with pytest.raises(Exception, match=REFUSED):
            await sql(store, statement)
    await write(store, lambda tx: tx.prune_releases([a_pruning(a_release("v2"))]))
    with pytest.raises(Exception, match="never come back"):
        await write(store, lambda tx: tx.insert_release(a_release("v2")))
    for statement in ("DELETE FROM prunings", "UPDATE prunings SET tag = 'v1'"):
        with pytest.raises(Exception, match="prunings never change"):
            await sql(store, statement)
    with pytest.raises(Exception, match=r"(?i)foreign|violates"):
        await sql(store, "DELETE FROM snapshots WHERE digest = 'sha256:1'")


async def test_a_store_from_before_is_brought_forward_with_all_that_it_holds(url, monkeypatch):
    names = [name for name, _ in postgres_schema.STEPS]
    monkeypatch.setattr(postgres_schema, "STEPS", postgres_schema.STEPS[: names.index("unbindings")])
    known = [step.name for step in steps._migrations]
    monkeypatch.setattr(steps, "_migrations", steps._migrations[: known.index("unbindings")])
    store = await open_store(url)
    await filled(store)
    await bind(store, "d1", "v1")
    await bind(store, "d2", "v2")
    await bind(store, "d3", "v1", "production")
    await sql(store, "UPDATE bindings SET deployment_id = NULL, revision = 4 WHERE environment = 'production'")
    await sql(store, "UPDATE counter SET revision = 4")
    before = await held(store)
    await store.close()
    monkeypatch.undo()

    store = await open_store(url)
    assert await held(store) == before
    assert [row[0] for row in await sql(store, "SELECT environment FROM unbindings")] == ["production"]
    for statement in ("UPDATE deployments SET reason = 'x'", "DELETE FROM deployments"):
        with pytest.raises(Exception, match="deployments never change"):
            await sql(store, statement)
    await bind(store, "d4", "v2", "production")
    with pytest.raises(Exception, match=r"(?i)unique"):
        await write(store, lambda tx: tx.insert_deployment(a_deployment("d4", "v2", 9)))
    await write(store, lambda tx: tx.prune_releases([a_pruning(a_release("v1"))]))
    assert [entry.deployment_id for entry in (await held(store))[1]] == ["d4", "d3", "d2", "d1"]
    await store.close()
    store = await open_store(url)
    assert (await store.read(lambda tx: tx.binding("shop", "production"))).deployment.deployment_id == "d4"
    await store.close()
