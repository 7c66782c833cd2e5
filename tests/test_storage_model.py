"""Any sequence of calls gives, on every backend, what a dictionary would: Hypothesis looks for one that does not.

Also what the model leaves out of the sequence: transactions that fail, are dry, or share a commit, and restarts in between.
"""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from control_plane.model import Binding, Deployment, Draft, Environment, StaleAction, StalenessPolicy
from control_plane.storage import open_store
from tests.test_storage_contract import BACKENDS, NOW, a_deployment, a_pruning, a_release, an_app, filled

APPS = st.sampled_from(["blog", "shop", "wiki"])
TAGS = st.sampled_from(["v1", "v2", "v3", "v4"])
ENVIRONMENT_IDS = ["development", "production", "canary"]
ENVIRONMENTS = st.sampled_from(ENVIRONMENT_IDS)
CONTENTS = [b"", b"\0\xff", b"three"]
DIGESTS = ["sha256:1", *(f"sha256:{content.hex()}" for content in CONTENTS)]
# A step costs ten times as much where each statement crosses a network.
EXAMPLES = {"sqlite": 40, "postgres": 15}
LIMITS = st.integers(1, 4)


class Undo(Exception):
    """What a work raises to have its changes undone."""


@dataclass
class Model:
    """The store as dictionaries; insertion order is age."""

    revision: int = 0
    apps: dict = field(default_factory=dict)
    drafts: dict = field(default_factory=dict)
    environments: dict = field(default_factory=lambda: dict.fromkeys(["development", "staging", "production"]))
    snapshots: dict = field(default_factory=dict)
    releases: dict = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    bindings: dict[tuple[str, str], Binding] = field(default_factory=dict)
    pruned: set[tuple[str, str]] = field(default_factory=set)
    policies: dict[str, tuple] = field(default_factory=dict)
    past: dict[int, dict[tuple[str, str], Binding]] = field(default_factory=dict)

    def bind(self, bindings: dict[tuple[str, str], Binding]) -> None:
        """At the revision that was just given."""
        self.bindings = self.past[self.revision] = bindings

    def bindings_as_of(self, revision: int) -> list[Binding]:
        """What was live when the store was there; see time_of."""
        found = max((known for known in self.past if known <= revision), default=0)
        live = [b for b in self.past.get(found, {}).values() if b.deployment]
        return sorted(live, key=lambda b: (-b.revision, b.app, b.environment))


def newest(values: list, after, limit: int) -> list:
    """A page of what is listed newest first; `after` is the one that the page before ended with."""
    listed = values[::-1]
    return listed[listed.index(after) + 1 if after is not None else 0 :][:limit]


def time_of(revision: int) -> datetime:
    """When what has this revision happened."""
    return NOW + timedelta(seconds=revision)


