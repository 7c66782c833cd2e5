"""JWTs at the doors of real servers, of both planes. Promise 11."""

import contextlib
import json

import grpc
import httpx2
import pytest

from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, tokens_pb2, tokens_pb2_grpc
from tests.clients import OWN_CONNECTION, cli, cli_done, gateway_client, refused
from tests.eventually import eventually
from tests.jwt_issuer import AUDIENCE, ISSUER, KINDS, claims, jwks, signed
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked

KEY = KINDS["ES256"]("first")


def shown(secret):
    return (("authorization", f"Bearer {secret}"),)


def jwt(key=KEY, **changed):
    return signed(key, claims(**changed))


@pytest.fixture
async def planes(tmp_path):
    """(control plane, gateway, file of keys): nobody has a token, and all have JWTs, the gateway too."""
    keys = tmp_path / "jwks.json"
    keys.write_bytes(jwks(KEY))
    flags = ["--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks", str(keys)]
    async with start_control_plane(tmp_path, *flags) as control_plane:
        own = jwt(sub="gateways", pointsman_role="gateway")
        async with start_gateway(tmp_path, control_plane.grpc, *flags, gateway_id="east", POINTSMAN_TOKEN=own) as gateway:
            app = tmp_path / "app.json"
            app.write_text(json.dumps(marked("v1")))
            admin = {"control_plane": control_plane, "POINTSMAN_TOKEN": jwt()}
            await cli_done("app", "push", str(app), "--app", "shop", **admin)
            await cli_done("release", "create", "v1", "--app", "shop", **admin)

            async def synced():
                return '"connected": true' in await cli_done("gateways", "-o", "json", **admin)

            await eventually(synced)
            assert "1/1 gateway" in await cli_done("deploy", "v1", "--to", "production", "--app", "shop", **admin)
            yield control_plane, gateway, keys


async def test_who_shows_a_jwt_does_what_its_claims_allow_and_is_named(planes):
    control_plane, gateway, _ = planes
    assert "UNAUTHENTICATED" in (await cli("environment", "list", control_plane=control_plane)).stderr
    viewer = {"control_plane": control_plane, "POINTSMAN_TOKEN": jwt(sub="vera", pointsman_role="viewer", pointsman_apps=["shop"])}
    assert "v1" in await cli_done("release", "list", "--app", "shop", **viewer)
    assert "PERMISSION_DENIED" in (await cli("release", "list", "--app", "other", **viewer)).stderr
    assert "PERMISSION_DENIED" in (await cli("deploy", "v1", "--to", "staging", "--app", "shop", **viewer)).stderr
    admin = {"control_plane": control_plane, "POINTSMAN_TOKEN": jwt()}
    assert '"deployed_by": "jwt:ann"' in await cli_done("status", "--app", "shop", "-o", "json", **admin)

    async def audited():
        told = await cli_done("audit", "list", "-o", "json", **admin)
        return {"jwt:ann", "jwt:vera"} <= {entry["actor"] for entry in json.loads(told)["entries"]}

    await eventually(audited)

    async with gateway_client(gateway) as gate:
        caller = jwt(sub="caller", pointsman_role="trigger", pointsman_apps="shop", pointsman_environments=["production"])
        assert (await gate.post("shop", Authorization=f"Bearer {caller}")).status_code == 200
        assert (await gate.post("shop")).status_code == 401
        assert (await gate.post("shop", Authorization=f"Bearer {jwt(exp=1)}")).json()["error"] == "UNAUTHENTICATED"
        assert (await gate.post("shop", Authorization=f"Bearer {viewer['POINTSMAN_TOKEN']}")).status_code == 403
        elsewhere = jwt(sub="caller", pointsman_role="trigger", pointsman_environments=["staging"])
        assert (await gate.post("shop", Authorization=f"Bearer {elsewhere}")).json()["error"] == "PERMISSION_DENIED"

    async def recorded():
        found = json.loads(await cli_done("execution", "list", "--app", "shop", "-o", "json", **admin))
        return any(execution.get("token_id") == "jwt:caller" for execution in found["executions"])

    await eventually(recorded)


