"""Commands against real servers: what they print for people and for programs."""

from __future__ import annotations

import getpass
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from control_plane.cli import COMMANDS, main
from pointsman.v1 import apps_pb2
from tests.clients import cli, cli_done
from tests.eventually import eventually
from tests.executions import ran, report
from tests.processes import BIN, clean_environment
from tests.sample_apps import as_yaml, marked
from tests.simulated_gateway import SimulatedGateway
from tests.terminal import shown, terminal


@pytest.fixture
async def shop(stack, tmp_path):
    """An app of its own, by name, and its settings; v1 and v2 are released, nothing is deployed."""
    app = f"shop-{uuid.uuid4().hex[:8]}"
    servers = {"control_plane": stack.control_plane, "gateway": stack.gateways[0], "POINTSMAN_APP": app}
    for tag in ("v1", "v2"):
        (tmp_path / f"{tag}.yaml").write_text(as_yaml(marked(tag)))
        await cli_done("app", "push", str(tmp_path / f"{tag}.yaml"), **servers)
        await cli_done("release", "create", tag, "--description", f"the {tag}", **servers)
    return servers


async def as_json(*arguments, **servers):
    return json.loads(await cli_done(*arguments, "-o", "json", **servers))


async def test_the_verdict_of_deploy_promote_and_rollback(shop):
    done = await cli_done("deploy", "v1", "--to", "staging", "--reason", "try", **shop)
    assert re.fullmatch(r"2/2 gateways serve v1 in staging, revision \d+, \d+ ms\n", done)
    done = await cli_done("promote", "--from", "staging", "--to", "production", **shop)
    assert re.fullmatch(r"2/2 gateways serve v1 in production, revision \d+, \d+ ms\n", done)
    await cli_done("deploy", "v2", "--to", "production", **shop)
    done = await cli_done("rollback", "production", **shop)
    assert re.fullmatch(r"2/2 gateways serve v1 in production, revision \d+, \d+ ms\n", done)
    done = await cli("rollback", "production", **shop)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("NOTHING_TO_ROLL_BACK: ")
    done = await cli_done("rollback", "production", "--to", "v2", **shop)
    assert done.startswith("2/2 gateways serve v2 in production")


async def test_what_is_live_already_and_what_would_change(shop):
    assert await cli_done("deploy", "v1", "--to", "staging", "--dry-run", **shop) == "would make v1 live in staging\n"
    assert (await as_json("status", **shop))["bindings"] == []
    await cli_done("deploy", "v1", "--to", "staging", **shop)
    assert (await cli_done("deploy", "v1", "--to", "staging", **shop)).startswith("v1 is live in staging already, since 20")
    assert (
        await cli_done("deploy", "v1", "--to", "staging", "--dry-run", **shop)
    ) == "nothing would change: v1 is live in staging already\n"
    done = await cli_done("deploy", "v2", "--to", "staging", "--dry-run", **shop)
    assert done.startswith("would make v2 live in staging, instead of v1\n~ ")
    # What is different in it, as release diff tells it.
    assert done.partition("\n")[2] == await cli_done("release", "diff", "v1", "v2", **shop)


async def test_a_stale_expectation_and_a_repeat(shop):
    first = await as_json("deploy", "v1", "--to", "staging", "--expected-revision", "0", **shop)
    stale = await cli("deploy", "v2", "--to", "staging", "--expected-revision", "0", **shop)
    assert stale.code == 1
    assert stale.stderr.startswith("REVISION_CONFLICT: ")
    request_id = str(uuid.uuid4())
    expected = ["--expected-revision", first["binding"]["revision"], "--request-id", request_id]
    second = await as_json("deploy", "v2", "--to", "staging", *expected, **shop)
    assert (await as_json("deploy", "v2", "--to", "staging", *expected, **shop))["deployment"] == second["deployment"]
    assert [entry["release"] for entry in (await as_json("history", "staging", **shop))["deployments"]] == ["v2", "v1"]


