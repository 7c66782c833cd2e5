"""Promise 11: nothing answers without a token once there are any; a token does what its role says, where it says; a revoked one does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import pkgutil
import sqlite3
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import pointsman.v1
from control_plane.model import Role
from control_plane.roles import ROLES
from pointsman.tokens import token_id_of
from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, releases_pb2, releases_pb2_grpc, tokens_pb2, tokens_pb2_grpc
from tests.clients import OWN_CONNECTION, cli, cli_done, gateway_client, refusal_of, refused
from tests.eventually import eventually
from tests.processes import BIN, ROOT, run, start_control_plane, start_gateway
from tests.sample_apps import marked

ROLE_NAMES = ("VIEWER", "DEVELOPER", "DEPLOYER", "TRIGGER", "GATEWAY", "ADMIN")
# A refusal comes sooner.
STREAM_SECONDS = 1.0
REFLECTION = "grpc.reflection.v1.ServerReflection"


def shown(secret):
    return (("authorization", f"Bearer {secret}"),)


def methods():
    """(service, method, whether the request is a stream, whether the response is one), of everything that the control plane offers."""
    for module in pkgutil.iter_modules(pointsman.v1.__path__, "pointsman.v1."):
        # The pool knows what was imported.
        importlib.import_module(module.name)
    pool = descriptor_pool.Default()
    names = sorted({f"pointsman.v1.{service}" for service in ROLES if service != "ServerReflection"})
    found = []
    for name in names:
        proto = descriptor_pb2.ServiceDescriptorProto()
        pool.FindServiceByName(name).CopyToProto(proto)
        found += [(name, method.name, method.client_streaming, method.server_streaming) for method in proto.method]
    return [*found, (REFLECTION, "ServerReflectionInfo", True, True)]


async def bootstrap(folder):
    done = await run(BIN / "pointsman", "token", "bootstrap", "--store", f"sqlite:///{folder / 'pointsman.db'}")
    assert done.code == 0, done.stderr
    return done.stdout.strip()


@contextlib.asynccontextmanager
async def closed_control_plane(folder, *flags):
    """(server, admin's secret): one that has a token."""
    async with start_control_plane(folder, *flags) as server:
        secret = await bootstrap(folder)

        async def closed():
            shows = {"POINTSMAN_TOKEN": secret}
            return [(await cli("environment", "list", control_plane=server, **more)).code for more in ({}, shows)] == [1, 0]

        # Another process has made it: noticed within a second or so.
        await eventually(closed, timeout_seconds=3)
        yield server, secret


@pytest.fixture
async def closed(tmp_path):
    async with closed_control_plane(tmp_path) as found:
        yield found


async def make(server, admin, name, role, **more):
    """A token's secret."""
    async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        request = tokens_pb2.CreateTokenRequest(name=name, role=tokens_pb2.Token.Role.Value(role), **more)
        response = await tokens_pb2_grpc.TokenServiceStub(channel).CreateToken(request, metadata=shown(admin), timeout=10)
        assert token_id_of(response.secret) == response.token.token_id
        return response.secret


def called(channel, service, name, streams_in, streams_out, metadata):
    """The reason why an empty request was refused; empty when it was not.

    The channel is none of asyncio's: those tell INTERNAL when a refusal comes while they write (grpc/grpc#36066).
    """
    path = f"/{service}/{name}"
    try:
        if streams_in or streams_out:
            make, request = (channel.stream_stream, iter([b""])) if streams_in else (channel.unary_stream, b"")
            stream = make(path)(request, metadata=metadata, timeout=STREAM_SECONDS)
            next(stream, None)
            stream.cancel()
        else:
            channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        # A stream that goes on was let in.
        return "" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else refusal_of(error).reason
    return ""


async def test_every_rpc_with_every_role_and_without_a_token(closed):
    server, admin = closed
    secrets = {"ADMIN": admin} | {role: await make(server, admin, role.lower(), role) for role in ROLE_NAMES if role != "ADMIN"}
    with grpc.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        walked = 0
        for service, name, *streams in methods():
            assert called(channel, service, name, *streams, ()) == "UNAUTHENTICATED", name
            assert called(channel, service, name, *streams, shown("pm_" + "a" * 16 + "_" + "a" * 52)) == "UNAUTHENTICATED", name
            allowed = ROLES[service.rpartition(".")[2]][name]
            for role, secret in secrets.items():
                reason = called(channel, service, name, *streams, shown(secret))
                may = role in {one.name for one in allowed}
                assert (reason != "PERMISSION_DENIED") == may, (name, role, reason)
                assert reason != "UNAUTHENTICATED"
                walked += 1
        assert walked > 200
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=5)


