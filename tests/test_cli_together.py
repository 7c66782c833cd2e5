"""pointsman deploy APP=TAG...: several apps at one revision, all or none; and what is no such thing."""

from __future__ import annotations

import json
import re
import uuid

import pytest
import yaml

from pointsman.v1 import deployments_pb2
from tests.clients import cli, cli_done, refused
from tests.processes import BIN
from tests.sample_apps import marked
from tests.simulated_gateway import SimulatedGateway
from tests.terminal import shown, terminal


@pytest.fixture
async def apps(stack):
    """Two apps with the releases v1 and v2, of which nothing is live."""
    return [await stack.plane.create_app(v1=marked("v1"), v2=marked("v2")) for _ in range(2)]


@pytest.fixture
def servers(stack):
    return {"control_plane": stack.control_plane}


async def as_json(*arguments, **servers):
    return json.loads(await cli_done(*arguments, "-o", "json", **servers))


async def test_several_apps_go_live_at_one_revision(stack, apps, servers):
    one, two = apps
    words = [f"{one}=v1", f"{two}=v2"]
    told = await cli_done("deploy", *words, "--to", "staging", "--reason", "both", POINTSMAN_APP="nonesuch", **servers)
    assert re.fullmatch(rf"2/2 gateways serve {one}=v1, {two}=v2 in staging, revision \d+, \d+ ms\n", told)
    bindings = [await stack.plane.binding(app, "staging") for app in apps]
    assert [(binding.release, binding.reason) for binding in bindings] == [("v1", "both"), ("v2", "both")]
    assert bindings[0].revision == bindings[1].revision

    # What is live already stays, and is told.
    told = await cli_done("deploy", f"{one}=v2", f"{two}=v2", "--to", "staging", **servers)
    first, verdict = told.splitlines()
    assert first.startswith(f"{two}=v2 is live in staging already, since 20")
    assert verdict.startswith(f"2/2 gateways serve {one}=v2, {two}=v2 in staging, revision ")
    assert (await stack.plane.binding(two, "staging")).revision == bindings[1].revision


async def test_a_dry_run_tells_for_each_app_what_would_change(stack, apps, servers):
    one, two = apps
    await stack.plane.deploy(one, "v1", "staging")
    await stack.plane.deploy(two, "v2", "staging")
    told = await cli_done("deploy", f"{one}=v2", f"{two}=v2", "--to", "staging", "--dry-run", **servers)
    first, *difference, last = told.splitlines(keepends=True)
    assert first == f"would make {one}=v2 live in staging, instead of v1\n"
    assert "".join(difference) == await cli_done("release", "diff", "v1", "v2", "--app", one, **servers)
    assert last == f"nothing would change: {two}=v2 is live in staging already\n"
    assert (await stack.plane.binding(one, "staging")).release == "v1"


async def test_all_or_none_and_which_app_it_was(stack, apps, servers):
    one, two = apps
    done = await cli("deploy", f"{one}=v1", f"{two}=v3", "--to", "staging", **servers)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"RELEASE_NOT_FOUND: App '{two}' has no release 'v3'. Did you mean ")
    done = await cli("deploy", f"{one}=v1", "nonesuch=v1", "--to", "staging", **servers)
    assert done.stderr.startswith("APP_NOT_FOUND: There is no app 'nonesuch'.")
    done = await cli("deploy", f"{one}=v1", f"{two}=-v", "--to", "staging", **servers)
    assert (done.code, done.stderr.startswith(f"INVALID_FIELD: {two}=-v: release: '-v' is not allowed; ")) == (1, True), done.stderr
    done = await cli("deploy", "No!=v1", f"{two}=-v", "--to", "staging", **servers)
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()[1:]] == [["  No!=v1", "app"], [f"  {two}=-v", "release"]]
    async with SimulatedGateway("picky", apps=[two], refuse=lambda _: "secret KEY is missing").connected(stack.control_plane.grpc):
        done = await cli("deploy", f"{one}=v1", f"{two}=v1", "--to", "staging", **servers)
        assert (done.code, done.stderr.startswith("RELEASE_REJECTED: ")) == (1, True)
        assert f"{two}" in done.stderr
        assert one not in done.stderr
        targets = [deployments_pb2.DeployManyRequest.Target(app=app, environment="staging", release="v1") for app in apps]
        refusal = await refused(stack.plane.deployments.DeployMany(deployments_pb2.DeployManyRequest(targets=targets)))
        # Programs find the same in names that have one value each.
        assert [refusal.metadata[key] for key in ("app", "environment", "release")] == [two, "staging", "v1"]
        history = await as_json("history", "--app", one, **servers)
        assert history["deployments"] == []
        await cli_done("deploy", f"{one}=v1", f"{two}=v1", "--to", "staging", "--force", **servers)
        assert (await as_json("history", "--app", two, **servers))["deployments"][0]["forced"] is True


