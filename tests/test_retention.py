"""PruneReleases and pointsman release prune: what is in use stays, what goes leaves a record, and nothing is done unasked."""

from __future__ import annotations

import json
import uuid

import pytest

from control_plane.service import retention
from control_plane.service.calls import Call
from control_plane.service.retention import Retention
from pointsman import errors
from pointsman.v1 import releases_pb2
from tests.clients import cli, cli_done, control_plane_client, refused
from tests.sample_apps import marked
from tests.test_deployment_rules import ANN, plane

__all__ = ["plane"]


@pytest.fixture
def prune(plane):
    async def prune(keep_newest: int = 1, keep_deployed: int | None = 1, call: Call = ANN) -> list[str]:
        found = await Retention(plane.store, plane.clock).prune("shop", keep_newest, keep_deployed, call)
        return [info.release.tag for info in found.releases]

    return prune


async def test_a_dry_run_tells_and_a_repeat_tells_the_same(plane, prune):
    await plane.deploy("v1")
    assert await prune(call=Call(actor="ann", validate_only=True)) == ["v2"]
    call = Call(actor="ann", request_id=str(uuid.uuid4()), fingerprint="f")
    assert await prune(call=call) == ["v2"]
    assert await prune() == []
    assert await prune(call=call) == ["v2"]
    with pytest.raises(errors.AppNotFound):
        await Retention(plane.store, plane.clock).prune("shp", 1, 1, ANN)


async def test_a_pruned_release_cannot_be_deployed_rolled_back_to_or_made_again(plane, prune):
    for tag in ("v1", "v2", "v3", "v2"):
        await plane.deploy(tag)
    await plane.deploy("v3")
    await plane.release("v4")
    assert await prune(keep_deployed=2) == ["v1"]
    for call in (plane.deploy("v1"), plane.rollback("v1")):
        with pytest.raises(errors.ReleaseNotFound, match="'v1' of app 'shop' was pruned at 2026-"):
            await call
    for content in (b"v1", b"other"):
        with pytest.raises(errors.ReleaseConflict, match="'v1' of app 'shop' was pruned"):
            await plane.release("v1", content)
    for expected in ("v2", "v3", "v2"):
        assert (await plane.rollback()).binding.deployment.release == expected
    with pytest.raises(errors.ReleaseNotFound, match="was pruned"):
        await plane.rollback()
    assert await plane.live() == "v2"


async def test_one_call_prunes_a_bounded_number(plane, monkeypatch):
    monkeypatch.setattr(retention, "MAX_PRUNED", 1)
    for tag, more in (("v1", True), ("v2", False)):
        found = await Retention(plane.store, plane.clock).prune("shop", 1, None, ANN)
        assert ([info.release.tag for info in found.releases], found.more) == ([tag], more)


async def test_the_command_shows_first_and_deletes_when_told_to(control_plane):
    async with control_plane_client(control_plane) as client:
        app = await client.create_app(**{f"v{number}": marked(f"v{number}") for number in range(5)})
        await client.deploy(app, "v0")
        await client.deploy(app, "v1")
        arguments = ("--app", app, "release", "prune", "--keep-last", "1", "--keep-deployments", "1")
        shown = await cli_done(*arguments, control_plane=control_plane)
        assert "3 releases, " in shown
        assert "would be deleted; call it with --yes to do so" in shown
        assert len((await client.releases.ListReleases(releases_pb2.ListReleasesRequest(app=app))).releases) == 5
        done = json.loads(await cli_done(*arguments, "--yes", "-o", "json", control_plane=control_plane))
        assert [release["tag"] for release in done["releases"]] == ["v0", "v2", "v3"]
        assert int(done["freed_bytes"]) == sum(int(release["size_bytes"]) for release in done["releases"])
        left = (await client.releases.ListReleases(releases_pb2.ListReleasesRequest(app=app))).releases
        assert [release.tag for release in left] == ["v4", "v1"]
        assert "has no release that may go" in await cli_done(*arguments, "--yes", control_plane=control_plane)
        nothing_kept = await refused(client.releases.PruneReleases(releases_pb2.PruneReleasesRequest(app=app)))
        assert (nothing_kept.code, nothing_kept.violations) == ("INVALID_ARGUMENT", ("keep_newest",))
    assert (await cli("--app", app, "release", "prune", control_plane=control_plane)).code == 2