def test_the_table_has_every_method_and_an_admin_may_all():
    listed = {(service, method) for service, found in ROLES.items() for method in found}
    assert listed == {(service.rpartition(".")[2], name) for service, name, *_ in methods()}
    assert all("ADMIN" in {role.name for role in roles} for found in ROLES.values() for roles in found.values())


async def test_limits_to_apps_and_environments(closed):
    server, admin = closed
    deployer = await make(server, admin, "ci", "DEPLOYER", apps=["shop"], environments=["staging"])
    developer = await make(server, admin, "dev", "DEVELOPER", apps=["shop"])
    async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        deployments = deployments_pb2_grpc.DeploymentServiceStub(channel)
        releases = releases_pb2_grpc.ReleaseServiceStub(channel)

        async def denied(call, what):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
            assert what in refusal.metadata, refusal
            return refusal

        target = deployments_pb2.DeployManyRequest.Target
        request = deployments_pb2.DeployRequest(app="shop", environment="staging", release="v1")
        # Let in: what is refused then is that there is no such app.
        assert (await refused(deployments.Deploy(request, metadata=shown(deployer), timeout=5))).reason == "APP_NOT_FOUND"
        for fields, what in (
            ({"app": "other", "environment": "staging"}, "app"),
            ({"app": "shop", "environment": "production"}, "environment"),
        ):
            asked = deployments_pb2.DeployRequest(release="v1", **fields)
            await denied(deployments.Deploy(asked, metadata=shown(deployer), timeout=5), what)
        many = [target(app="shop", environment="staging", release="v1"), target(app="shop", environment="production", release="v1")]
        await denied(
            deployments.DeployMany(deployments_pb2.DeployManyRequest(targets=many), metadata=shown(deployer), timeout=5), "environment"
        )
        promote = deployments_pb2.PromoteRequest(app="shop", from_environment="staging", to_environment="production")
        await denied(deployments.Promote(promote, metadata=shown(deployer), timeout=5), "environment")
        every = await denied(deployments.ListBindings(deployments_pb2.ListBindingsRequest(), metadata=shown(deployer), timeout=5), "app")
        assert "name one in app" in every.message
        both = releases_pb2.CreateReleaseRequest(app="shop", tag="v1", deploy_to="staging")
        await denied(releases.CreateRelease(both, metadata=shown(developer), timeout=5), "environment")
        await denied(
            releases.CreateRelease(releases_pb2.CreateReleaseRequest(app="other", tag="v1"), metadata=shown(developer), timeout=5), "app"
        )


async def test_who_did_it_is_named_and_no_secret_is_kept_anywhere(tmp_path):
    async with closed_control_plane(tmp_path) as (server, admin):
        app = tmp_path / "app.json"
        app.write_text(json.dumps(marked("v1")))
        secret = await make(server, admin, "deployer of the night", "DEPLOYER")
        for arguments, token in (
            (("app", "push", str(app), "--app", "shop"), admin),
            (("release", "create", "v1", "--app", "shop"), admin),
            (("deploy", "v1", "--to", "staging", "--app", "shop"), secret),
        ):
            await cli_done(*arguments, control_plane=server, POINTSMAN_TOKEN=token)
        history = await cli_done("history", "staging", "--app", "shop", "-o", "json", control_plane=server, POINTSMAN_TOKEN=admin)
        assert f"deployer of the night (token {token_id_of(secret)})" in history
        listed = await cli_done("token", "list", "-o", "json", control_plane=server, POINTSMAN_TOKEN=admin)
        wrong = await cli("token", "list", control_plane=server, POINTSMAN_TOKEN=secret)
        assert (wrong.code, "PERMISSION_DENIED" in wrong.stderr) == (1, True)
        said = server.said()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for one in (admin, secret):
        for text in (listed, wrong.stderr, wrong.stdout, history, said):
            assert one not in text
            assert one[-52:] not in text
        assert one.encode() not in kept
        assert one[-52:].encode() not in kept