async def test_keys_that_rotate_end_what_they_signed_and_tokens_count_beside(planes):
    control_plane, gateway, keys = planes
    newer = KINDS["EdDSA"]("second")
    older_admin, newer_admin = jwt(), signed(newer, claims(), "EdDSA")
    async with grpc.aio.insecure_channel(control_plane.grpc, OWN_CONNECTION) as channel, gateway_client(gateway) as gate:
        tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        request = tokens_pb2.CreateTokenRequest(name="first", role=tokens_pb2.Token.ADMIN)
        secret = (await tokens.CreateToken(request, metadata=shown(older_admin), timeout=10)).secret
        keys.write_bytes(jwks(newer))

        async def only(newer_counts):
            answers = [(await gate.post("shop", Authorization=f"Bearer {text}")).status_code for text in (older_admin, newer_admin, secret)]
            assert answers == [401, 200, 200]
            refusal = await refused(tokens.ListTokens(tokens_pb2.ListTokensRequest(), metadata=shown(older_admin), timeout=10))
            assert refusal.reason == "UNAUTHENTICATED"
            return await tokens.ListTokens(tokens_pb2.ListTokensRequest(), metadata=shown(newer_counts), timeout=10)

        listed = await eventually(lambda: only(newer_admin))
        assert [token.created_by for token in listed.tokens] == ["jwt:ann"]


async def test_the_console_takes_a_jwt_that_a_cookie_can_hold(planes):
    control_plane, _, _ = planes
    async with httpx2.AsyncClient(base_url=f"http://{control_plane.http}") as browser:
        page = await browser.get("/sign-in")
        form_token = page.text.partition('name="form_token" value="')[2].partition('"')[0]
        refusal = await browser.post("/sign-in", data={"form_token": form_token, "token": jwt(more="x" * 4000)})
        assert "which must fit into a cookie" in refusal.text
        taken = await browser.post("/sign-in", data={"form_token": form_token, "token": jwt(pointsman_apps="shop")})
        assert taken.headers["location"] == "/apps/shop/releases"
        assert "v1" in (await browser.get("/apps/shop/releases")).text


async def test_a_stream_ends_when_what_was_shown_at_its_beginning_has_ended(planes):
    control_plane, _, _ = planes
    admin = {"control_plane": control_plane, "POINTSMAN_TOKEN": jwt()}
    async with grpc.aio.insecure_channel(control_plane.grpc, OWN_CONNECTION) as channel:
        tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        request = tokens_pb2.CreateTokenRequest(name="first", role=tokens_pb2.Token.ADMIN)
        made = await tokens.CreateToken(request, metadata=shown(jwt()), timeout=10)
        watch = deployments_pb2_grpc.DeploymentServiceStub(channel).WatchBindings(
            deployments_pb2.WatchBindingsRequest(), metadata=shown(made.secret), timeout=30
        )
        await watch.read()
        await tokens.RevokeToken(tokens_pb2.RevokeTokenRequest(token_id=made.token.token_id), metadata=shown(jwt()), timeout=10)
        told = []

        async def read_on():
            while (message := await watch.read()) is not grpc.aio.EOF:
                told.append(message)

        await cli_done("deploy", "v1", "--to", "staging", "--app", "shop", **admin)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_on()
        assert ended.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert not any(binding.environment == "staging" for message in told for binding in [message.binding])


@pytest.mark.parametrize("start", [start_control_plane, start_gateway])
async def test_settings_that_cannot_be_used_are_one_line(tmp_path, start):
    where = [tmp_path] if start is start_control_plane else [tmp_path, "127.0.0.1:1"]
    with pytest.raises(AssertionError, match=r"pointsman: JWTs need --jwt-audience and --jwt-jwks too"):
        async with contextlib.AsyncExitStack() as running:
            await running.enter_async_context(start(*where, "--jwt-issuer", ISSUER))
