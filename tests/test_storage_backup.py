"""pointsman backup: a whole copy of one moment, while deploys go on; and the documented way back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3

import pytest

from pointsman.v1 import deployments_pb2
from tests.clients import cli, control_plane_client
from tests.eventually import eventually
from tests.processes import ROOT, run, start_control_plane
from tests.sample_apps import marked


async def backed_up(folder, name: str, *flags: str):
    return await cli("backup", "--store", f"sqlite:///{folder}/pointsman.db", *flags, str(folder / name))


def names(folder) -> set[str]:
    """Of what is in the folder; but for what SQLite keeps beside a store that is open, or was."""
    return {path.name for path in folder.iterdir()} - {"pointsman.db-wal", "pointsman.db-shm"}


async def refused(folder, name: str, store: str = "") -> str:
    """The one line it ends with; nothing is left behind."""
    before = names(folder)
    done = await cli("backup", "--store", store or f"sqlite:///{folder}/pointsman.db", str(folder / name))
    assert (done.code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert names(folder) == before
    return done.stderr


def documented_restore() -> str:
    text = (ROOT / "control_plane" / "README.md").read_text()
    found = re.search(r"### Restore\n.*?```sh\n(.*?)```", text, re.DOTALL)
    assert found, "the README does not say how a store is restored"
    return found[1]


async def test_promise_03_a_backup_amid_deploys_is_of_one_moment_and_is_restored_as_documented(tmp_path):
    async with start_control_plane(tmp_path) as server:
        acknowledged = []

        async def deploy_on(app):
            async with control_plane_client(server) as plane:
                while True:
                    for tag in ("v1", "v2"):
                        targets = [{"app": app, "environment": where, "release": tag} for where in ("staging", "production")]
                        done = await plane.deployments.DeployMany(deployments_pb2.DeployManyRequest(targets=targets))
                        acknowledged.append(done.bindings[0].revision)

        async with control_plane_client(server) as plane:
            app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        deploying = asyncio.create_task(deploy_on(app))
        await eventually(lambda: len(acknowledged) >= 20)
        moments = []
        for name in ("sunday.db", "monday.db"):
            before = acknowledged[-1]
            done = await backed_up(tmp_path, name, "-o", "json")
            assert done.code == 0, done.stderr
            made = json.loads(done.stdout)
            assert before <= made["revision"] <= acknowledged[-1] + 1
            assert (made["releases"], made["size_bytes"]) == (2, (tmp_path / name).stat().st_size)
            moments.append(made["revision"])
            await eventually(lambda before=before: acknowledged[-1] > before)
        deploying.cancel()
        await asyncio.gather(deploying, return_exceptions=True)
        await server.stop()

        restored = await run("sh", "-e", "-c", documented_restore(), cwd=tmp_path)
        assert restored.code == 0, restored.stderr
        await server.start()
        async with control_plane_client(server) as plane:
            staging, production = await plane.binding(app, "staging"), await plane.binding(app, "production")
            assert staging.revision == production.revision == moments[1] > moments[0]
            assert staging.release == production.release
            assert (await plane.deploy(app, "v2" if staging.release == "v1" else "v1")).binding.revision == moments[1] + 1


async def test_a_store_that_nobody_uses_is_backed_up_too_and_only_its_owner_may_read_it(tmp_path):
    async with start_control_plane(tmp_path):
        pass
    assert (await backed_up(tmp_path, "copy.db")).stdout.startswith(f"{tmp_path}/copy.db: revision 0, 0 releases")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"copy.db", "pointsman.db", "pointsman.db.lock", "pointsman.db-executions"}


async def test_what_cannot_be_backed_up_is_refused_in_one_line(tmp_path):
    async with start_control_plane(tmp_path):
        (tmp_path / "taken.db").write_text("mine")
        (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
        assert "is there already" in await refused(tmp_path, "taken.db")
        assert "is there already" in await refused(tmp_path, "dangling.db")
        assert (tmp_path / "taken.db").read_text() == "mine"
        assert "its folder must exist" in await refused(tmp_path, "none/copy.db")
        assert "there is no store" in await refused(tmp_path, "copy.db", f"sqlite:///{tmp_path}/other.db")
        assert "pg_dump" in await refused(tmp_path, "copy.db", "postgresql://ann:secret@db/pm")
        assert "is not a store" in await refused(tmp_path, "copy.db", "mysql://x")
        assert "not a database" in await refused(tmp_path, "copy.db", f"sqlite:///{tmp_path}/taken.db")
        with sqlite3.connect(tmp_path / "theirs.db") as theirs:
            theirs.execute("CREATE TABLE theirs (a)")
        theirs.close()
        assert "is not a Pointsman store" in await refused(tmp_path, "copy.db", f"sqlite:///{tmp_path}/theirs.db")


@pytest.mark.parametrize("damage", ["a page", "a reference"])
async def test_a_damaged_store_gives_no_backup(tmp_path, damage):
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane:
        await plane.create_app(v1=marked("v1"))
    path = tmp_path / "pointsman.db"
    database = sqlite3.connect(path)
    if damage == "a reference":
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("DELETE FROM apps")
        database.commit()
        database.close()
    else:
        (page,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'releases_newest'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
        database.close()
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(os.urandom(size))
    assert "is damaged, and no backup of it was made" in await refused(tmp_path, "copy.db")