async def test_a_repeated_request_does_not_tell_the_secret_again(closed):
    server, admin = closed
    async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        stub = tokens_pb2_grpc.TokenServiceStub(channel)
        request = tokens_pb2.CreateTokenRequest(name="x", role=tokens_pb2.Token.VIEWER, request_id="01a20000-0000-4000-8000-000000000001")
        first = await stub.CreateToken(request, metadata=shown(admin), timeout=5)
        again = await stub.CreateToken(request, metadata=shown(admin), timeout=5)
        assert (bool(first.secret), again.secret) == (True, "")
        assert again.token.token_id == first.token.token_id
        dry = await stub.CreateToken(
            tokens_pb2.CreateTokenRequest(name="y", role=tokens_pb2.Token.VIEWER, validate_only=True), metadata=shown(admin), timeout=5
        )
        assert not dry.secret
        page = await stub.ListTokens(tokens_pb2.ListTokensRequest(page_size=1), metadata=shown(admin), timeout=5)
        assert [token.name for token in page.tokens] == ["x"]
        rest = await stub.ListTokens(tokens_pb2.ListTokensRequest(page_token=page.next_page_token), metadata=shown(admin), timeout=5)
        assert [token.name for token in rest.tokens] == ["bootstrap"]
        missing = await refused(stub.RevokeToken(tokens_pb2.RevokeTokenRequest(token_id="nothing"), metadata=shown(admin), timeout=5))
        assert missing.reason == "TOKEN_NOT_FOUND"
        past = tokens_pb2.CreateTokenRequest(name="z", role=tokens_pb2.Token.VIEWER)
        past.expire_time.FromSeconds(1)
        assert (await refused(stub.CreateToken(past, metadata=shown(admin), timeout=5))).reason == "INVALID_FIELD"


async def test_a_token_that_expires_or_is_revoked_does_nothing_everywhere_at_once(tmp_path):
    async with closed_control_plane(tmp_path) as (server, admin), grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        stub = tokens_pb2_grpc.TokenServiceStub(channel)
        gateway_secret = await make(server, admin, "gateways", "GATEWAY")
        async with (
            start_gateway(tmp_path, server.grpc, gateway_id="east", POINTSMAN_TOKEN=gateway_secret) as east,
            start_gateway(tmp_path, server.grpc, gateway_id="west", POINTSMAN_TOKEN=gateway_secret) as west,
            start_gateway(tmp_path, server.grpc, gateway_id="stranger") as stranger,
            gateway_client(east) as first,
            gateway_client(west) as second,
        ):
            app = tmp_path / "app.json"
            app.write_text(json.dumps(marked("v1")))
            await cli_done("app", "push", str(app), "--app", "shop", control_plane=server, POINTSMAN_TOKEN=admin)
            await cli_done("release", "create", "v1", "--app", "shop", control_plane=server, POINTSMAN_TOKEN=admin)

            async def both_synced():
                found = await cli_done("gateways", "-o", "json", control_plane=server, POINTSMAN_TOKEN=admin)
                return found.count('"connected": true') == 2

            await eventually(both_synced)
            deployed = await cli_done("deploy", "v1", "--to", "production", "--app", "shop", control_plane=server, POINTSMAN_TOKEN=admin)
            assert "2/2 gateways" in deployed
            secret = await make(server, admin, "caller", "TRIGGER", apps=["shop"])
            headers = {"Authorization": f"Bearer {secret}"}
            for gate in (first, second):

                async def let_in(gate=gate):
                    return (await gate.post("shop", **headers)).status_code == 200

                await eventually(let_in)
                assert (await gate.post("shop")).status_code == 401
            revoked = await stub.RevokeToken(tokens_pb2.RevokeTokenRequest(token_id=token_id_of(secret)), metadata=shown(admin), timeout=10)
            # The answer came after every gateway knew.
            assert [(await gate.post("shop", **headers)).status_code for gate in (first, second)] == [401, 401]
            assert (revoked.rollout.gateways_total, revoked.rollout.gateways_applied) == (2, 2)
            assert revoked.token.HasField("revoke_time")
            again = await stub.RevokeToken(tokens_pb2.RevokeTokenRequest(token_id=token_id_of(secret)), metadata=shown(admin), timeout=10)
            assert again.token.revoke_time == revoked.token.revoke_time
            # A gateway without a token was told nothing at all.
            await eventually(lambda: any("UNAUTHENTICATED" in line for line in stranger.stderr))

            brief = tokens_pb2.CreateTokenRequest(name="brief", role=tokens_pb2.Token.VIEWER)
            brief.expire_time.FromNanoseconds(time.time_ns() + 1_500_000_000)
            made = await stub.CreateToken(brief, metadata=shown(admin), timeout=5)

            async def refused_now():
                return (await cli("environment", "list", control_plane=server, POINTSMAN_TOKEN=made.secret)).code == 1

            await eventually(refused_now)


