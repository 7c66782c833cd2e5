"""How commands talk to servers that misbehave: against scripted ones, over real connections."""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from pointsman import errors
from pointsman.serving_calls import rich_status
from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, deployments_pb2_grpc, trigger_pb2, trigger_pb2_grpc
from tests.clients import cli

Answer = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class Scripted:
    """Answers every RPC by the script of its name, and remembers what it was asked."""

    def __init__(self, **scripts: Answer) -> None:
        self._scripts = scripts
        self.asked: list[Any] = []
        self.metadata: list[dict[str, str]] = []

    def __getattr__(self, rpc: str) -> Answer:
        async def handle(request: Any, context: Any) -> Any:
            self.asked.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            return await self._scripts[rpc](request, context)

        return handle


@contextlib.asynccontextmanager
async def serving(scripted: Scripted) -> AsyncIterator[str]:
    """host:port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    apps_pb2_grpc.add_AppServiceServicer_to_server(scripted, server)
    deployments_pb2_grpc.add_DeploymentServiceServicer_to_server(scripted, server)
    trigger_pb2_grpc.add_TriggerServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def refusing(*refusals: errors.PointsmanError, then: Any = None) -> Answer:
    """Refuses once by each, then answers."""
    left = list(refusals)

    async def answer(_request: Any, context: Any) -> Any:
        if left:
            await context.abort_with_status(rich_status(left.pop(0)))
        return then

    return answer


async def hanging(_request: Any, context: Any) -> Any:
    """Never answers; ends with the caller's deadline."""
    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")


DEPLOYED = deployments_pb2.DeployResponse(
    deployment=deployments_pb2.Deployment(release="v1"),
    binding=deployments_pb2.Binding(app="shop", environment="staging", release="v1", revision=57),
    rollout=deployments_pb2.Rollout(
        revision=57,
        gateways_total=3,
        gateways_applied=1,
        gateways_pending=["west"],
        gateways_rejected=[deployments_pb2.Rollout.Rejection(gateway_id="north", reason="secret\x1b[2J KEY is missing")],
    ),
)
DEPLOYED.rollout.duration.FromMilliseconds(9)
DEPLOY = ["--app", "shop", "deploy", "v1", "--to", "staging"]


async def test_the_verdict_says_who_serves_who_is_behind_and_who_refused():
    async with serving(Scripted(Deploy=refusing(then=DEPLOYED))) as address:
        done = await cli(*DEPLOY, "--server", address)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "1/3 gateways serve v1 in staging, revision 57, 9 ms",
        "  not yet: west (they catch up by themselves)",
        "  refused by north: secret [2J KEY is missing",
    ]


async def test_without_gateways_the_verdict_says_so():
    alone = deployments_pb2.DeployResponse(binding=DEPLOYED.binding, deployment=DEPLOYED.deployment)
    alone.rollout.revision = 57
    async with serving(Scripted(Deploy=refusing(then=alone))) as address:
        done = await cli(*DEPLOY, "--server", address)
    assert done.stdout == "no gateway is connected; those that come will serve v1 in staging, revision 57\n"


async def test_a_mutation_is_repeated_with_the_same_request_id_when_the_server_drains():
    scripted = Scripted(Deploy=refusing(errors.ShuttingDown("draining"), errors.StoreUnavailable("later"), then=DEPLOYED))
    async with serving(scripted) as address:
        done = await cli(*DEPLOY, "--server", address)
    assert done.code == 0, done.stderr
    ids = [request.request_id for request in scripted.asked]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert len(ids[0]) == 36


async def test_a_trigger_is_never_repeated():
    scripted = Scripted(Trigger=refusing(errors.NotSynced("not yet"), then=trigger_pb2.TriggerResponse()))
    async with serving(scripted) as address:
        done = await cli("trigger", "chat", "--gateway", address)
    assert (done.code, done.stderr) == (1, "NOT_SYNCED: not yet\n")
    assert len(scripted.asked) == 1


async def test_who_asks_is_sent_and_the_token():
    scripted = Scripted(Deploy=refusing(then=DEPLOYED))
    async with serving(scripted) as address:
        await cli(*DEPLOY, "--server", address, POINTSMAN_TOKEN=" pm_secret\n")
        await cli(*DEPLOY, "--server", address)
    assert scripted.metadata[0]["authorization"] == "Bearer pm_secret"
    assert scripted.metadata[0]["x-actor"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert "authorization" not in scripted.metadata[1]


async def test_options_stand_before_or_after_the_command_and_win_over_the_environment():
    scripted = Scripted(Deploy=refusing(then=DEPLOYED))
    wrong = {"POINTSMAN_SERVER": "127.0.0.1:1", "POINTSMAN_APP": "wrong"}
    async with serving(scripted) as address:
        for arguments in (
            ["--server", address, "--app", "shop", "-o", "json", "deploy", "v1", "--to", "staging"],
            ["deploy", "v1", "--to", "staging", "--server", address, "--app", "shop", "-o", "json"],
            ["--app", "other", "-o", "text", "deploy", "v1", "--to", "staging", "--server", address, "--app", "shop", "-o", "json"],
        ):
            done = await cli(*arguments, **wrong)
            assert json.loads(done.stdout)["binding"]["revision"] == "57", done.stderr
    assert {request.app for request in scripted.asked} == {"shop"}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--wait", "1m30s"], {"seconds": 90}),
        (["--wait", "500ms"], {"nanos": 500_000_000}),
        (["--wait", "0"], {}),
    ],
)
async def test_durations(arguments, sent):
    scripted = Scripted(Deploy=refusing(then=DEPLOYED))
    async with serving(scripted) as address:
        await cli(*DEPLOY, "--server", address, *arguments)
    (request,) = scripted.asked
    assert request.HasField("wait")
    assert (request.wait.seconds, request.wait.nanos) == (sent.get("seconds", 0), sent.get("nanos", 0))


