"""The Store is a specification: each "must" of control_plane/storage/base.py, on every backend.

A new backend adds one entry to BACKENDS.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from control_plane.model import (
    Action,
    App,
    Deployment,
    Draft,
    Environment,
    Pruning,
    RateLimit,
    Release,
    RememberedRequest,
    Role,
    StaleAction,
    StalenessPolicy,
    Token,
    Unbinding,
)
from control_plane.storage import open_store
from control_plane.storage.base import Store, Transaction
from control_plane.storage.sqlite import SqliteStore
from tests.eventually import eventually

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def sqlite(_request: pytest.FixtureRequest, folder: Path) -> str:
    return f"sqlite:///{folder}/pointsman.db"


def postgres(request: pytest.FixtureRequest, _folder: Path) -> str:
    server = request.getfixturevalue("postgres_server")
    return str(server.url(server.new_database()))


# Each gives the URL of a new store.
BACKENDS: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {"sqlite": sqlite, "postgres": postgres}


@pytest.fixture(params=BACKENDS)
def url(request, tmp_path):
    return BACKENDS[request.param](request, tmp_path)


@pytest.fixture
async def store(url):
    opened = await open_store(url)
    yield opened
    await opened.close()


def an_app(app: str = "shop", **more: object) -> App:
    return App(**{"app": app, "description": "d", "create_time": NOW, "created_by": "ann"} | more)


def a_release(tag: str, app: str = "shop", digest: str = "sha256:1") -> Release:
    return Release(app=app, tag=tag, description="", digest=digest, size_bytes=3, create_time=NOW, created_by="ann")


def a_pruning(release: Release) -> Pruning:
    known = {"app": release.app, "tag": release.tag, "digest": release.digest, "size_bytes": release.size_bytes}
    return Pruning(**known, prune_time=NOW, pruned_by="bob")


def a_deployment(deployment_id: str, release: str, revision: int, environment: str = "staging", app: str = "shop") -> Deployment:
    return Deployment(
        deployment_id=deployment_id,
        app=app,
        environment=environment,
        action=Action.PROMOTE,
        release=release,
        digest="sha256:1",
        previous_release="v0",
        revision=revision,
        actor="ann",
        reason="why",
        create_time=NOW,
        forced=True,
        beneath="d0",
    )


async def write(store: Store, *calls: Callable[[Transaction], Awaitable[object]], dry_run: bool = False) -> None:
    async def work(tx: Transaction) -> None:
        for call in calls:
            await call(tx)

    await store.write(work, dry_run=dry_run)


async def filled(store: Store) -> None:
    await write(
        store,
        lambda tx: tx.insert_app(an_app()),
        lambda tx: tx.insert_snapshot("sha256:1", b"one"),
        lambda tx: tx.insert_release(a_release("v1")),
        lambda tx: tx.insert_release(a_release("v2")),
    )


async def bind(store: Store, deployment_id: str, release: str, environment: str = "staging", app: str = "shop") -> int:
    async def work(tx: Transaction) -> int:
        revision = await tx.next_revision()
        await tx.insert_deployment(a_deployment(deployment_id, release, revision, environment, app))
        await tx.set_binding(app, environment, revision=revision, deployment_id=deployment_id)
        return revision

    return await store.write(work)


async def test_a_new_store_has_three_environments_revision_0_and_an_identity(store):
    assert await store.read(lambda tx: tx.environment_ids()) == ["development", "staging", "production"]
    assert await store.read(lambda tx: tx.revision()) == 0
    assert len(store.store_id) == 36


async def test_what_is_absent_is_none_or_missing(store):
    async def work(tx):
        return [
            await tx.app("x"),
            await tx.environment("x"),
            await tx.release("x", "v1"),
            await tx.snapshot("sha256:x"),
            await tx.binding("x", "staging"),
            await tx.deployment("x"),
            await tx.last_deployment_of("x", "staging", "v1"),
            await tx.remembered_request("ann", "x"),
            await tx.apps(after="", limit=5) or None,
            await tx.bindings_since(0) or None,
            await tx.ever_live("x", []) or None,
        ]

    assert set(await store.read(work)) == {None}


async def test_apps_and_drafts(store):
    await write(store, lambda tx: tx.insert_app(an_app("a")), lambda tx: tx.insert_app(an_app("b")), lambda tx: tx.insert_app(an_app("c")))
    assert await store.read(lambda tx: tx.app("a")) == an_app("a")
    assert await store.read(lambda tx: tx.app_ids()) == ["c", "b", "a"]
    assert [app.app for app in await store.read(lambda tx: tx.apps(after="", limit=2))] == ["c", "b"]
    assert [app.app for app in await store.read(lambda tx: tx.apps(after="b", limit=2))] == ["a"]
    assert await store.read(lambda tx: tx.draft("a")) == Draft(config=b"", version=0, update_time=None)
    draft = Draft(config=b"\x00\xff", version=1, update_time=NOW)
    await write(store, lambda tx: tx.replace_draft("a", draft))
    assert await store.read(lambda tx: tx.draft("a")) == draft
    assert await store.read(lambda tx: tx.app("a")) == an_app("a", draft_version=1, draft_update_time=NOW)


async def test_environments(store):
    canary = Environment(environment="canary", description="one", create_time=NOW, created_by="ann")
    await write(store, lambda tx: tx.insert_environment(canary))
    assert await store.read(lambda tx: tx.environment("canary")) == canary
    names = [one.environment for one in await store.read(lambda tx: tx.environments(after="", limit=3))]
    assert names == ["canary", "production", "staging"]
    assert [one.environment for one in await store.read(lambda tx: tx.environments(after="staging", limit=3))] == ["development"]
    await write(store, lambda tx: tx.update_environment(replace(canary, description="two")))
    assert (await store.read(lambda tx: tx.environment("canary"))).description == "two"
    await write(store, lambda tx: tx.delete_environment("canary"))
    assert await store.read(lambda tx: tx.environment("canary")) is None


async def test_a_staleness_policy_is_told_with_its_environment_and_kept_beyond_it(store):
    first = StalenessPolicy(environment="production", revision=1, max_staleness=timedelta(seconds=1.5), stale_action=StaleAction.REFUSE)
    second = StalenessPolicy(environment="development", revision=2, max_staleness=timedelta(days=365), stale_action=StaleAction.FLAG)

    async def work(tx):
        for policy in (first, second):
            await tx.next_revision()
            await tx.set_staleness_policy(policy)

    await store.write(work)
    found = await store.read(lambda tx: tx.environment("production"))
    assert (found.max_staleness, found.stale_action) == (first.max_staleness, first.stale_action)
    listed = await store.read(lambda tx: tx.environments(after="", limit=9))
    assert [one.stale_action.name for one in listed] == ["REFUSE", "SERVE", "FLAG"]
    assert await store.read(lambda tx: tx.staleness_policies_since(0)) == [first, second]
    assert await store.read(lambda tx: tx.staleness_policies_since(1)) == [second]
    gone = StalenessPolicy(environment="production", revision=3)
    await write(store, lambda tx: tx.delete_environment("production"), lambda tx: tx.set_staleness_policy(gone))
    assert await store.read(lambda tx: tx.staleness_policies_since(0)) == [second, gone]


async def test_tokens_are_told_since_a_revision_and_revoked_for_good(store):
    def token(name, revision, **more):
        told = {
            "token_id": name * 16,
            "secret_hash": name.encode() * 32,
            "name": name,
            "role": Role.TRIGGER,
            "create_time": NOW,
            "created_by": "me",
        }
        return Token(**(told | {"revision": revision} | more))

    limited = {"apps": ("shop",), "environments": ("staging", "production"), "endpoints": ("a/b",)}
    first = token("a", 1, **limited, rate_limit=RateLimit(requests_per_second=0.5, burst=3), expire_time=NOW + timedelta(days=1))
    second = token("b", 2, role=Role.ADMIN)

    async def work(tx):
        for one in (first, second):
            assert await tx.next_revision() == one.revision
            await tx.insert_token(one)

    await store.write(work)
    assert await store.read(lambda tx: tx.token("a" * 16)) == first
    assert await store.read(lambda tx: tx.token("c" * 16)) is None
    assert await store.read(lambda tx: tx.tokens(after="", limit=9)) == [second, first]
    assert await store.read(lambda tx: tx.tokens(after="b" * 16, limit=9)) == [first]
    assert await store.read(lambda tx: tx.tokens_since(1)) == [second]
    later = NOW + timedelta(hours=1)
    await write(store, lambda tx: tx.revoke_token("a" * 16, revision=3, revoke_time=later))
    revoked = dataclasses.replace(first, secret_hash=b"", revision=3, revoke_time=later)
    assert await store.read(lambda tx: tx.tokens_since(2)) == [revoked]
    await write(store, lambda tx: tx.note_tokens_used({"b" * 16: later, "c" * 16: later}))
    await write(store, lambda tx: tx.note_tokens_used({"b" * 16: NOW}))
    assert (await store.read(lambda tx: tx.token("b" * 16))).last_used_time == later
    with pytest.raises(Exception, match=r"(?i)unique"):
        await write(store, lambda tx: tx.insert_token(second))


async def test_releases_and_snapshots(store):
    await filled(store)
    await write(store, lambda tx: tx.insert_snapshot("sha256:1", b"another"))
    assert await store.read(lambda tx: tx.snapshot("sha256:1")) == b"one"
    assert await store.read(lambda tx: tx.release("shop", "v1")) == a_release("v1")
    assert [r.tag for r in await store.read(lambda tx: tx.releases("shop", after="", limit=5))] == ["v2", "v1"]
    assert [r.tag for r in await store.read(lambda tx: tx.releases("shop", after="v2", limit=5))] == ["v1"]
    assert await store.read(lambda tx: tx.release_tags("shop")) == ["v2", "v1"]


async def test_the_newest_tags_of_every_app(store):
    await filled(store)
    for app, tags in (("bare", ()), ("chat", ("a", "c", "b"))):
        await write(store, lambda tx, app=app: tx.insert_app(an_app(app)))
        for tag in tags:
            await write(store, lambda tx, app=app, tag=tag: tx.insert_release(a_release(tag, app)))
    for most in (9, 2, 1):
        assert await store.read(lambda tx, n=most: tx.newest_tags(each=n)) == {"chat": ["b", "c", "a"][:most], "shop": ["v2", "v1"][:most]}


async def test_releases_are_found_by_what_they_say(store):
    await filled(store)
    for tag, description in (("2026-fix", "Kinder greeting"), ("2026_100%", "as it was!")):
        release = replace(a_release(tag), description=description)
        await write(store, lambda tx, release=release: tx.insert_release(release))

    async def found(text: str, after: str = "", limit: int = 5) -> list[str]:
        return [r.tag for r in await store.read(lambda tx: tx.releases("shop", after=after, limit=limit, matching=text))]

    assert await found("KINDER") == ["2026-fix"]
    assert await found("2026") == ["2026_100%", "2026-fix"]
    assert await found("2026", limit=1) == ["2026_100%"]
    assert await found("2026", after="2026_100%") == ["2026-fix"]
    assert [await found(text) for text in ("6_1", "0%", "was!", "6%f", "2026_fix")] == [["2026_100%"]] * 3 + [[], []]
    assert await found(a_release("v1").digest) == ["2026_100%", "2026-fix", "v2", "v1"]


async def test_bindings_and_history(store):
    await filled(store)
    assert [await bind(store, "d1", "v1"), await bind(store, "d2", "v2"), await bind(store, "d3", "v1", "production")] == [1, 2, 3]
    live = await store.read(lambda tx: tx.binding("shop", "staging"))
    assert (live.revision, live.deployment) == (2, a_deployment("d2", "v2", 2))
    assert await store.read(lambda tx: tx.live_environments("shop", ["v1", "v2", "v9"])) == {"v1": ["production"], "v2": ["staging"]}
    assert await store.read(lambda tx: tx.ever_live("shop", ["v1", "v2", "v9"])) == {"v1", "v2"}
    assert await store.read(lambda tx: tx.bound_apps("staging")) == ["shop"]
    assert [b.revision for b in await store.read(lambda tx: tx.bindings_since(0))] == [2, 3]
    assert [b.revision for b in await store.read(lambda tx: tx.bindings_since(2))] == [3]
    assert await store.read(lambda tx: tx.deployment("d1")) == a_deployment("d1", "v1", 1)
    assert (await store.read(lambda tx: tx.last_deployment_of("shop", "staging", "v1"))).deployment_id == "d1"

    async def history(**filters):
        found = await store.read(lambda tx: tx.deployments(**{"app": "", "environment": "", "after": "", "limit": 9} | filters))
        return [entry.deployment_id for entry in found]

    assert await history() == ["d3", "d2", "d1"]
    assert await history(environment="staging") == ["d2", "d1"]
    assert await history(app="other") == []
    assert await history(after="d3", limit=1) == ["d2"]


async def test_bindings_are_listed_newest_revision_first_then_by_name(store):
    await filled(store)
    await write(store, lambda tx: tx.insert_app(an_app("blog")), lambda tx: tx.insert_release(a_release("v1", "blog")))

    async def together(tx: Transaction) -> None:
        revision = await tx.next_revision()
        for number, (app, environment) in enumerate([("shop", "staging"), ("blog", "staging"), ("blog", "production")]):
            await tx.insert_deployment(a_deployment(f"d{number}", "v1", revision, environment, app))
            await tx.set_binding(app, environment, revision=revision, deployment_id=f"d{number}")

    await store.write(together)
    await bind(store, "d9", "v2", "production")

    async def page(after, limit=2, **filters):
        found = await store.read(lambda tx: tx.bindings(**{"app": "", "environment": ""} | filters, after=after, limit=limit))
        return [(b.revision, b.app, b.environment) for b in found]

    everything = [(2, "shop", "production"), (1, "blog", "production"), (1, "blog", "staging"), (1, "shop", "staging")]
    assert await page(None, 9) == everything
    assert await page(None) == everything[:2]
    assert await page(everything[1]) == everything[2:]
    assert await page(None, 9, environment="staging") == everything[2:]
    assert await page(None, 9, app="shop", environment="production") == everything[:1]


async def test_a_binding_that_is_gone_is_still_found_by_those_who_resume(store):
    await filled(store)
    await bind(store, "d1", "v1")

    async def unbind(tx: Transaction) -> None:
        await tx.unbind("shop", "staging", revision=await tx.next_revision(), unbind_time=NOW)

    await store.write(unbind)
    first = await store.read(lambda tx: tx.deployment("d1"))
    assert await store.read(lambda tx: tx.unbinding_after(first)) == Unbinding(revision=2, unbind_time=NOW)
    assert await store.read(lambda tx: tx.unbinding_after(replace(first, revision=2))) is None
    assert [(b.revision, b.deployment) for b in await store.read(lambda tx: tx.bindings_since(1))] == [(2, None)]
    assert (await store.read(lambda tx: tx.binding("shop", "staging"))).deployment is None
    assert await store.read(lambda tx: tx.bindings(app="", environment="", after=None, limit=9)) == []
    assert await store.read(lambda tx: tx.bound_apps("staging")) == []
    assert await store.read(lambda tx: tx.ever_live("shop", ["v1"])) == {"v1"}


async def test_bindings_as_of_a_moment(store):
    """Bound at 1, 3 and 7 in staging, at 4 in production; staging unbound at 5."""
    await filled(store)

    def at(seconds: float) -> datetime:
        return NOW + timedelta(seconds=seconds)

    async def work(tx: Transaction) -> None:
        for second, release, environment in ((1, "v1", "staging"), (3, "v2", "staging"), (4, "v1", "production")):
            await bind_at(tx, second, release, environment)
        await tx.unbind("shop", "staging", revision=await tx.next_revision(), unbind_time=at(5))
        await bind_at(tx, 7, "v1", "staging")

    async def bind_at(tx: Transaction, second: int, release: str, environment: str) -> None:
        entry = a_deployment(f"d{second}", release, await tx.next_revision(), environment)
        await tx.insert_deployment(replace(entry, create_time=at(second)))
        await tx.set_binding("shop", environment, revision=entry.revision, deployment_id=entry.deployment_id)

    await store.write(work)

    async def live(seconds: float, after=None, limit: int = 9, **filters) -> list:
        wanted = {"app": "", "environment": ""} | filters
        found = await store.read(lambda tx: tx.bindings_as_of(at(seconds), **wanted, after=after, limit=limit))
        return [(b.revision, b.environment, b.deployment.deployment_id) for b in found]

    assert await live(0.999999) == []
    assert await live(1) == await live(2.9) == [(1, "staging", "d1")]
    assert await live(3) == [(2, "staging", "d3")]
    assert await live(4.9) == [(3, "production", "d4"), (2, "staging", "d3")]
    assert await live(5) == await live(6.9) == [(3, "production", "d4")]
    assert await live(7) == await live(10**6) == [(5, "staging", "d7"), (3, "production", "d4")]
    assert await live(7, limit=1) == [(5, "staging", "d7")]
    assert await live(7, after=(5, "shop", "staging")) == [(3, "production", "d4")]
    assert await live(7, environment="staging") == [(5, "staging", "d7")]
    assert await live(5, environment="staging") == await live(7, app="blog") == []


async def test_requests_are_remembered_until_they_are_forgotten(store):
    request = RememberedRequest(caller="ann", request_id="r", fingerprint="f", answer=b"\x00", create_time=NOW)
    await write(store, lambda tx: tx.remember_request(request))
    assert await store.read(lambda tx: tx.remembered_request("ann", "r")) == request
    assert await store.read(lambda tx: tx.remembered_request("bob", "r")) is None
    assert await store.write(lambda tx: tx.forget_requests(before=NOW)) == 0
    assert await store.write(lambda tx: tx.forget_requests(before=NOW + timedelta(microseconds=1))) == 1
    assert await store.read(lambda tx: tx.remembered_request("ann", "r")) is None


async def test_a_transaction_sees_its_own_writes_and_nobody_else_does_before_the_commit(store):
    seen = []

    async def work(tx: Transaction) -> None:
        await tx.insert_app(an_app())
        seen.append(await tx.app("shop"))

    await store.write(work, dry_run=True)
    assert seen == [an_app()]
    assert await store.read(lambda tx: tx.app("shop")) is None


async def test_what_raises_is_undone_alone_and_passed_on(store):
    async def fails(tx: Transaction) -> None:
        await tx.insert_app(an_app("lost"))
        raise LookupError("on purpose")

    async def revision(tx: Transaction) -> int:
        return await tx.next_revision()

    results = await asyncio.gather(*(store.write(fails if number % 3 == 0 else revision) for number in range(30)), return_exceptions=True)
    assert [str(result) for result in results[::3]] == ["on purpose"] * 10
    assert sorted(result for result in results if isinstance(result, int)) == list(range(1, 21))
    assert await store.read(lambda tx: tx.app_ids()) == []


@pytest.mark.parametrize(
    "broken",
    [
        lambda tx: tx.insert_app(an_app()),
        lambda tx: tx.insert_release(a_release("v1")),
        lambda tx: tx.insert_release(a_release("v9", digest="sha256:none")),
        lambda tx: tx.insert_release(a_release("v9", app="none")),
        lambda tx: tx.insert_deployment(a_deployment("d9", "none", 1)),
        lambda tx: tx.set_binding("shop", "staging", revision=1, deployment_id="none"),
    ],
)
async def test_ids_are_free_and_references_hold(store, broken):
    await filled(store)
    with pytest.raises(Exception, match=r"(?i)unique|foreign|violates|need their release"):
        await write(store, broken)
    await bind(store, "d1", "v1")


async def test_a_transaction_may_await_nothing_but_its_own_methods(store):
    async def work(tx: Transaction) -> None:
        await tx.insert_app(an_app())
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="await nothing but its own methods"):
        await store.write(work)
    with pytest.raises(RuntimeError, match="await nothing but its own methods"):
        await store.read(lambda _tx: asyncio.sleep(0))
    assert await store.read(lambda tx: tx.app("shop")) is None


async def test_promise_02_concurrent_transactions_get_revisions_of_their_own_in_the_order_of_their_commits(store):
    order = []

    async def work(tx: Transaction) -> int:
        return await tx.next_revision()

    async def one() -> None:
        order.append(await store.write(work))

    await asyncio.gather(*(one() for _ in range(200)))
    assert sorted(order) == list(range(1, 201))
    assert await store.read(lambda tx: tx.revision()) == 200


async def test_a_change_of_the_revision_rings(store):
    rings = []
    store.on_change(lambda: rings.append(1))
    await write(store, lambda tx: tx.insert_app(an_app()))
    if isinstance(store, SqliteStore):
        # PostgreSQL may ring at any time, as when it begins to listen.
        assert rings == []
    await write(store, lambda tx: tx.next_revision())
    await eventually(lambda: rings)


async def test_promise_03_what_was_written_is_there_after_a_restart(store, url):
    await filled(store)
    await bind(store, "d1", "v1")
    store_id = store.store_id
    await store.close()
    again = await open_store(url)
    try:
        assert again.store_id == store_id
        assert (await again.read(lambda tx: tx.binding("shop", "staging"))).deployment.release == "v1"
        assert await again.read(lambda tx: tx.revision()) == 1
    finally:
        await again.close()


async def test_a_caller_that_goes_away_harms_nobody(store):
    tasks = [asyncio.create_task(store.write(lambda tx: tx.next_revision())) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.write(lambda tx: tx.next_revision())
    assert 11 <= await store.read(lambda tx: tx.revision()) <= 21


async def test_the_next_entry_of_a_binding_is_of_the_same_binding(store):
    await filled(store)
    for deployment_id, environment in (("d1", "staging"), ("d2", "production"), ("d3", "staging")):
        await bind(store, deployment_id, "v1", environment)

    async def after(deployment_id: str) -> str | None:
        async def work(tx):
            return await tx.deployment_after(await tx.deployment(deployment_id))

        found = await store.read(work)
        return None if found is None else found.deployment_id

    assert [await after(deployment_id) for deployment_id in ("d1", "d2", "d3")] == ["d3", None, None]