async def test_create_with_deploy_to_and_what_json_looks_like(shop):
    done = await as_json("release", "create", "v2-again", "--deploy-to", "staging", **shop)
    assert done["release"]["state"] == "DEPLOYED"
    assert done["release"]["environments"] == ["staging"]
    assert done["deployment"]["action"] == "DEPLOY"
    assert (done["rollout"]["gateways_total"], done["rollout"]["gateways_applied"]) == (2, 2)
    # Empty lists are there too, so that a script need not ask.
    assert done["rollout"]["gateways_pending"] == done["rollout"]["gateways_rejected"] == []
    assert done["deployment"]["reason"] == ""
    assert list(done["release"])[:3] == ["app", "tag", "description"]


async def test_releases_are_searched_as_in_the_console(shop):
    for search, tags in (("THE V", ["v2", "v1"]), ("v1", ["v1"]), (f"{getpass.getuser()}@", ["v2", "v1"]), ("nothing of the kind", [])):
        listed = await as_json("release", "list", "--search", search, **shop)
        assert [release["tag"] for release in listed["releases"]] == tags
    assert "has 'v9' in its tag" in await cli_done("release", "list", "--search", "v9", **shop)


async def test_status_and_gateways(shop, stack):
    await cli_done("deploy", "v1", "--to", "staging", "--reason", "first\nsecond", **shop)
    text = await cli_done("status", **shop)
    assert text.splitlines()[0].split() == ["APP", "ENVIRONMENT", "RELEASE", "REVISION", "GATEWAYS", "FAILED", "SINCE", "(UTC)", "BY"]
    assert text.splitlines()[1].split()[:3] == [shop["POINTSMAN_APP"], "staging", "v1"]
    assert re.search(r" 2/2 +- ", text)
    assert text.splitlines()[1].endswith("first")
    assert "2 gateways connected" in text
    status = await as_json("status", **shop)
    assert [binding["environment"] for binding in status["bindings"]] == ["staging"]
    assert [gateway["gateway_id"] for gateway in status["gateways"]] == ["east", "west"]
    await cli_done("trigger", "where", "-e", "staging", "-d", '{"message": "hi"}', **shop)

    async def healthy():
        return re.search(r" 2/2 +0/1 ", await cli_done("status", **shop))

    await eventually(healthy, 5)
    (ran,) = (await as_json("status", **shop))["summaries"]
    assert (ran["release"], ran["executions"], ran["failed"]) == ("v1", "1", "0")
    listed = await as_json("gateways", control_plane=stack.control_plane)
    assert [(gateway["gateway_id"], gateway["connected"]) for gateway in listed["gateways"]] == [("east", True), ("west", True)]
    text = await cli_done("gateways", control_plane=stack.control_plane)
    assert re.search(r"^east +yes +\d+ +\d+ s ago +\d+ (s|min) ", text, re.MULTILINE)


async def test_trigger_prints_the_answer_alone_on_stdout(shop):
    await cli_done("deploy", "v1", "--to", "staging", **shop)
    done = await cli("trigger", "where", "-e", "staging", "-d", '{"message": "hi"}', **shop)
    assert done.code == 0
    assert json.loads(done.stdout)["first"] == "v1"
    assert list(json.loads(done.stdout)) == sorted(json.loads(done.stdout))
    assert re.fullmatch(rf"# v1 of {shop['POINTSMAN_APP']} in staging, revision \d+, on east, execution [0-9a-f-]{{36}}\n", done.stderr)
    whole = await as_json("trigger", "where", "-e", "staging", "-d", '{"message": "hi"}', **shop)
    assert (whole["release"], whole["gateway_id"], whole["output"]["message"]) == ("v1", "east", "hi")
    for arguments, reason in (
        (["-d", "{}"], "INVALID_INPUT"),
        (["-d", '{"message": "hi"}', "--release", "v2"], "RELEASE_NOT_LOADED"),
        (["-d", '{"message": "hi"}', "--min-revision", "999999999"], "BEHIND"),
    ):
        refused = await cli("trigger", "where", "-e", "staging", *arguments, **shop)
        assert (refused.code, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"{reason}: ")


