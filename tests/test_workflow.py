"""The whole release workflow, driven by the command line with HTTP, by the real grpcurl alone, and by buf curl."""

from __future__ import annotations

import json

from tests.clients import BufCurl, Grpcurl, cli_done, documents
from tests.processes import run
from tests.sample_apps import as_yaml, marked


async def test_from_the_command_line(stack, tmp_path, curl):
    servers = {"control_plane": stack.control_plane, "gateway": stack.gateways[0], "POINTSMAN_APP": "cli-shop"}
    (tmp_path / "v1.yaml").write_text(as_yaml(marked("v1.0.0")))
    (tmp_path / "v2.yaml").write_text(as_yaml(marked("v2.0.0")))

    async def do(*arguments):
        return await cli_done(*arguments, **servers)

    async def answer(environment):
        done = await run(
            *(curl, "-sS", "--fail-with-body", "-X", "POST", f"http://{stack.gateways[0].http}/v1/trigger/where"),
            *("-H", "Content-Type: application/json", "-H", f"X-Environment: {environment}", "-H", "X-App: cli-shop"),
            *("-d", '{"message": "Test message"}'),
        )
        assert done.code == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    # 1. Edit the draft, create a release.
    await do("app", "validate", str(tmp_path / "v1.yaml"))
    await do("app", "push", str(tmp_path / "v1.yaml"))
    await do("release", "create", "v1.0.0", "--description", "the first")
    # 2. Deploy it to staging.
    assert "staging" in await do("deploy", "v1.0.0", "--to", "staging")
    # 3. Verify with a test trigger.
    assert await answer("staging") == {
        "first": "v1.0.0",
        "last": "v1.0.0",
        "release": "v1.0.0",
        "environment": "staging",
        "message": "Test message",
    }
    # 4. Promote the same release.
    await do("promote", "--from", "staging", "--to", "production")
    assert (await answer("production"))["release"] == "v1.0.0"
    await do("app", "push", str(tmp_path / "v2.yaml"))
    await do("release", "create", "v2.0.0")
    await do("deploy", "v2.0.0", "--to", "production")
    assert (await answer("production"))["release"] == "v2.0.0"
    # 5. Roll back.
    await do("rollback", "production")
    assert (await answer("production"))["release"] == "v1.0.0"

    triggered = await do("trigger", "where", "-e", "production", "-d", '{"message": "hi"}')
    assert "v1.0.0" in triggered
    assert "v2.0.0" in await do("release", "list")
    assert "v1.0.0" in await do("release", "show", "v1.0.0")
    assert "production" in await do("status")
    history = documents(await do("history", "production", "-o", "json"))[0]
    entries = history if isinstance(history, list) else history["deployments"]
    assert [(entry["action"], entry["release"]) for entry in entries] == [
        ("ROLLBACK", "v1.0.0"),
        ("DEPLOY", "v2.0.0"),
        ("PROMOTE", "v1.0.0"),
    ]


async def test_with_grpcurl_and_nothing_but_reflection(stack, grpcurl):
    plane, gate = Grpcurl(grpcurl, stack.control_plane.grpc), Grpcurl(grpcurl, stack.gateways[1].grpc)
    listed = (await plane.raw("list")).stdout.split()
    assert {"pointsman.v1.DeploymentService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(listed)
    assert "Deploy" in (await plane.raw("describe", "pointsman.v1.DeploymentService")).stdout

    await plane.call("AppService/CreateApp", app="manual")
    for tag in ("v1", "v2"):
        made = await plane.call("ReleaseService/CreateRelease", app="manual", tag=tag, config=marked(tag))
        assert made["release"]["state"] == "READY"
    for tag in ("v1", "v2"):
        deployed = await plane.call("DeploymentService/Deploy", app="manual", environment="staging", release=tag)
        assert deployed["rollout"]["gateways_total"] == deployed["rollout"]["gateways_applied"] == 2
        ran = await gate.call("TriggerService/Trigger", app="manual", environment="staging", endpoint="where", input={"message": "x"})
        assert ran["release"] == ran["output"]["first"] == ran["output"]["last"] == tag
        assert ran["gateway_id"] == "west"
    promoted = await plane.call("DeploymentService/Promote", app="manual", from_environment="staging", to_environment="production")
    assert promoted["binding"]["release"] == "v2"
    rolled = await plane.call("DeploymentService/Rollback", app="manual", environment="staging")
    assert rolled["binding"]["release"] == "v1"
    assert "NOTHING_TO_ROLL_BACK" in await plane.refused("DeploymentService/Rollback", app="manual", environment="staging")
    released = await plane.call("ReleaseService/ListReleases", app="manual")
    assert [(one["tag"], one["state"]) for one in released["releases"]] == [("v2", "DEPLOYED"), ("v1", "DEPLOYED")]


async def test_with_buf_curl(stack, buf):
    plane, gate = BufCurl(buf, stack.control_plane.grpc), BufCurl(buf, stack.gateways[0].grpc)
    await plane.call("AppService/CreateApp", app="buffed")
    made = await plane.call("ReleaseService/CreateRelease", app="buffed", tag="v1", config=marked("v1"), deployTo="production")
    assert made["deployment"]["action"] == "DEPLOY"
    ran = await gate.call("TriggerService/Trigger", app="buffed", endpoint="where", input={"message": "x"})
    assert ran["output"]["release"] == "v1"
    wrong = await plane.refused("DeploymentService/Deploy", app="buffed", environment="production", release="v9")
    assert (wrong.code, wrong.reason, wrong.metadata["release"]) == ("not_found", "RELEASE_NOT_FOUND", "v9")


async def test_health_is_served_for_each_service(stack, grpcurl):
    for server, service in ((stack.control_plane, "pointsman.v1.DeploymentService"), (stack.gateways[0], "pointsman.v1.TriggerService")):
        for name in ("", service):
            done = await run(grpcurl, "-plaintext", "-d", json.dumps({"service": name}), server.grpc, "grpc.health.v1.Health/Check")
            assert json.loads(done.stdout) == {"status": "SERVING"}, done.stderr
