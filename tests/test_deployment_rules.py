"""The rules of Deploy, Promote and Rollback, through the services on a real store."""

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.gateways import Gateways
from control_plane.hub import Hub
from control_plane.model import Action, Identity, Rejection, ReleaseState
from control_plane.service.apps import Apps
from control_plane.service.calls import Call
from control_plane.service.deployments import Deployed, Deployments, Options
from control_plane.service.environments import EnvironmentChange, Environments
from control_plane.service.paging import PageRequest
from control_plane.service.releases import Releases
from control_plane.storage import open_store
from control_plane.storage.base import Store
from pointsman import errors

ANN = Call(actor="ann")


class Clock:
    """Moves one second with each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@dataclass
class Plane:
    store: Store
    hub: Hub
    gateways: Gateways
    apps: Apps
    environments: Environments
    releases: Releases
    deployments: Deployments
    clock: Clock

    async def release(self, tag: str, content: bytes | None = None, deploy_to: str = "", call: Call = ANN) -> None:
        config = tag.encode() if content is None else content
        await self.releases.create(app="shop", tag=tag, description="", config=config, deploy_to=deploy_to, call=call)

    async def deploy(self, tag: str, environment: str = "staging", call: Call = ANN, **options: object) -> Deployed:
        return await self.deployments.deploy("shop", environment, tag, Options(**options), call)

    async def rollback(self, to_release: str = "", environment: str = "staging", call: Call = ANN, **options: object) -> Deployed:
        return await self.deployments.rollback("shop", environment, to_release, Options(**options), call)

    async def live(self, environment: str = "staging") -> str:
        binding = await self.deployments.binding("shop", environment)
        assert binding.deployment is not None
        return binding.deployment.release


@pytest.fixture
async def plane(tmp_path):
    store = await open_store(f"sqlite:///{tmp_path}/pointsman.db")
    clock = Clock()
    hub, gateways = Hub(store), Gateways(clock, prepare_timeout_seconds=0.2)
    await hub.start()
    deployments = Deployments(store, gateways, clock)
    releases = Releases(store, deployments, clock)
    plane = Plane(store, hub, gateways, Apps(store, clock), Environments(store, clock), releases, deployments, clock)
    await plane.apps.create("shop", "", ANN)
    for tag in ("v1", "v2", "v3"):
        await plane.release(tag)
    yield plane
    await hub.close()
    await store.close()


async def test_promise_07_rollback_walks_back_and_never_forward(plane):
    for tag in ("v1", "v2", "v3"):
        await plane.deploy(tag)
    assert (await plane.rollback()).binding.deployment.release == "v2"
    assert (await plane.rollback()).binding.deployment.release == "v1"
    with pytest.raises(errors.NothingToRollBack):
        await plane.rollback()
    assert await plane.live() == "v1"


async def test_promise_07_a_deploy_after_a_rollback_goes_on_top_of_what_is_live(plane):
    for tag in ("v1", "v2"):
        await plane.deploy(tag)
    await plane.rollback()
    await plane.deploy("v3")
    assert (await plane.rollback()).binding.deployment.release == "v1"
    with pytest.raises(errors.NothingToRollBack):
        await plane.rollback()


async def test_promise_07_a_repeated_request_never_moves_a_second_step(plane):
    for tag in ("v1", "v2", "v3"):
        await plane.deploy(tag)
    call = Call(actor="ann", request_id=str(uuid.uuid4()), fingerprint="same")
    first = await plane.rollback(call=call)
    again = await plane.rollback(call=call)
    assert again.deployment == first.deployment
    assert again.binding == first.binding
    assert await plane.live() == "v2"


async def test_promise_07_a_stale_expected_revision_never_moves_a_second_step(plane):
    await plane.deploy("v1")
    await plane.deploy("v2")
    revision = (await plane.deploy("v3")).binding.revision
    await plane.rollback(expected_revision=revision)
    with pytest.raises(errors.RevisionConflict) as conflict:
        await plane.rollback(expected_revision=revision)
    assert conflict.value.metadata["expected"] == str(revision)
    assert conflict.value.metadata["current"] == str(revision + 1)
    assert await plane.live() == "v2"


async def test_rollback_to_a_named_release_goes_down_to_it(plane):
    for tag in ("v1", "v2", "v3"):
        await plane.deploy(tag)
    rolled = await plane.rollback(to_release="v1")
    assert (rolled.deployment.action, rolled.deployment.release, rolled.deployment.previous_release) == (Action.ROLLBACK, "v1", "v3")
    with pytest.raises(errors.NothingToRollBack):
        await plane.rollback()


async def test_rollback_to_a_release_that_was_left_behind_puts_it_on_top(plane):
    for tag in ("v1", "v2"):
        await plane.deploy(tag)
    await plane.rollback()
    assert (await plane.rollback(to_release="v2")).binding.deployment.release == "v2"
    assert (await plane.rollback()).binding.deployment.release == "v1"


async def test_rollback_refuses_what_was_never_live_there(plane):
    await plane.deploy("v1")
    await plane.deploy("v2", environment="production")
    with pytest.raises(errors.NeverLiveHere):
        await plane.rollback(to_release="v2")
    with pytest.raises(errors.ReleaseNotFound):
        await plane.rollback(to_release="v9")
    with pytest.raises(errors.NoReleaseDeployed):
        await plane.rollback(environment="development")


@pytest.mark.parametrize(("expected", "tag"), [(0, "v1"), (None, "v1")])
async def test_expected_revision_of_an_unbound_environment(plane, expected, tag):
    assert (await plane.deploy(tag, expected_revision=expected)).binding.revision == 1
    with pytest.raises(errors.RevisionConflict):
        await plane.deploy("v2", expected_revision=0)


async def test_deploying_what_is_live_changes_nothing(plane):
    first = await plane.deploy("v1")
    again = await plane.deploy("v1", reason="again")
    assert again.deployment is None
    assert again.binding == first.binding
    assert len((await plane.deployments.history("shop", "staging", PageRequest())).items) == 1


async def test_promote_binds_what_is_live_elsewhere(plane):
    await plane.deploy("v2")
    promoted = await plane.deployments.promote("shop", "staging", "production", Options(reason="verified"), ANN)
    assert promoted.deployment.action is Action.PROMOTE
    assert (promoted.deployment.release, promoted.deployment.reason, promoted.deployment.actor) == ("v2", "verified", "ann")
    assert await plane.live("production") == "v2"
    with pytest.raises(errors.NoReleaseDeployed):
        await plane.deployments.promote("shop", "development", "production", Options(), ANN)
    with pytest.raises(errors.InvalidField):
        await plane.deployments.promote("shop", "staging", "staging", Options(), ANN)


async def test_promise_02_concurrent_deploys_each_get_a_revision_of_their_own(plane):
    outcomes = await asyncio.gather(*(plane.deploy(f"v{1 + n % 3}") for n in range(30)))
    revisions = [outcome.deployment.revision for outcome in outcomes if outcome.deployment]
    assert sorted(revisions) == list(range(1, len(revisions) + 1))
    history = (await plane.deployments.history("shop", "staging", PageRequest(size=500))).items
    assert [entry.revision for entry in history] == sorted(revisions, reverse=True)
    for newer, older in itertools.pairwise(history):
        assert newer.previous_release == older.release


async def test_a_dry_run_decides_but_stores_nothing(plane):
    planned = await plane.deploy("v1", call=Call(actor="ann", validate_only=True))
    assert planned.binding.deployment.release == "v1"
    assert planned.rollout is None
    with pytest.raises(errors.NoReleaseDeployed):
        await plane.live()
    with pytest.raises(errors.ReleaseNotFound):
        await plane.deploy("v9", call=Call(actor="ann", validate_only=True))


async def test_a_request_id_with_another_body_is_refused(plane):
    request_id = str(uuid.uuid4())
    await plane.deploy("v1", call=Call(actor="ann", request_id=request_id, fingerprint="one"))
    with pytest.raises(errors.InvalidField) as refused:
        await plane.deploy("v2", call=Call(actor="ann", request_id=request_id, fingerprint="two"))
    assert refused.value.violations[0].field == "request_id"
    with pytest.raises(errors.InvalidField):
        await plane.release("v9", deploy_to="staging", call=Call(actor="ann", request_id=request_id, fingerprint="three"))
    with pytest.raises(errors.ReleaseNotFound):
        await plane.releases.get("shop", "v9", with_snapshot=False)
    assert await plane.live() == "v1"


async def test_requests_are_forgotten_after_a_day_so_the_store_does_not_grow_with_them(plane):
    for number in range(3):
        plane.clock.now += timedelta(hours=13)
        await plane.deploy(f"v{number + 1}", call=Call(actor="ann", request_id=f"r{number}", fingerprint="f"))
    remembered = [await plane.store.read(lambda tx, n=number: tx.remembered_request("ann", f"r{n}")) for number in range(3)]
    assert [request is not None for request in remembered] == [False, True, True]


async def test_a_repeated_create_and_deploy_answers_as_the_first_did_even_after_the_draft_moved_on(plane):
    await plane.apps.update_draft("shop", b"first", None, ANN)
    call = Call(actor="ann", request_id=str(uuid.uuid4()), fingerprint="same")
    arguments = {"app": "shop", "tag": "v9", "description": "", "config": None, "deploy_to": "staging", "call": call}
    first, deployed = await plane.releases.create(**arguments)
    await plane.apps.update_draft("shop", b"second", None, ANN)
    again, deployed_again = await plane.releases.create(**arguments)
    assert again == first
    assert deployed_again.deployment == deployed.deployment


async def test_promise_01_a_tag_never_gets_other_content(plane):
    await plane.release("v1")
    with pytest.raises(errors.ReleaseConflict) as conflict:
        await plane.release("v1", content=b"other")
    assert conflict.value.metadata["digest"] != conflict.value.metadata["existing_digest"]
    assert (await plane.releases.get("shop", "v1", with_snapshot=True)).snapshot == b"v1"


async def test_states_are_derived_from_bindings(plane):
    async def states() -> dict[str, tuple[ReleaseState, list[str]]]:
        page = await plane.releases.list("shop", PageRequest())
        return {info.release.tag: (info.state, info.environments) for info in page.items}

    await plane.deploy("v1")
    await plane.deploy("v1", environment="production")
    await plane.deploy("v2")
    await plane.deploy("v2", environment="production")
    await plane.deploy("v1", environment="development")
    await plane.deploy("v2", environment="development")
    assert await states() == {
        "v1": (ReleaseState.SUPERSEDED, []),
        "v2": (ReleaseState.DEPLOYED, ["development", "production", "staging"]),
        "v3": (ReleaseState.READY, []),
    }


async def test_deleting_an_environment_unbinds_it_at_one_revision_and_watchers_can_see_that(plane):
    await plane.deploy("v1")
    with pytest.raises(errors.EnvironmentInUse) as in_use:
        await plane.environments.delete("staging", ANN, force=False)
    assert in_use.value.metadata["apps"] == "shop"
    deleted = await plane.environments.delete("staging", ANN, force=True)
    await plane.hub.refresh()
    assert [(b.revision, b.deployment) for b in plane.hub.newer_than(1)] == [(deleted.revision, None)]
    with pytest.raises(errors.EnvironmentNotFound):
        await plane.deploy("v1")
    await plane.environments.create("staging", EnvironmentChange(), ANN)
    rebound = await plane.deploy("v2", expected_revision=0)
    assert rebound.deployment.previous_release == ""
    with pytest.raises(errors.NothingToRollBack):
        await plane.rollback()
    assert (await plane.rollback(to_release="v1")).binding.deployment.release == "v1"


async def test_the_draft_knows_whether_it_differs_from_the_newest_release(plane):
    assert not (await plane.apps.draft("shop")).has_changes
    await plane.apps.update_draft("shop", b"v3", None, ANN)
    assert not (await plane.apps.draft("shop")).has_changes
    await plane.apps.update_draft("shop", b"v4", 1, ANN)
    assert (await plane.apps.draft("shop")).has_changes
    with pytest.raises(errors.RevisionConflict):
        await plane.apps.update_draft("shop", b"v5", 1, ANN)


async def test_lists_are_paged_newest_first_and_tokens_belong_to_their_list(plane):
    first = await plane.releases.list("shop", PageRequest(size=2))
    second = await plane.releases.list("shop", PageRequest(size=2, token=first.next_page_token))
    assert [info.release.tag for info in first.items + second.items] == ["v3", "v2", "v1"]
    assert second.next_page_token == ""
    with pytest.raises(errors.InvalidField):
        await plane.deployments.bindings("shop", "", PageRequest(token=first.next_page_token))
    with pytest.raises(errors.InvalidField):
        await plane.releases.list("shop", PageRequest(token="x"))


def _identity(gateway_id: str, environments: frozenset[str] = frozenset()) -> Identity:
    return Identity(
        gateway_id=gateway_id, instance_id=str(uuid.uuid4()), version="1", apps=frozenset(), environments=environments, peer="test"
    )


async def test_promise_05_one_rejection_and_nothing_is_flipped(plane):
    async with plane.hub.watcher(60) as watcher:
        with plane.gateways.connected(_identity("g1"), watcher, revision=0, held=()) as session:

            async def refuse() -> None:
                while not session.prepares:
                    await watcher.wait()
                asked = session.prepares[0]
                target = asked.targets[0]
                rejection = Rejection(app=target.app, environment=target.environment, digest=target.digest, reason="no secret KEY")
                plane.gateways.prepared(session, asked.prepare_id, [rejection])

            refusing = asyncio.create_task(refuse())
            with pytest.raises(errors.ReleaseRejected) as rejected:
                await plane.deploy("v1")
            await refusing
            assert "g1: no secret KEY" in rejected.value.message
            with pytest.raises(errors.NoReleaseDeployed):
                await plane.live()
            forced = await plane.deploy("v1", force=True, wait_seconds=0)
            assert forced.deployment.forced


async def test_promise_04_a_rollout_tells_who_serves_and_who_does_not_yet(plane):
    async with plane.hub.watcher(60) as first, plane.hub.watcher(60) as second, plane.hub.watcher(60) as third:
        elsewhere = _identity("g3", frozenset({"production"}))
        with (
            plane.gateways.connected(_identity("g1"), first, revision=0, held=()) as applying,
            plane.gateways.connected(_identity("g2"), second, revision=0, held=()),
            plane.gateways.connected(elsewhere, third, revision=0, held=()),
        ):

            async def apply() -> None:
                while plane.hub.revision == 0:
                    await first.wait()
                plane.gateways.applied(applying, plane.hub.revision, [])

            task = asyncio.create_task(apply())
            deployed = await plane.deploy("v1", wait_seconds=2)
            await task
            assert (deployed.rollout.total, deployed.rollout.applied, deployed.rollout.pending) == (2, 1, ["g2"])


async def test_promise_04_a_silent_gateway_costs_no_more_than_the_wait_that_was_granted(plane):
    async with plane.hub.watcher(60) as watcher:
        plane.gateways._prepare_timeout_seconds = 60
        with plane.gateways.connected(_identity("g1"), watcher, revision=0, held=()):
            started = time.monotonic()
            deployed = await plane.deploy("v1", wait_seconds=1.2)
            assert 1.0 < time.monotonic() - started < 2.2
            assert (deployed.rollout.total, deployed.rollout.pending) == (1, ["g1"])