async def test_the_response_is_printed_for_programs(apps, servers):
    one, two = apps
    request_id = str(uuid.uuid4())
    command = ["deploy", f"{two}=v1", f"{one}=v2", "--to", "production", "--request-id", request_id]
    found = await as_json(*command, **servers)
    assert list(found) == ["deployments", "bindings", "rollout"]
    assert [(binding["app"], binding["release"]) for binding in found["bindings"]] == [(two, "v1"), (one, "v2")]
    # The same again is no second deployment.
    again = yaml.safe_load(await cli_done(*command, "-o", "yaml", **servers))
    assert again["deployments"] == found["deployments"]


async def test_one_app_alone_and_what_is_expected_of_it(stack, apps, servers):
    one, _ = apps
    revision = (await as_json("deploy", f"{one}=v1", "--to", "staging", **servers))["bindings"][0]["revision"]
    done = await cli("deploy", f"{one}=v2", "--to", "staging", "--expected-revision", "0", **servers)
    assert (done.code, done.stderr.startswith(f"REVISION_CONFLICT: App '{one}' in 'staging' is at revision {revision}")) == (1, True)
    told = await cli_done("deploy", f"{one}=v2", "--to", "staging", "--expected-revision", revision, **servers)
    assert told.startswith(f"2/2 gateways serve {one}=v2 in staging, revision ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Missing argument 'TAG | APP=TAG...'"),
        (("v1", "v2"), "Of which app is 'v1'? With several releases write each as APP=TAG, such as shop=v42 search=v7."),
        (("shop=v1", "v2"), "Of which app is 'v2'?"),
        (("v1", "shop=v2"), "Of which app is 'v1'?"),
        (("shop=v1", "shop=v2"), "App 'shop' is there twice; name one release of each app."),
        (("=v1",), "'=v1' is no APP=TAG; write the app, one =, and the tag, such as shop=v42."),
        (("shop=",), "'shop=' is no APP=TAG"),
        (("shop=v1=v2",), "'shop=v1=v2' is no APP=TAG"),
        (("shop=v1", "--app", "shop"), "APP=TAG names the app itself; leave --app out, or write the tag alone."),
        (("shop=v1", "chat=v1", "--expected-revision", "3"), "--expected-revision is that of one binding, and each app has its own"),
    ],
)
async def test_what_cannot_be_meant_is_wrong_use(words, told):
    done = await cli("deploy", *words, "--to", "staging", POINTSMAN_SERVER="127.0.0.1:1")
    assert (done.code, done.stdout) == (2, "")
    assert told in done.stderr


async def test_an_app_that_is_named_before_the_command_is_no_other(apps):
    done = await cli("--app", apps[0], "deploy", f"{apps[1]}=v1", "--to", "staging", POINTSMAN_SERVER="127.0.0.1:1")
    assert (done.code, "leave --app out" in done.stderr) == (2, True)


async def test_a_rollout_of_several_is_told_live_on_a_terminal(stack, apps):
    one, two = apps
    await stack.plane.deploy(one, "v1", "staging")
    words = (f"{one}=v1", f"{two}=v1")
    async with SimulatedGateway("slow", apply=False, apps=[two]).connected(stack.control_plane.grpc):
        told = await shown("deploy", *words, "--to", "staging", "--wait", "1200ms", POINTSMAN_SERVER=stack.control_plane.grpc, columns=200)
    assert re.search(rf"2/3 gateways serve {one}=v1, {two}=v1 in staging, \d\.\d s", told), told
    assert re.search(r"  slow  not yet; is at revision \d+, was heard 0 s ago", told), told
    assert re.search(r"  east  serves all of it", told), told
    last = told.rpartition("\x1b[J")[2]
    assert f"{one}=v1 is live in staging already" in last
    assert re.search(rf"2/3 gateways serve {one}=v1, {two}=v1 in staging, revision \d+, 1\d{{3}} ms\n  not yet: slow ", last), last


async def test_ctrl_c_amid_a_rollout_of_several_says_what_is_live(stack, apps):
    one, two = apps
    arguments = ("deploy", f"{one}=v1", f"{two}=v2", "--to", "staging", "--wait", "1m")
    async with SimulatedGateway("slow", apply=False, apps=apps).connected(stack.control_plane.grpc):
        async with terminal(BIN / "pointsman", *arguments, columns=200, POINTSMAN_SERVER=stack.control_plane.grpc) as found:
            await found.until("2/3 gateways serve")
            found.press("\x03")
            assert await found.end() == 1
    live = rf"{one}=v1 is live in staging, at revision (\d+), {two}=v2 is live in staging, at revision \1\. See"
    assert re.search(live, found.shown.rpartition("\x1b[J")[2])
