"""The audit log: every change and every refused one is on it, and whoever touches it is found out."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
import uuid

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format
from msgspec.structs import replace

from control_plane.model import Attempt, AuditFilter
from control_plane.roles import ROLES
from control_plane.service.audit import MAX_WISHES, Audit
from control_plane.service.calls import attempt_of, entry_of
from control_plane.service.paging import PageRequest
from control_plane.storage import open_store
from pointsman.audit import FIRST, entry_hash
from pointsman.errors import AppNotFound, PermissionDenied
from pointsman.v1 import audit_pb2, audit_pb2_grpc, deployments_pb2, releases_pb2
from tests.clients import OWN_CONNECTION, cli, cli_done, refused
from tests.console_app import open_site
from tests.eventually import eventually
from tests.processes import start_control_plane
from tests.sample_apps import as_yaml, marked
from tests.test_promise_11_closed_by_default import closed_control_plane, make
from tests.test_storage_contract import BACKENDS, NOW

DEPLOY = Attempt(actor="ann", token_id="t", peer="127.0.0.1:1", method="Deploy", app="shop", environment="staging", reason="ä")


@pytest.fixture(params=BACKENDS)
async def store(request, tmp_path):
    opened = await open_store(BACKENDS[request.param](request, tmp_path))
    yield opened
    await opened.close()


async def entries_of(store, wanted=None, **how):
    how = {"after": None, "oldest_first": True, "limit": 1_000} | how
    return await store.read(lambda tx: tx.audit_entries(wanted or AuditFilter(), **how))


async def test_entries_are_numbered_and_chained_and_cannot_be_changed(store):
    async def work(tx):
        await tx.next_revision()
        await tx.append_audit(entry_of(DEPLOY, now=NOW, grown=tx.grown))
        await tx.append_audit(entry_of(replace(DEPLOY, app="other"), now=NOW, outcome="PERMISSION_DENIED", message="no"))

    await store.write(work)
    await store.write(work)
    found = await entries_of(store)
    assert [entry.position for entry in found] == [1, 2, 3, 4]
    assert [(entry.before_revision, entry.revision) for entry in found] == [(0, 1), (0, 0), (1, 2), (0, 0)]
    previous = FIRST
    for entry in found:
        previous = entry_hash(previous, int(NOW.timestamp() * 1_000_000), entry)
        assert entry.hash == previous
    assert found[0] == replace(entry_of(DEPLOY, now=NOW, grown=(0, 1)), position=1, hash=found[0].hash)
    for statement in ("UPDATE audit_entries SET actor = 'eve' WHERE position = 1", "DELETE FROM audit_entries"):
        with pytest.raises(Exception, match="audit_entries never change"):
            await store.write(lambda tx, statement=statement: tx.rows(statement))
    assert await entries_of(store) == found


async def test_what_is_undone_leaves_no_entry(store):
    async def work(tx):
        await tx.append_audit(entry_of(DEPLOY, now=NOW))
        raise AppNotFound("shop")

    with pytest.raises(AppNotFound):
        await store.write(work)
    await store.write(lambda tx: tx.append_audit(entry_of(DEPLOY, now=NOW)), dry_run=True)
    assert await entries_of(store) == []


async def test_filters_and_pages(store):
    wishes = [
        entry_of(DEPLOY, now=NOW),
        entry_of(replace(DEPLOY, actor="bob", token_id="u"), now=NOW, outcome="RELEASE_REJECTED"),
        entry_of(replace(DEPLOY, environment="production", method="Promote"), now=NOW.replace(year=2027)),
        entry_of(replace(DEPLOY, app=""), now=NOW, outcome="PERMISSION_DENIED"),
    ]

    async def work(tx):
        for entry in wishes:
            await tx.append_audit(entry)

    await store.write(work)
    expected = {
        (): [1, 2, 3, 4],
        (("app", "shop"),): [1, 2, 3],
        (("environment", "staging"),): [1, 2, 4],
        (("actor", "bob"),): [2],
        (("actor", "u"),): [2],
        (("method", "Promote"),): [3],
        (("outcome", "OK"),): [1, 3],
        (("outcome", "REFUSED"),): [2, 4],
        (("outcome", "RELEASE_REJECTED"),): [2],
        (("since", NOW.replace(year=2027)),): [3],
        (("until", NOW.replace(year=2027)),): [1, 2, 4],
        (("app", "shop"), ("outcome", "REFUSED")): [2],
        (("app", "none"),): [],
    }
    audit = Audit(store, lambda: NOW)
    for fields, positions in expected.items():
        wanted = AuditFilter(**dict(fields))
        assert [entry.position for entry in await entries_of(store, wanted)] == positions, fields
        assert [entry.position for entry in await entries_of(store, wanted, oldest_first=False)] == positions[::-1]
        for oldest_first in (True, False):
            token, met = "", []
            while True:
                page = await audit.list(wanted, PageRequest(size=1, token=token), oldest_first=oldest_first)
                met += [entry.position for entry in page.items]
                token = page.next_page_token
                if not token:
                    break
            assert met == (positions if oldest_first else positions[::-1])


async def test_many_refusals_of_one_wish_are_few_entries(store):
    audit = Audit(store, lambda: NOW)
    error = PermissionDenied("not you")
    for port in range(5_000):
        audit.refused(replace(DEPLOY, peer=f"127.0.0.1:{port}"), error)
    await audit._flush(0.0)
    assert [(entry.count, entry.outcome, entry.message) for entry in await entries_of(store)] == [(5_000, "PERMISSION_DENIED", "not you")]
    for _ in range(10):
        audit.refused(DEPLOY, error)
        await audit._flush(30.0)
    assert len(await entries_of(store)) == 1
    await audit._flush(60.0)
    assert [entry.count for entry in await entries_of(store)] == [5_000, 10]
    await audit._flush(120.0)
    # Forgotten: the next one is recorded at once.
    audit.refused(DEPLOY, error)
    await audit._flush(121.0)
    assert [entry.count for entry in await entries_of(store)] == [5_000, 10, 1]
    for number in range(MAX_WISHES + 50):
        audit.refused(replace(DEPLOY, app=f"app-{number}"), error)
    await audit._flush(122.0)
    found = await entries_of(store, limit=5_000)
    assert sum(entry.count for entry in found) == 5_011 + MAX_WISHES + 50
    assert found[-1].method == "several"


def test_what_a_request_asks_for_is_told_in_short():
    request = deployments_pb2.DeployManyRequest(reason="go", request_id=str(uuid.uuid4()), force=True)
    request.targets.extend(
        deployments_pb2.DeployManyRequest.Target(app=f"a{number}", environment="staging", release="v1") for number in range(30)
    )
    found = attempt_of(request, actor="ann")
    assert (found.method, found.app, found.reason) == ("DeployMany", "", "go")
    detail = json.loads(found.detail)
    assert detail["force"] is True
    assert detail["targets"][0] == {"app": "a0", "environment": "staging", "release": "v1"}
    assert detail["targets"][20:] == ["..."]
    assert "request_id" not in detail
    promoted = deployments_pb2.PromoteRequest(app="shop", from_environment="staging", to_environment="production")
    assert attempt_of(promoted, actor="ann").environment == "production"
    long = releases_pb2.CreateReleaseRequest(app="shop", tag="v1", description="x" * 5_000)
    json_format.ParseDict(marked("v1"), long.config)
    told = json.loads(attempt_of(long, actor="ann").detail)
    assert len(told["description"]) < 300
    assert "config" not in told


def changes():
    """Every method that changes something."""
    pool = descriptor_pool.Default()
    services = (pool.FindServiceByName(f"pointsman.v1.{service}") for service in ROLES if service != "ServerReflection")
    return {method.name for service in services for method in service.methods if "request_id" in method.input_type.fields_by_name}


async def test_every_change_is_recorded_and_the_chain_can_be_verified(tmp_path):
    async with start_control_plane(tmp_path) as server:
        ask = {"control_plane": server, "POINTSMAN_APP": "shop"}
        await _changes_by_command(tmp_path, ask)
        refusal = await cli("deploy", "v9", "--to", "staging", **ask)
        assert refusal.code == 1
        async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
            target = deployments_pb2.DeployManyRequest.Target(app="shop", environment="development", release="v1")
            await channel.unary_unary("/pointsman.v1.DeploymentService/DeployMany")(
                deployments_pb2.DeployManyRequest(targets=[target]).SerializeToString()
            )
            await channel.unary_unary("/pointsman.v1.ReleaseService/PruneReleases")(
                releases_pb2.PruneReleasesRequest(app="shop", keep_newest=1).SerializeToString()
            )
        secret = json.loads(await cli_done("token", "create", "root", "--role", "admin", "-o", "json", **ask))["secret"]
        shown = {"control_plane": server, "POINTSMAN_TOKEN": secret}
        gone = json.loads(await cli_done("token", "create", "gone", "--role", "viewer", "-o", "json", **shown))["token"]["token_id"]
        await cli_done("token", "revoke", gone, **shown)

        assert (await cli("rebalance", "50", **{**shown, "POINTSMAN_TOKEN": ""})).code == 1

        async def recorded():
            found = json.loads(await cli_done("audit", "list", "-o", "json", **shown))["entries"]
            refused_methods = {entry["method"] for entry in found if entry["outcome"] != "OK"}
            return found if refused_methods == {"Deploy", "RebalanceGateways"} else None

        found = await eventually(recorded)
        done = [entry for entry in found if entry["outcome"] == "OK"]
        assert {entry["method"] for entry in done} == changes() | {"RebalanceGateways"}
        rebalanced = next(entry for entry in done if entry["method"] == "RebalanceGateways")
        assert (json.loads(rebalanced["detail"]), rebalanced["revision"]) == ({"percent": 50}, "0")
        assert found[0]["position"] == str(len(found))
        deploy = next(entry for entry in done if entry["method"] == "Deploy")
        assert (deploy["app"], deploy["environment"], deploy["reason"]) == ("shop", "staging", "try")
        # As long as there are no tokens: who the command says to be.
        assert re.fullmatch(r"\S+@\S+", deploy["actor"])
        assert deploy["token_id"] == ""
        assert json.loads(deploy["detail"])["release"] == "v1"
        assert int(deploy["revision"]) == int(deploy["before_revision"]) + 1
        assert deploy["peer"].startswith("127.0.0.1:")
        refused_one = next(entry for entry in found if entry["outcome"] == "RELEASE_NOT_FOUND")
        assert (refused_one["method"], refused_one["revision"], refused_one["app"]) == ("Deploy", "0", "shop")
        assert "v9" in refused_one["message"]
        revoked = next(entry for entry in done if entry["method"] == "RevokeToken")
        assert revoked["token_id"] == secret.split("_")[1]
        assert "root" in revoked["actor"]
        # A dry run changes nothing, and a release with deploy_to is two changes.
        assert len([entry for entry in done if entry["method"] == "Deploy"]) == 1
        assert len([entry for entry in done if entry["method"] == "CreateRelease"]) == 3

        listed = await cli_done("audit", "list", "--outcome", "REFUSED", **shown)
        assert re.search(r"Deploy +shop/staging +RELEASE_NOT_FOUND", listed), listed
        verified = await cli_done("audit", "verify", **shown)
        anchor = verified.split("--expect ")[1].strip()
        assert anchor.startswith(f"{len(found)}:")
        await cli_done("audit", "verify", "--expect", anchor, **shown)
        exported = tmp_path / "audit.jsonl"
        await cli_done("audit", "export", "--out", str(exported), **shown)
        assert await cli_done("audit", "verify", "--file", str(exported), "--expect", anchor) == verified
        assert secret not in exported.read_text()

        await _tampering(tmp_path / "pointsman.db", shown, anchor)


async def _changes_by_command(folder, ask):
    (folder / "v1.yaml").write_text(as_yaml(marked("v1")))
    (folder / "v2.yaml").write_text(as_yaml(marked("v2")))
    await cli_done("app", "push", str(folder / "v1.yaml"), **ask)
    await cli_done("release", "create", "v1", **ask)
    await cli_done("app", "push", str(folder / "v2.yaml"), **ask)
    await cli_done("release", "create", "v2", "--deploy-to", "staging", **ask)
    await cli_done("deploy", "v1", "--to", "staging", "--reason", "try", **ask)
    await cli_done("promote", "--from", "staging", "--to", "production", **ask)
    await cli_done("rollback", "staging", **ask)
    await cli_done("deploy", "v1", "--to", "staging", "--dry-run", **ask)
    await cli_done("environment", "create", "canary", **ask)
    await cli_done("environment", "update", "canary", "--description", "few", **ask)
    await cli_done("environment", "delete", "canary", **ask)
    await cli_done("rebalance", "50", **ask)


async def _tampering(file, shown, anchor):
    """Somebody who may write the file takes the triggers away first."""
    position, _, _ = anchor.partition(":")
    with sqlite3.connect(file) as connection:
        for verb in ("update", "delete"):
            connection.execute(f"DROP TRIGGER audit_entries_refuse_{verb}")
    for statement, told in (
        ("UPDATE audit_entries SET actor = 'eve' WHERE position = 3", "entry 3 is not what was recorded"),
        ("DELETE FROM audit_entries WHERE position = 2", "entry 2 is missing: the next one is 3"),
    ):
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE kept AS SELECT * FROM audit_entries")
            connection.execute(statement)
        found = await cli("audit", "verify", **shown)
        assert (found.code, found.stdout) == (1, "")
        assert told in found.stderr
        with sqlite3.connect(file) as connection:
            connection.execute("DELETE FROM audit_entries")
            connection.execute("INSERT INTO audit_entries SELECT * FROM kept")
            connection.execute("DROP TABLE kept")
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM audit_entries WHERE position = ?", [position])
    # Cut off at the end: only who kept the newest hash can tell.
    assert (await cli("audit", "verify", **shown)).code == 0
    found = await cli("audit", "verify", "--expect", anchor, **shown)
    assert found.code == 1
    assert f"entry {position} is missing: the log ends with entry {int(position) - 1}" in found.stderr


async def test_refusals_of_who_may_not_are_recorded_with_their_token(tmp_path):
    async with closed_control_plane(tmp_path) as (server, admin):
        viewer = await make(server, admin, "eye", "VIEWER", apps=["shop"])
        for secret, status in ((viewer, "PERMISSION_DENIED"), ("pm_" + "a" * 16 + "_" + "a" * 52, "UNAUTHENTICATED")):
            for _ in range(3):
                found = await cli("deploy", "v1", "--to", "staging", control_plane=server, POINTSMAN_TOKEN=secret, POINTSMAN_APP="shop")
                assert (found.code, status in found.stderr) == (1, True)
        async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
            stub = audit_pb2_grpc.AuditServiceStub(channel)
            metadata = (("authorization", f"Bearer {admin}"),)
            request = audit_pb2.ListAuditEntriesRequest(outcome="REFUSED", oldest_first=True)

            async def both():
                entries = (await stub.ListAuditEntries(request, metadata=metadata)).entries
                return entries if {entry.outcome for entry in entries} == {"PERMISSION_DENIED", "UNAUTHENTICATED"} else None

            first, second = (await eventually(both))[:2]
            assert (first.method, first.token_id, first.outcome) == ("Deploy", viewer.split("_")[1], "PERMISSION_DENIED")
            assert (second.method, second.token_id, second.actor) == ("Deploy", "", "")
            # Reading is not recorded, and who may not read is told so.
            denied = await refused(stub.ListAuditEntries(request, metadata=(("authorization", f"Bearer {viewer}"),)))
            assert denied.reason == "PERMISSION_DENIED"
        bootstrapped = await cli_done("audit", "list", "--method", "CreateToken", "-o", "json", control_plane=server, POINTSMAN_TOKEN=admin)
        assert [entry["actor"].split(" ")[0] for entry in json.loads(bootstrapped)["entries"]] == ["bootstrap", "bootstrap"]


async def test_refusals_outlive_a_stop(tmp_path):
    """What was noted a moment ago is recorded before the control plane ends."""
    async with start_control_plane(tmp_path) as server:
        found = await cli("deploy", "v1", "--to", "staging", control_plane=server, POINTSMAN_APP="shop")
        assert found.code == 1
        await server.stop()
    async with start_control_plane(tmp_path) as server:
        listed = json.loads(await cli_done("audit", "list", "-o", "json", control_plane=server))["entries"]
        assert [(entry["method"], entry["outcome"]) for entry in listed] == [("Deploy", "APP_NOT_FOUND")]


async def test_the_console_is_recorded_as_the_api_is(tmp_path):
    async with open_site(tmp_path) as site:
        made = await site.send("/apps", app="shop", description="")
        assert made.status_code == 303
        again = await site.send("/apps", app="shop", description="")
        assert again.status_code == 409
        forged = await site.http.post("/apps", data={"app": "forged"})
        assert forged.status_code == 403
        await site.parts.audit._flush(0.0)
        page = await site.parts.audit.list(AuditFilter(), PageRequest(size=50, token=""), oldest_first=True)
        assert [(entry.method, entry.app, entry.outcome) for entry in page.items] == [
            ("CreateApp", "shop", "OK"),
            ("CreateApp", "shop", "APP_EXISTS"),
            ("CreateApp", "forged", "PERMISSION_DENIED"),
        ]
        shown = await site.page("/audit")
        assert all(text in shown for text in ("CreateApp", "APP_EXISTS", "PERMISSION_DENIED", "forged"))
        shown = await site.page("/audit?outcome=OK")
        assert "forged" not in shown
        assert "No entry passes this filter" in await site.page("/audit?app=none")
        assert "page_token" in await site.page("/audit?page=nonsense", 400)
        for number in range(60):
            await site.send("/apps", app=f"app-{number}", description="")
        first = await site.page("/audit")
        older = re.search(r'href="(/audit\?page=[^"]+)"', first)
        assert older
        assert "app-59" in first
        assert "forged" not in first
        assert "forged" in await site.page(older[1])
        assert "app-59" in await site.page("/audit?since=1h")
        assert "No entry passes this filter" in await site.page("/audit?until=1h")
        assert "is no time: write how long ago" in await site.page("/audit?since=yesterday", 400)
        # The next page is of the same time as this one, whenever it is asked for.
        older = re.search(r'href="(/audit\?since=20[^"]+)"', await site.page("/audit?since=1h"))
        assert older
        assert "forged" in await site.page(html.unescape(older[1]))


def test_anchors_that_are_none(tmp_path):
    for wrong in ("", "1", "0:" + "a" * 64, "x:" + "a" * 64, "1:abc"):
        found = asyncio.run(cli("audit", "verify", "--file", "/dev/null", "--expect", wrong))
        assert (found.code, "POSITION:HASH" in found.stderr) == (2, True), wrong
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n{nonsense\n")
    found = asyncio.run(cli("audit", "verify", "--file", str(broken)))
    assert found.code in (1, 2)
    assert "Traceback" not in found.stderr