async def test_trigger_tells_as_it_goes(shop):
    await cli_done("deploy", "v1", "--to", "staging", **shop)
    arguments = ("trigger", "where", "-e", "staging", "-d", '{"message": "hi"}', "--stream")
    done = await cli(*arguments, **shop)
    assert json.loads(done.stdout)["message"] == "hi"
    assert [line.split(" after ")[0] for line in done.stderr.splitlines()[1:]] == ["# begin/start SUCCEEDED", "# end/answer SUCCEEDED"]
    events = [json.loads(line) for line in (await cli_done(*arguments, "-o", "json", **shop)).splitlines()]
    assert [next(key for key in event if key != "sequence") for event in events] == [
        *("execution_started", "step_started", "step_finished", "step_started", "step_finished", "execution_completed")
    ]
    refused = await cli("trigger", "nowhere", "-e", "staging", "--stream", **shop)
    assert (refused.code, "ENDPOINT_NOT_FOUND" in refused.stderr) == (1, True)


async def test_trigger_takes_its_input_from_a_file(shop, tmp_path):
    await cli_done("deploy", "v1", "--to", "staging", **shop)
    (tmp_path / "input.json").write_text('{"message": "from a file"}')
    done = await cli_done("trigger", "where", "-e", "staging", "-d", f"@{tmp_path / 'input.json'}", **shop)
    assert json.loads(done)["message"] == "from a file"


async def test_draft_and_show_print_what_push_takes(shop, tmp_path):
    draft = tmp_path / "draft.yaml"
    draft.write_text(await cli_done("app", "draft", **shop))
    assert "is the same as the newest release" in draft.read_text()
    assert yaml.safe_load(draft.read_text())["pipelines"] == yaml.safe_load(await cli_done("release", "show", "v2", **shop))["pipelines"]
    pushed = await cli_done("app", "push", str(draft), **shop)
    assert pushed == f"the draft of {shop['POINTSMAN_APP']} is at version 3\n"
    # The same content, so the same release.
    assert "release v2 " in await cli_done("release", "create", "v2", **shop)
    stale = await cli("app", "push", str(draft), "--expected-draft-version", "1", **shop)
    assert (stale.code, stale.stderr.split(":")[0]) == (1, "REVISION_CONFLICT")


async def test_environments(stack):
    name = f"canary-{uuid.uuid4().hex[:8]}"
    server = {"control_plane": stack.control_plane}
    assert await cli_done("environment", "create", name, "--description", "one percent", **server) == f"environment {name} created\n"
    assert (await cli("environment", "create", name, **server)).stderr.startswith("ENVIRONMENT_EXISTS: ")
    await cli_done("environment", "update", name, "--description", "five percent", **server)
    listed = await as_json("environment", "list", **server)
    assert next(one for one in listed["environments"] if one["environment"] == name)["description"] == "five percent"
    await cli_done("environment", "update", name, "--max-staleness", "30s", "--stale-action", "refuse", **server)
    assert re.search(rf"^{name} .* refuse after 30 s +five percent$", await cli_done("environment", "list", **server), re.MULTILINE)
    await cli_done("environment", "update", name, "--max-staleness", "0", **server)
    assert re.search(rf"^{name} .*  -  +five percent$", await cli_done("environment", "list", **server), re.MULTILINE)
    too_short = await cli("environment", "update", name, "--max-staleness", "500ms", **server)
    assert too_short.stderr.startswith("INVALID_FIELD: max_staleness: 0.5s is less than 1s")
    assert (await cli("environment", "update", name, **server)).code == 2
    assert await cli_done("environment", "delete", name, **server) == f"environment {name} deleted\n"
    await cli_done("environment", "create", name, "--max-staleness", "1m", "--stale-action", "flag", **server)
    listed = await as_json("environment", "list", **server)
    made = next(one for one in listed["environments"] if one["environment"] == name)
    assert (made["max_staleness"], made["stale_action"]) == ("60s", "FLAG")
    await cli_done("environment", "delete", name, **server)
    assert (await cli("environment", "delete", name, **server)).stderr.startswith("ENVIRONMENT_NOT_FOUND: ")


