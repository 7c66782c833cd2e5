"""pointsman logs, execution, summary, rollback-report: what people see of executions."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid

import pytest

from pointsman.v1 import executions_pb2 as pb
from tests.clients import cli, cli_done, control_plane_client
from tests.eventually import eventually
from tests.executions import ran, report
from tests.processes import BIN, clean_environment, start_control_plane
from tests.sample_apps import marked


@pytest.fixture
async def app(stack) -> str:
    return await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))


async def test_list_and_logs_take_the_same_filters(stack, app):
    old, failed = (
        ran(app, ago=7200),
        ran(app, outcome="FAILED", error_reason="STEP_FAILED", error_message="step \x1b[31m'a' failed\nbadly", seconds=2),
    )
    await report(stack.plane, old, failed, *(ran(app, ago=number + 1) for number in range(3)))

    async def told(*arguments: str) -> str:
        return await cli_done("--app", app, *arguments, control_plane=stack.control_plane)

    listed = json.loads(await told("execution", "list", "-o", "json"))
    assert [len(listed["executions"]), listed["executions"][0]["execution_id"]] == [5, failed.execution_id]
    for filters in (
        ["--outcome", "failed"],
        ["--min-duration", "1s"],
        ["--error-reason", "STEP_FAILED"],
        ["--env", "production", "--limit", "1"],
    ):
        table = await told("execution", "list", *filters)
        assert failed.execution_id in table
        assert table.count(" production ") == 1
        (line,) = (await told("logs", *filters)).splitlines()
        assert failed.execution_id in line
        assert line.endswith("STEP_FAILED: step  [31m'a' failed")
    assert "these are the newest 1, see --limit" in await told("execution", "list", "--limit", "1")
    recent = (await told("logs", "--since", "1h", "-o", "json")).splitlines()
    assert [json.loads(line)["execution_id"] for line in recent][-1] == failed.execution_id
    assert len(recent) == 4
    assert (await told("logs", "--until", "1h")).count(old.execution_id) == 1
    assert "Nothing on record matches" in await told("execution", "list", "--release", "v9")
    assert (await cli("logs", "-f", "--until", "1h", control_plane=stack.control_plane)).code == 2
    assert (await cli("logs", "--since", "yesterday", control_plane=stack.control_plane)).code == 2


async def test_logs_follow_what_runs_over_a_restart_without_telling_anything_twice(tmp_path):
    async with start_control_plane(tmp_path) as server:
        environment = clean_environment(POINTSMAN_SERVER=server.grpc)
        arguments = ("logs", "-f", "-o", "json")
        process = await asyncio.create_subprocess_exec(
            str(BIN / "pointsman"), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        try:
            async with control_plane_client(server) as plane:
                before = ran("shop")
                await report(plane, before)
                assert json.loads(await process.stdout.readline())["execution_id"] == before.execution_id
                live = ran("shop")
                await report(plane, live)
                assert json.loads(await process.stdout.readline())["execution_id"] == live.execution_id
            await server.stop()
            await server.start()
            after = ran("shop")
            async with control_plane_client(server) as plane:
                await report(plane, after)
                assert json.loads(await process.stdout.readline())["execution_id"] == after.execution_id
            process.send_signal(signal.SIGINT)
            rest, said = await asyncio.wait_for(process.communicate(), 10)
            assert (process.returncode, rest) == (0, b"")
            assert b"trying again" in said
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_show_draws_the_steps_in_time(stack, app):
    one = ran(
        app,
        seconds=1,
        outcome="FAILED",
        error_reason="STEP_FAILED",
        error_message="no",
        digest="sha256:1",
        input='{"a": 1}',
        trace_id="f" * 32,
    )
    one.steps[0].duration.FromMilliseconds(500)
    second = one.steps.add(
        stage="main", name="later", kind="inference", outcome=pb.Execution.StepExecution.FAILED, attempts=3, error="refused", output="{}"
    )
    second.start_time.FromMicroseconds(one.start_time.ToMicroseconds() + 500_000)
    second.duration.FromMilliseconds(500)
    one.steps.add(stage="main", name="never", kind="transform", outcome=pb.Execution.StepExecution.SKIPPED)
    await report(stack.plane, one)
    told = await cli_done("execution", "show", one.execution_id, control_plane=stack.control_plane)
    assert f"execution {one.execution_id}: FAILED after 1.00 s\nSTEP_FAILED: no\n" in told
    assert "release v1 (sha256:1) at revision 1" in told
    lines = {line.split()[1]: line for line in told.splitlines() if line.startswith("main")}
    assert lines["answer"].endswith(f"500.0 ms  {'#' * 20}")
    assert lines["later"].endswith(f"500.0 ms  {' ' * 20}{'#' * 20}")
    assert "SKIPPED" in lines["never"]
    assert "#" not in lines["never"]
    for shown in ("later failed: refused", 'input:\n{"a": 1}', "later, gave:\n{}"):
        assert shown in told
    missing = await cli("execution", "show", str(uuid.uuid4()), control_plane=stack.control_plane)
    assert (missing.code, missing.stderr.partition(":")[0]) == (1, "EXECUTION_NOT_FOUND")


async def test_summary_sets_releases_beside_each_other(stack, app):
    await stack.plane.deploy(app, "v1")
    await stack.plane.deploy(app, "v2")
    await report(stack.plane, *(ran(app, "v1") for _ in range(4)), ran(app, "v2", outcome="FAILED"), ran(app, "v2", seconds=1))
    told = await cli_done("--app", app, "summary", "--since", "10m", control_plane=stack.control_plane)
    assert f"{app} in production: v2 fails 50.00%, v1 failed 0.00%; p95 1.00 s, was 12.0 ms" in told
    found = json.loads(await cli_done("--app", app, "summary", "-o", "json", control_plane=stack.control_plane))
    assert [(one["release"], one["live"]) for one in found["summaries"]] == [("v2", True), ("v1", False)]
    assert "Nothing ran in that time." in await cli_done(
        "--app", app, "summary", "--since", "2026-01-01", "--until", "2026-01-02", control_plane=stack.control_plane
    )


async def test_summary_gives_no_rate_and_no_times_where_nothing_came_to_its_end(stack, app):
    await stack.plane.deploy(app, "v1")
    await stack.plane.deploy(app, "v2")
    await report(stack.plane, ran(app, "v1"), ran(app, "v2", outcome="REFUSED"), ran(app, "v2", outcome="CANCELLED"))
    told = await cli_done("--app", app, "summary", control_plane=stack.control_plane)
    (line,) = [line for line in told.splitlines() if " v2 " in line and " live " in line]
    assert line.split()[2:12] == ["v2", "live", "2", "0", "-", "1", "1", "-", "-", "-"]
    assert f"{app} in production: " not in told


async def test_rollback_report_tells_of_the_bad_release(stack, app):
    await stack.plane.deploy(app, "v1")
    bad = (await stack.plane.deploy(app, "v2")).deployment
    failed = ran(app, "v2", revision=bad.revision, outcome="FAILED", error_reason="STEP_FAILED", error_message="no")
    await report(stack.plane, failed, ran(app, "v2", revision=bad.revision))
    live = await cli_done("rollback-report", bad.deployment_id, control_plane=stack.control_plane)
    assert "to now: it is live" in live
    rollback = (await stack.plane.rollback(app)).deployment
    told = await cli_done("rollback-report", rollback.deployment_id, control_plane=stack.control_plane)
    assert f"v2 of {app} in production, from " in told
    assert "2 ran on it, 1 failed\n0 began after it was replaced" in told
    assert "STEP_FAILED: no" in told
    found = json.loads(await cli_done("rollback-report", rollback.deployment_id, "-o", "json", control_plane=stack.control_plane))
    assert (found["deployment_id"], found["failed"]) == (bad.deployment_id, "1")


async def test_rerun_sends_the_captured_input_to_the_present_release(stack, app):
    await stack.plane.deploy(app, "v2")
    revision = (await stack.plane.binding(app)).revision

    async def serving() -> bool:
        return (await stack.gates[0].status()).revision >= revision

    await eventually(serving)
    good, wrong = ran(app, "v1", outcome="FAILED", input='{"message": "hello"}'), ran(app, "v1", endpoint="gone", input="{}")
    without, cut, secret = ran(app), ran(app, input='{"message": "hel… (20 characters more)'), ran(app, input='{"key": "[secret KEY]"}')
    await report(stack.plane, good, wrong, without, cut, secret)

    async def rerun(*executions: pb.Execution, output: str = "text"):
        ids = [one.execution_id for one in executions]
        return await cli("execution", "rerun", *ids, "-o", output, control_plane=stack.control_plane, gateway=stack.gateways[0])

    done = await rerun(good, output="json")
    assert done.code == 0, done.stderr
    (again,) = json.loads(done.stdout)["reruns"]
    assert (again["release"], again["answer"]["release"], again["answer"]["output"]["message"]) == ("v1", "v2", "hello")
    failing = await rerun(good, wrong)
    assert failing.code == 1
    assert "ENDPOINT_NOT_FOUND" in failing.stdout
    assert "SUCCEEDED" in failing.stdout
    refused = await rerun(good, without, cut, secret)
    assert (refused.code, refused.stdout) == (1, "")
    for one, why in ((without, "was not captured"), (cut, "was too long"), (secret, "held a secret")):
        assert f"{one.execution_id}: its input {why}" in refused.stderr