class StoreMachine(RuleBasedStateMachine):
    """One store and its model. Each rule is one transaction; its fate says whether it is kept, dry, or fails at its end."""

    new_url: Callable[[Path], str]
    loop: asyncio.AbstractEventLoop
    fates = st.sampled_from(["kept", "kept", "kept", "dry", "fails"])

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.model.apps["shop"] = an_app("shop")
        self.model.snapshots["sha256:1"] = b"one"
        self.model.releases |= {("shop", tag): a_release(tag) for tag in ("v1", "v2")}
        self.folder = TemporaryDirectory()
        self.url = self.new_url(Path(self.folder.name))
        self.store = self.run(open_store(self.url))
        self.run(filled(self.store))

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.folder.cleanup()

    def write(self, fate: str, work, change) -> None:
        """Does it to the store, and to the model when it is kept."""

        async def whole(tx):
            given = await work(tx)
            if fate == "fails":
                raise Undo
            return given

        if fate == "fails":
            with pytest.raises(Undo):
                self.run(self.store.write(whole))
        else:
            self.run(self.store.write(whole, dry_run=fate == "dry"))
        if fate == "kept":
            change(self.model)

    def read(self, work):
        return self.run(self.store.read(work))

    @rule(app=APPS, fate=fates)
    def insert_app(self, app, fate):
        if app in self.model.apps:
            with pytest.raises(Exception, match=r"(?i)unique"):
                self.run(self.store.write(lambda tx: tx.insert_app(an_app(app))))
            return
        self.write(fate, lambda tx: tx.insert_app(an_app(app)), lambda model: model.apps.update({app: an_app(app)}))

    @rule(app=APPS, config=st.binary(max_size=20), fate=fates)
    def replace_draft(self, app, config, fate):
        if app not in self.model.apps:
            return
        before = self.model.apps[app]
        draft = Draft(config=config, version=before.draft_version + 1, update_time=NOW)

        def change(model):
            model.apps[app] = replace(before, draft_version=draft.version, draft_update_time=NOW)
            model.drafts[app] = draft

        self.write(fate, lambda tx: tx.replace_draft(app, draft), change)

    @rule(environment=ENVIRONMENTS, text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5), fate=fates)
    def insert_or_update_environment(self, environment, text, fate):
        there = environment in self.model.environments
        value = Environment(environment=environment, description=text, create_time=NOW, created_by="ann")
        if there and (old := self.read(lambda tx: tx.environment(environment))):
            value = replace(old, description=text)
        self.write(
            fate,
            lambda tx: tx.update_environment(value) if there else tx.insert_environment(value),
            lambda model: model.environments.update({environment: value}),
        )

    @rule(environment=ENVIRONMENTS, fate=fates)
    def delete_environment(self, environment, fate):
        if environment in self.model.environments:
            self.write(fate, lambda tx: tx.delete_environment(environment), lambda model: model.environments.pop(environment))

    @rule(environment=ENVIRONMENTS, limit=st.none() | st.integers(1, 10**12), action=st.sampled_from(StaleAction), fate=fates)
    def set_staleness_policy(self, environment, limit, action, fate):
        """Told with its environment while there is one, and kept beyond it."""
        limit = None if limit is None else timedelta(microseconds=limit)

        async def work(tx):
            revision = await tx.next_revision()
            await tx.set_staleness_policy(
                StalenessPolicy(environment=environment, revision=revision, max_staleness=limit, stale_action=action)
            )

        def change(model):
            model.revision += 1
            model.policies[environment] = (model.revision, limit, action)

        self.write(fate, work, change)

    @rule(app=APPS, tag=TAGS, content=st.sampled_from(CONTENTS), fate=fates)
    def create_release(self, app, tag, content, fate):
        release = a_release(tag, app, f"sha256:{content.hex()}")

        async def work(tx):
            await tx.insert_snapshot(release.digest, content)
            await tx.insert_release(release)

        if (app, tag) in self.model.releases.keys() | self.model.pruned or app not in self.model.apps:
            with pytest.raises(Exception, match=r"(?i)unique|foreign|never come back"):
                self.run(self.store.write(work))
            return

        def change(model):
            model.snapshots[release.digest] = content
            model.releases[app, tag] = release

        self.write(fate, work, change)

    @rule(app=APPS, keep_newest=st.integers(1, 3), keep_deployed=st.integers(0, 2), limit=LIMITS, fate=fates)
    def prune(self, app, keep_newest, keep_deployed, limit, fate):
        model = self.model
        tags = [tag for owner, tag in model.releases if owner == app]
        kept = {b.deployment.release for b in model.bindings.values() if b.app == app and b.deployment} | set(tags[-keep_newest:])
        for environment in ENVIRONMENT_IDS:
            entries = [e.release for e in model.deployments.values() if (e.app, e.environment) == (app, environment)]
            kept |= set(entries[-keep_deployed:] if keep_deployed else [])
        going = [model.releases[app, tag] for tag in tags if tag not in kept][:limit]

        async def work(tx):
            found = await tx.prunable_releases(app, keep_newest=keep_newest, keep_deployed=keep_deployed, limit=limit)
            assert found == going
            for release in found:
                await tx.prune_releases([a_pruning(release)])
                assert await tx.pruning(app, release.tag) == a_pruning(release)

        def change(model):
            for release in going:
                del model.releases[app, release.tag]
                model.pruned.add((app, release.tag))
                if release.digest not in {other.digest for other in model.releases.values()}:
                    del model.snapshots[release.digest]

        self.write(fate, work, change)

    @rule(data=st.data(), environments=st.lists(ENVIRONMENTS, min_size=1, max_size=3, unique=True), fate=fates)
    def deploy(self, data, environments, fate):
        """To several environments at one revision."""
        if not self.model.releases:
            return
        app, tag = data.draw(st.sampled_from(sorted(self.model.releases)))
        changed = copy.copy(self.model.bindings)
        entries = {}

        async def work(tx):
            revision = await tx.next_revision()
            for environment in environments:
                entry = replace(a_deployment(f"{revision}-{environment}", tag, revision, environment, app), create_time=time_of(revision))
                await tx.insert_deployment(entry)
                await tx.set_binding(app, environment, revision=revision, deployment_id=entry.deployment_id)
                assert (await tx.binding(app, environment)).deployment == entry
                entries[entry.deployment_id] = entry
                changed[app, environment] = Binding(app=app, environment=environment, revision=revision, deployment=entry)

        def change(model):
            model.revision += 1
            model.deployments |= entries
            model.bind(changed)

        self.write(fate, work, change)

    @rule(data=st.data(), fate=fates)
    def unbind(self, data, fate):
        if not self.model.bindings:
            return
        app, environment = data.draw(st.sampled_from(sorted(self.model.bindings)))

        async def work(tx):
            revision = await tx.next_revision()
            await tx.unbind(app, environment, revision=revision, unbind_time=time_of(revision))

        def change(model):
            model.revision += 1
            gone = Binding(app=app, environment=environment, revision=model.revision, deployment=None)
            model.bind(model.bindings | {(app, environment): gone})

        self.write(fate, work, change)

    @rule(fails=st.lists(st.booleans(), min_size=2, max_size=6))
    def share_a_commit(self, fails):
        async def one(tx, fails):
            revision = await tx.next_revision()
            if fails:
                raise Undo
            return revision

        async def together():
            calls = [self.store.write(lambda tx, fail=fail: one(tx, fail)) for fail in fails]
            return await asyncio.gather(*calls, return_exceptions=True)

        given = [result for result in self.run(together()) if not isinstance(result, Undo)]
        assert sorted(given) == list(range(self.model.revision + 1, self.model.revision + 1 + fails.count(False)))
        self.model.revision += len(given)

    @rule()
    def restart(self):
        store_id = self.store.store_id
        self.run(self.store.close())
        self.store = self.run(open_store(self.url))
        assert self.store.store_id == store_id

    @rule(data=st.data(), limit=LIMITS)
    def pages(self, data, limit):
        model = self.model
        after = data.draw(st.none() | st.sampled_from(sorted(model.apps))) if model.apps else None
        assert self.read(lambda tx: tx.apps(after=after or "", limit=limit)) == newest(
            list(model.apps.values()), model.apps.get(after), limit
        )
        app = data.draw(APPS)
        tags = [tag for owner, tag in model.releases if owner == app]
        after = data.draw(st.none() | st.sampled_from(tags)) if tags else None
        found = self.read(lambda tx: tx.releases(app, after=after or "", limit=limit))
        assert [release.tag for release in found] == newest(tags, after, limit)
        assert all(release == model.releases[app, release.tag] for release in found)

    @rule(data=st.data(), app=st.just("") | APPS, environment=st.just("") | ENVIRONMENTS, limit=LIMITS)
    def pages_of_history(self, data, app, environment, limit):
        entries = [e for e in self.model.deployments.values() if app in ("", e.app) and environment in ("", e.environment)]
        after = data.draw(st.none() | st.sampled_from(entries)) if entries else None
        found = self.read(
            lambda tx: tx.deployments(app=app, environment=environment, after=after.deployment_id if after else "", limit=limit)
        )
        assert found == newest(entries, after, limit)
        live = [b for b in self.model.bindings.values() if b.deployment and app in ("", b.app) and environment in ("", b.environment)]
        live.sort(key=lambda b: (-b.revision, b.app, b.environment))
        last = data.draw(st.none() | st.sampled_from(live)) if live else None
        key = (last.revision, last.app, last.environment) if last else None
        page = self.read(lambda tx: tx.bindings(app=app, environment=environment, after=key, limit=limit))
        assert page == live[live.index(last) + 1 if last else 0 :][:limit]

    @rule(data=st.data(), revision=st.integers(0, 20), limit=LIMITS)
    def the_past(self, data, revision, limit):
        was = self.model.bindings_as_of(revision)
        last = data.draw(st.none() | st.sampled_from(was)) if was else None
        key = (last.revision, last.app, last.environment) if last else None
        found = self.read(lambda tx: tx.bindings_as_of(time_of(revision), app="", environment="", after=key, limit=limit))
        assert found == was[was.index(last) + 1 if last else 0 :][:limit]

    @rule(since=st.integers(0, 20), app=APPS)
    def answers(self, since, app):
        model, bindings, tags = self.model, self.model.bindings, ["v1", "v2", "v3"]
        changed = [b for b in bindings.values() if b.revision > since]
        told = self.read(lambda tx: tx.staleness_policies_since(since))
        policies = [(revision, name, limit, action) for name, (revision, limit, action) in model.policies.items() if revision > since]
        assert [(p.revision, p.environment, p.max_staleness, p.stale_action) for p in told] == sorted(policies, key=lambda p: p[:2])
        for name in model.environments:
            found = self.read(lambda tx, name=name: tx.environment(name))
            assert (found.max_staleness, found.stale_action) == model.policies.get(name, (0, None, StaleAction.SERVE))[1:]
        assert self.read(lambda tx: tx.bindings_since(since)) == sorted(changed, key=lambda b: (b.revision, b.app, b.environment))
        live = {}
        for (owner, where), b in sorted(bindings.items()):
            if owner == app and b.deployment and b.deployment.release in tags:
                live.setdefault(b.deployment.release, []).append(where)
        assert self.read(lambda tx: tx.live_environments(app, tags)) == live
        history = [e for e in model.deployments.values() if e.app == app]
        assert self.read(lambda tx: tx.ever_live(app, tags)) == {e.release for e in history} & set(tags)

    @invariant()
    def each_environment_and_each_entry_of_its_history_is_the_same(self):
        async def everything(tx):
            places = {environment: await tx.bound_apps(environment) for environment in ENVIRONMENT_IDS}
            bindings = {key: await tx.binding(*key) for key in self.model.bindings}
            entries = {key: await tx.deployment(key) for key in self.model.deployments}
            newest_of = {(e.app, e.environment, e.release) for e in entries.values()}
            return places, bindings, entries, {key: await tx.last_deployment_of(*key) for key in newest_of}

        bindings, history = self.model.bindings, self.model.deployments
        places = {
            environment: sorted(b.app for b in bindings.values() if b.environment == environment and b.deployment)
            for environment in ENVIRONMENT_IDS
        }
        last = {(e.app, e.environment, e.release): e for e in history.values()}
        assert self.read(everything) == (places, bindings, history, last)

    @invariant()
    def the_whole_is_the_same(self):
        async def everything(tx):
            return (
                await tx.revision(),
                await tx.app_ids(),
                {app: await tx.draft(app) for app in await tx.app_ids()},
                await tx.environment_ids(),
                {digest: data for digest in DIGESTS if (data := await tx.snapshot(digest)) is not None},
                await tx.bindings_since(0),
            )

        model = self.model
        assert self.read(everything) == (
            model.revision,
            list(model.apps)[::-1],
            {app: model.drafts.get(app, Draft(config=b"", version=0, update_time=None)) for app in model.apps},
            list(model.environments),
            model.snapshots,
            sorted(model.bindings.values(), key=lambda b: (b.revision, b.app, b.environment)),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_gives_what_a_dictionary_would(backend, request):
    with asyncio.Runner() as runner:
        new_url = partial(BACKENDS[backend], request)
        machine = type("Machine", (StoreMachine,), {"new_url": staticmethod(new_url), "loop": runner.get_loop()})
        many = settings(max_examples=EXAMPLES[backend], stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(machine, settings=many)