async def test_texts_of_others_cannot_steer_the_terminal(stack):
    hostile = "\x1b]0;owned\x07 [bold]not markup[/bold] [/]"
    app = f"hostile-{uuid.uuid4().hex[:8]}"
    await stack.plane.apps.CreateApp(apps_pb2.CreateAppRequest(app=app, description=hostile))
    told = await shown("app", "list", POINTSMAN_SERVER=stack.control_plane.grpc)
    assert "\x1b]0;owned" not in told
    assert "[bold]not markup[/bold] [/]" in told


async def test_colours_are_for_terminals_that_know_them(shop, stack):
    servers = {"POINTSMAN_SERVER": stack.control_plane.grpc, "POINTSMAN_APP": shop["POINTSMAN_APP"]}
    await cli_done("deploy", "v1", "--to", "production", **shop)
    for arguments, style in ((("release", "diff", "v1", "v2"), "\x1b[33m~ "), (("status",), "\x1b[1mAPP")):
        assert style in await shown(*arguments, **servers)
        for settings in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}):
            assert "\x1b" not in await shown(*arguments, **servers, **settings)
        assert "\x1b" not in await cli_done(*arguments, **shop)


async def test_a_rollout_is_told_live_on_a_terminal(shop, stack):
    """By gateway, for as long as one is not there yet; then the verdict alone stays."""
    servers = {"POINTSMAN_SERVER": stack.control_plane.grpc, "POINTSMAN_APP": shop["POINTSMAN_APP"]}
    async with SimulatedGateway("slow", apply=False, apps=[shop["POINTSMAN_APP"]]).connected(stack.control_plane.grpc) as slow:
        told = await shown("deploy", "v1", "--to", "staging", "--wait", "1200ms", **servers)
        assert slow.bindings
    assert re.search(r"2/3 gateways serve v1 in staging, \d\.\d s", told), told
    assert re.search(r"  slow  not yet; is at revision \d+, was heard 0 s ago", told), told
    assert re.search(r"  east  serves v1", told), told
    last = told.rpartition("\x1b[J")[2]
    assert re.match(r"2/3 gateways serve v1 in staging, revision \d+, 1\d{3} ms\n  not yet: slow ", last), last


async def test_ctrl_c_amid_a_rollout_says_what_is_live(shop, stack):
    servers = {"POINTSMAN_SERVER": stack.control_plane.grpc, "POINTSMAN_APP": shop["POINTSMAN_APP"]}
    async with SimulatedGateway("slow", apply=False, apps=[shop["POINTSMAN_APP"]]).connected(stack.control_plane.grpc):
        async with terminal(BIN / "pointsman", "deploy", "v1", "--to", "staging", "--wait", "1m", **servers) as found:
            await found.until("2/3 gateways serve v1")
            found.press("\x03")
            assert await found.end() == 1
    last = found.shown.rpartition("\x1b[J")[2]
    assert re.match(r"pointsman: stopped waiting for the gateways; v1 is live in staging, at revision \d+\. See pointsman status\.\n", last)
    # The same again is no second deployment.
    request_id = re.search(r"--request-id (\S+) waits again", last)[1]
    await cli_done("deploy", "v1", "--to", "staging", "--wait", "1m", "--request-id", request_id, **shop)
    assert len((await as_json("history", "staging", **shop))["deployments"]) == 1