async def test_the_first_token_is_an_admins(tmp_path):
    async with start_control_plane(tmp_path) as server:
        first = await cli("token", "create", "ci", "--role", "deployer", control_plane=server)
        assert (first.code, "the first token is" in first.stderr) == (1, True)
    secret = await bootstrap(tmp_path)
    done = await run(BIN / "pointsman", "token", "bootstrap", "--store", f"sqlite:///{tmp_path / 'pointsman.db'}")
    assert (done.code, "there are tokens already" in done.stderr) == (1, True)
    forced = await run(
        BIN / "pointsman", "token", "bootstrap", "--force", "-o", "json", "--store", f"sqlite:///{tmp_path / 'pointsman.db'}"
    )
    assert json.loads(forced.stdout)["secret"] != secret


async def test_other_machines_are_not_let_in_without_tokens(tmp_path):
    done = await run(
        BIN / "pointsman", "control-plane", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--store", f"sqlite:///{tmp_path / 'a.db'}"
    )
    assert done.code == 1
    assert "other machines could reach 0.0.0.0:0, and there are no tokens yet" in done.stderr
    assert "Traceback" not in done.stderr
    for number, flags in enumerate((("--insecure",), ("--bootstrap-token-file", str(tmp_path / "token")))):
        async with start_control_plane(
            tmp_path, "--listen", "0.0.0.0:0", "--store", f"sqlite:///{tmp_path / f'{number}.db'}", *flags
        ) as server:
            server.grpc = server.grpc.replace("0.0.0.0", "127.0.0.1")
            token = (tmp_path / "token").read_text().strip() if number else ""
            assert (await cli("environment", "list", control_plane=server, **({"POINTSMAN_TOKEN": token} if token else {}))).code == 0
            assert (await cli("environment", "list", control_plane=server)).code == number
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


async def test_when_a_token_was_used_is_kept(tmp_path):
    async with closed_control_plane(tmp_path) as (server, admin):
        secret = await make(server, admin, "viewer", "VIEWER")
        await cli_done("environment", "list", control_plane=server, POINTSMAN_TOKEN=secret)
    found = (
        sqlite3.connect(tmp_path / "pointsman.db")
        .execute("SELECT name, last_used_time IS NOT NULL FROM tokens ORDER BY position")
        .fetchall()
    )
    assert found == [("bootstrap", 1), ("viewer", 1)]


async def test_a_flood_of_bad_tokens_fills_no_log(closed):
    server, _ = closed
    before = len(server.stderr)
    async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        call = channel.unary_unary("/pointsman.v1.AppService/ListApps")
        outcomes = await asyncio.gather(*(call(b"", metadata=shown("bad"), timeout=10) for _ in range(500)), return_exceptions=True)
    assert {outcome.code() for outcome in outcomes} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len(server.stderr) - before < 10


def test_the_manual_prints_the_table():
    rows = []
    for service, found in ROLES.items():
        by_roles = {}
        for method, roles in found.items():
            by_roles.setdefault(", ".join(role.name for role in Role if role in roles), []).append(method)
        rows += [f"| {service} | {', '.join(names)} | {roles} |" for roles, names in by_roles.items()]
    manual = (ROOT / "proto" / "README.md").read_text()
    assert [row for row in rows if row not in manual] == []
