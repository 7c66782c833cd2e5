"""Immutable: a release's bytes never change, whoever asks, even past the service."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, gateways_pb2, releases_pb2
from tests.clients import control_plane_client, refused
from tests.processes import start_control_plane
from tests.sample_apps import marked


async def snapshot(plane, digest):
    """The bytes that gateways fetch."""
    call = plane.gateways.FetchSnapshot(gateways_pb2.FetchSnapshotRequest(digest=digest))
    return b"".join([chunk.data async for chunk in call])


async def test_the_digest_is_of_the_bytes_that_travel(stack):
    app = await stack.plane.create_app()
    release = await stack.plane.create_release(app, "v1", marked("v1"))
    data = await snapshot(stack.plane, release.digest)
    assert release.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert release.size_bytes == len(data)


async def test_a_tag_never_gets_other_content(stack):
    app = await stack.plane.create_app()
    first = await stack.plane.create_release(app, "v1", marked("v1"))
    refusal = await refused(stack.plane.create_release(app, "v1", marked("other")))
    assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "RELEASE_CONFLICT")
    assert refusal.metadata["existing_digest"] == first.digest
    assert refusal.metadata["digest"] not in ("", first.digest)
    again = await stack.plane.create_release(app, "v1", marked("v1"))
    assert (again.digest, again.create_time) == (first.digest, first.create_time)


async def test_a_change_of_the_draft_changes_no_release(stack):
    app = await stack.plane.create_app()
    for mark in ("v1", "v2"):
        update = apps_pb2.UpdateDraftRequest(app=app)
        json_format.ParseDict(marked(mark), update.config)
        await stack.plane.apps.UpdateDraft(update)
        await stack.plane.releases.CreateRelease(releases_pb2.CreateReleaseRequest(app=app, tag=mark))
    full = releases_pb2.GetReleaseRequest(app=app, tag="v1", view=releases_pb2.Release.FULL)
    kept = (await stack.plane.releases.GetRelease(full)).release
    assert kept.config.pipelines[0].stages[0].steps[0].transform.expression == "'v1'"


async def test_the_database_itself_refuses_updates_and_deletes(tmp_path):
    async with start_control_plane(tmp_path) as server:
        async with control_plane_client(server) as plane:
            app = await plane.create_app(v1=marked("v1"))
            await plane.deploy(app, "v1")
        await server.stop()
    database = sqlite3.connect(tmp_path / "pointsman.db")
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    guarded = [name for name in tables if name in ("releases", "snapshots", "deployments")]
    assert "releases" in guarded
    assert "deployments" in guarded
    for table in guarded:
        column = database.execute(f"select * from {table}").description[0][0]
        assert database.execute(f"select count(*) from {table}").fetchone()[0] > 0
        for statement in (f"delete from {table}", f"update {table} set {column} = {column}"):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)
    database.close()