async def test_the_options_of_a_deploy_are_sent():
    scripted = Scripted(Deploy=refusing(then=DEPLOYED))
    request_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    options = ["--reason", "why", "--expected-revision", "0", "--force", "--dry-run", "--request-id", request_id]
    async with serving(scripted) as address:
        done = await cli(*DEPLOY, "--server", address, *options)
    assert done.stdout == "would make v1 live in staging\n"
    assert scripted.asked == [
        deployments_pb2.DeployRequest(
            app="shop",
            environment="staging",
            release="v1",
            expected_revision=0,
            reason="why",
            request_id=request_id,
            validate_only=True,
            force=True,
        )
    ]


async def test_all_pages_are_shown():
    pages = {"": ("c", "1"), "1": ("b", "2"), "2": ("a", "")}

    async def list_apps(request: Any, _context: Any) -> Any:
        name, following = pages[request.page_token]
        return apps_pb2.ListAppsResponse(apps=[apps_pb2.App(app=name)], next_page_token=following)

    async with serving(Scripted(ListApps=list_apps)) as address:
        done = await cli("app", "list", "-o", "json", "--server", address)
    listed = json.loads(done.stdout)
    assert [app["app"] for app in listed["apps"]] == ["c", "b", "a"]
    assert listed["next_page_token"] == ""


async def test_without_an_app_the_only_one_is_meant_else_they_are_named():
    two = apps_pb2.ListAppsResponse(apps=[apps_pb2.App(app="shop"), apps_pb2.App(app="bank")])
    one = apps_pb2.ListAppsResponse(apps=[apps_pb2.App(app="shop")])
    for listed, code, words in ((one, 0, ""), (two, 2, "there are shop, bank"), (apps_pb2.ListAppsResponse(), 2, "there is none yet")):
        async with serving(Scripted(ListApps=refusing(then=listed), Deploy=refusing(then=DEPLOYED))) as address:
            done = await cli("deploy", "v1", "--to", "staging", "--server", address)
        assert done.code == code
        assert words in done.stderr


async def test_all_violations_of_a_refusal_are_told():
    broken = errors.InvalidField([errors.Violation("tag", "has a space"), errors.Violation("reason", "is too long")])
    async with serving(Scripted(Deploy=refusing(broken))) as address:
        done = await cli(*DEPLOY, "--server", address)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "INVALID_FIELD: 2 violations\n  tag: has a space\n  reason: is too long\n"


async def test_a_refusal_that_is_not_ours_is_told_by_its_code():
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "who are you?")

    async with serving(Scripted(Deploy=refuse)) as address:
        done = await cli(*DEPLOY, "--server", address)
    remedy = f"{address} is no control plane, or one of an earlier version; --server names another."
    assert (done.code, done.stderr) == (1, f"UNIMPLEMENTED: who are you? {remedy}\n")


async def test_a_server_that_does_not_answer_in_time():
    async with serving(Scripted(Trigger=hanging)) as address:
        done = await cli("trigger", "chat", "--gateway", address, "--timeout", "200ms")
    assert done.code == 3
    assert done.stderr.startswith(f"pointsman: {address} gave no answer in time")
    assert len(done.stderr.splitlines()) == 1


async def test_a_gateway_that_cannot_be_reached():
    done = await cli("trigger", "chat", "--gateway", "127.0.0.1:1")
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr == "pointsman: 127.0.0.1:1 cannot be reached. Is it running? It starts with `pointsman gateway`.\n"


async def test_what_cannot_be_talked_to_is_told_apart(control_plane):
    """A port that speaks something else, and a name that nobody has, are other mistakes than a server that is not running."""
    door = await cli("app", "list", "--server", control_plane.http)
    assert (door.code, door.stdout) == (3, "")
    assert door.stderr == (
        f"pointsman: {control_plane.http} speaks HTTP/1.1 and not gRPC, which has a port of its own, localhost:7400 unless told otherwise\n"
    )
    nobody = await cli("app", "list", "--server", "no-such-host.invalid:7400")
    assert nobody.code == 3
    assert nobody.stderr == "pointsman: there is no host 'no-such-host.invalid' as far as this machine knows\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--server", "localhost"], "--server: 'localhost' is not host:port"),
        (["status", "--server", "http://localhost:7400"], "is not host:port"),
        (["trigger", "chat", "--gateway", "7500"], "--gateway: '7500' is not host:port"),
        (["trigger", "chat", "-d", "{"], "-d is not a JSON object"),
        (["trigger", "chat", "-d", "[1]"], "-d is not a JSON object"),
        (["trigger", "chat", "-d", "@/no/such/file"], "cannot read /no/such/file: No such file or directory\n"),
        (["trigger", "chat", "--timeout", "soon"], "'soon' is not a duration such as 10s"),
        ([*DEPLOY, "--wait", "-1"], "'-1' is not a duration"),
        (["statsu"], "Did you mean status?"),
        (["release", "craete", "v1"], "create"),
        (["deploy", "v1", "--too", "x"], "--to"),
        (["status", "-o", "xml"], "'json'"),
    ],
)
async def test_wrong_use_is_told_with_the_remedy(arguments, words):
    done = await cli(*arguments)
    assert done.code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_token_that_cannot_be_one_is_not_sent():
    done = await cli("status", POINTSMAN_TOKEN="pm_\x01", POINTSMAN_SERVER="127.0.0.1:1")
    assert done.code == 2
    assert "POINTSMAN_TOKEN has characters that no token has" in done.stderr
