"""Which release a trigger runs on, and what a caller is told who cannot have one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from data_plane.loaded import LoadedRelease
from data_plane.lookup import Asked, Here, find_release
from data_plane.table import Active, Bound, Rejected, Table
from pointsman.errors import Behind, InvalidField, NoReleaseDeployed, NotSynced, ReleaseNotLoaded

HERE = Here(gateway_id="g1", default_environment="production", control_plane="cp:7400")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def bound(app, environment, release, revision):
    return Bound(app=app, environment=environment, release=release, digest=f"sha256:{release}", revision=revision)


def active(app, environment, release, revision):
    loaded = LoadedRelease(digest=f"sha256:{release}", size_bytes=1, endpoints={})
    return Active(bound=bound(app, environment, release, revision), loaded=loaded, load_time=NOW)


def table(*actives, standby=(), rejected=()):
    return Table(
        revision=9,
        store_id="s",
        synced=True,
        active={one.bound.key: one for one in actives},
        standby={one.bound.key: (one,) for one in standby},
        rejected={one.key: Rejected(bound=one, reason="a secret is missing") for one in rejected},
    )


def find(where, **asked):
    return find_release(Asked(endpoint="chat", input={}, **asked), where, HERE).bound.release


SHOP = table(active("shop", "production", "v2", 7), active("shop", "staging", "v3", 8), standby=[active("shop", "production", "v1", 5)])


def test_the_only_app_and_the_default_environment():
    assert find(SHOP) == "v2"
    assert find(SHOP, environment="staging") == "v3"


def test_several_apps_are_named():
    with pytest.raises(InvalidField, match="this gateway serves blog, shop; name it"):
        find(table(*SHOP.active.values(), active("blog", "production", "v1", 1)))
    with pytest.raises(InvalidField, match="serves no app yet"):
        find(table())


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ({"app": "shop", "environment": "stagin"}, "staging"),
        ({"app": "shopp"}, "shop"),
        ({"app": "shop", "environment": "development"}, ""),
        ({"app": "elsewhere"}, ""),
    ],
)
def test_what_is_not_bound_is_told_with_what_looks_alike(asked, near):
    with pytest.raises(NoReleaseDeployed) as refused:
        find(SHOP, **asked)
    assert refused.value.metadata["near"] == near
    assert (f"Did you mean {near}?" in refused.value.message) == bool(near)
    assert "pointsman deploy" in refused.value.message


@pytest.mark.parametrize("asked", [{"app": "No_Good"}, {"environment": "Not Here"}, {"release": "v 1"}])
def test_an_id_that_cannot_be_one_is_refused_as_such_by_both_doors(asked):
    with pytest.raises(InvalidField) as refused:
        find(SHOP, **asked)
    assert [violation.field for violation in refused.value.violations] == list(asked)


def test_a_pin():
    assert find(SHOP, release="v2") == "v2"
    assert find(SHOP, release="v1") == "v1"
    with pytest.raises(ReleaseNotLoaded) as refused:
        find(SHOP, release="v3")
    assert refused.value.metadata["loaded"] == "v2, v1"


def test_never_synced_is_said_before_anything_else():
    with pytest.raises(NotSynced):
        find(Table(), app="No_Good")


def test_what_is_bound_and_cannot_run_here():
    with pytest.raises(ReleaseNotLoaded) as refused:
        find(table(rejected=[bound("shop", "production", "v4", 9)]))
    assert (refused.value.metadata["release"], refused.value.metadata["cause"]) == ("v4", "a secret is missing")


def test_promise_06_a_fence_is_not_passed_by_the_release_before_a_rejected_one():
    where = table(active("shop", "production", "v2", 7), rejected=[bound("shop", "production", "v4", 9)])
    assert find(where) == "v2"
    # As of revision 8 it is what was bound.
    assert find(where, min_revision=8) == "v2"
    with pytest.raises(Behind) as refused:
        find(where, min_revision=9)
    assert (refused.value.metadata["asked"], refused.value.metadata["has"]) == ("9", "7")
    assert find(where, min_revision=9, release="v2") == "v2"