async def test_status_tells_of_gateways_that_are_not_on_what_is_live_and_of_failures(shop, stack):
    app = shop["POINTSMAN_APP"]
    await cli_done("deploy", "v1", "--to", "staging", **shop)
    assert "nothing ran on it in the last 15 minutes" in await cli_done("status", **shop)
    assert " v1 " in await cli_done("status", "-e", "staging", **shop)
    assert "Nothing is deployed" in await cli_done("status", "-e", "production", **shop)
    assert "There is no environment 'prod'" in (await cli("status", "-e", "prod", **shop)).stderr
    await report(stack.plane, ran(app, "v1", environment="staging"), ran(app, "v1", environment="staging", outcome="FAILED"))
    async with SimulatedGateway("slow", apply=False, apps=[app]).connected(stack.control_plane.grpc):
        await cli_done("deploy", "v2", "--to", "staging", "--wait", "0", **shop)
        await cli_done("deploy", "v1", "--to", "staging", "--wait", "500ms", **shop)
        told = await cli_done("status", **shop)
    assert re.search(r" 2/3 +1/2 ", told)
    assert "3 gateways connected, 1 of them not on all that is live; see pointsman gateways\n" in told
    assert re.search(r"^gateway slow is at revision \d+; it was last heard \d s ago$", told, re.MULTILINE)
    assert told.endswith("1 of 2 executions on it failed in the last 15 minutes; see pointsman logs --outcome failed\n")


async def test_a_name_that_is_not_there_is_told_where_nothing_is_found(shop):
    app = shop["POINTSMAN_APP"]
    for arguments, words in (
        (("logs", "-e", "stagin"), "There is no environment 'stagin'. Did you mean staging?"),
        (("logs", "--release", "v11"), f"App '{app}' has no release 'v11'. Did you mean v"),
        (("execution", "list", "-e", "prod"), "There is no environment 'prod'."),
        (("summary", "--app", app[:-1]), f"There is no app '{app[:-1]}'. Did you mean "),
    ):
        done = await cli(*arguments, **shop)
        assert done.code == 0
        assert f"pointsman: {words}" in done.stderr
    done = await cli("logs", "-e", "staging", **shop)
    assert (done.stdout, done.stderr) == ("", "pointsman: Nothing on record matches. An execution is there within a second of its end.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, which is Linux's")
def test_a_disk_that_is_full_is_told_in_a_line(stack):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [BIN / "pointsman", "app", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(POINTSMAN_SERVER=stack.control_plane.grpc),
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


OTHER_PROCESSES = {
    "control-plane": "--store",
    "gateway": "--state-dir",
    "backup": "--store",
    "copy-store": "--from",
    "token bootstrap": "--force",
}


# They run until they are ended, or print what another program takes.
NOTHING_TO_TELL = ("dev", "demo", "certs", "completion")


def test_every_command_has_help_with_an_example_on_a_line_of_its_own():
    checked = 0
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        # Of a group: each of its commands in a line that is not cut off.
        inner = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []
        if inner:
            told = CliRunner().invoke(main, [name, "--help"], prog_name="pointsman", env={"COLUMNS": "80"}).output
            assert not [line for line in told.splitlines()[1:] if line.endswith("...")]
        for words in [(name, one) for one in inner] or [(name,)]:
            if " ".join(words) in OTHER_PROCESSES:
                continue  # they become other processes, which have a test below
            done = CliRunner().invoke(main, [*words, "--help"], prog_name="pointsman")
            assert done.output.startswith(f"Usage: pointsman {' '.join(words)}")
            (example,) = re.findall(r"Example:\n\s+(pointsman .*)", done.output)
            assert " ".join(words) in example.replace("--app shop ", "")
            assert (name in NOTHING_TO_TELL) != ("-o, --output" in done.output), words
            checked += 1
    assert checked >= 20


def test_the_servers_take_their_own_flags(tmp_path):
    # A folder that is named like a plane must not take its place.
    (tmp_path / "data_plane").mkdir()
    (tmp_path / "data_plane" / "__main__.py").write_text("raise SystemExit(99)")
    for name, flag in OTHER_PROCESSES.items():
        done = subprocess.run(
            [BIN / "pointsman", *name.split(), "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(),
            timeout=30,
            check=True,
        )
        assert flag in done.stdout
    assert sys.version_info >= (3, 11)
