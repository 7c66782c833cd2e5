"""Gateways judge callers by the tokens they were told: on both doors, before a body is read, also without a control plane."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from data_plane.access import Access, only_app
from data_plane.holder import Holder
from data_plane.sync_messages import to_verifier
from data_plane.table import RateLimit, Role, Verifier
from pointsman.errors import PermissionDenied, RateLimited, Unauthenticated
from pointsman.tokens import hash_of, new_secret, token_id_of
from pointsman.v1 import tokens_pb2
from pointsman.v1.trigger_pb2 import GetStatusRequest, SimulateOutageRequest, TriggerRequest
from tests.clients import gateway_client, refused
from tests.eventually import eventually
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane

SHOP = ("shop", "production")


def verifier(secret, **more):
    return Verifier(**({"token_id": token_id_of(secret), "secret_hash": hash_of(secret), "role": Role.TRIGGER} | more))


def told(secret, role="TRIGGER", **more):
    """A token as the control plane tells it."""
    return tokens_pb2.TokenVerifier(
        token_id=token_id_of(secret), secret_hash=hash_of(secret), role=tokens_pb2.Token.Role.Value(role), **more
    )


def bearer(secret):
    return f"Bearer {secret}"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def judge():
    """(access, holder, clock): nobody may call yet."""
    holder, clock = Holder(lambda: datetime.now(UTC)), Clock()
    return Access(holder, open_without_tokens=False, clock=clock, monotonic=clock), holder, clock


def test_without_tokens_only_this_machine_may_call(judge):
    closed, holder, _ = judge
    with pytest.raises(Unauthenticated, match="start the gateway with --insecure"):
        closed.caller("")
    assert Access(holder).caller("") is None
    assert Access(holder).caller("Bearer anything") is None


def test_from_the_first_token_on_everybody_shows_one(judge):
    access, holder, clock = judge
    secret, other = new_secret(), new_secret()
    holder.take_tokens([verifier(secret), verifier(other, expire_time=1010.0)], complete=True)
    assert access.caller(bearer(secret)).token_id == token_id_of(secret)
    assert access.caller(f"bearer  {secret}").token_id == token_id_of(secret)
    for header in (
        "",
        "Bearer ",
        secret,
        f"Basic {secret}",
        bearer(new_secret()),
        bearer(secret[:-2] + ("aa" if secret[-2:] != "aa" else "bb")),
        bearer("x" * 100_000),
    ):
        with pytest.raises(Unauthenticated):
            access.caller(header)
    assert access.caller(bearer(other))
    clock.now = 1010.0
    with pytest.raises(Unauthenticated, match="expired or revoked"):
        access.caller(bearer(other))
    # What was seen before counts no longer than its token.
    assert access.caller(bearer(secret)) is access.caller(bearer(secret))
    # Revoked, and the only one: the doors stay closed.
    holder.take_tokens([verifier(secret, secret_hash=b"")], complete=True)
    for header in (bearer(secret), ""):
        with pytest.raises(Unauthenticated):
            access.caller(header)


def test_what_is_remembered_of_headers_is_bounded(judge, monkeypatch):
    monkeypatch.setattr("data_plane.access.MAX_SEEN", 3)
    access, holder, _ = judge
    secret = new_secret()
    holder.take_tokens([verifier(secret)], complete=True)
    for spaces in range(20):
        assert access.caller(f"Bearer {' ' * spaces}{secret}").token_id == token_id_of(secret)
        with pytest.raises(Unauthenticated):
            access.caller(f"Bearer {' ' * spaces}{new_secret()}")
        assert len(access._seen) <= 3


@pytest.mark.parametrize("role", Role)
def test_roles(judge, role):
    access, _, _ = judge
    caller = verifier(new_secret(), role=role)

    def may(ask):
        try:
            ask()
        except PermissionDenied as error:
            return error.metadata["has"] != role.name
        return True

    triggers = may(lambda: access.admit(caller, "shop", "production", "chat"))
    looks, lists = (may(lambda ask=ask: ask(caller)) for ask in (access.admit_look, access.admit_to_endpoints))
    looking = {Role.VIEWER, Role.DEVELOPER, Role.DEPLOYER, Role.ADMIN}
    assert (triggers, looks, lists) == (
        role in {Role.TRIGGER, Role.ADMIN},
        role in looking,
        role in looking | {Role.TRIGGER},
    )


def test_limits_to_apps_environments_and_endpoints(judge):
    access, _, _ = judge
    limits = {"apps": frozenset({"shop"}), "environments": frozenset({"staging"}), "endpoints": frozenset({"chat", "people/add"})}
    caller = verifier(new_secret(), **limits)
    assert only_app(caller) == "shop"
    access.admit(caller, "shop", "staging", "/people/add")
    for what, asked in {
        "app": ("other", "staging", "chat"),
        "environment": ("shop", "production", "chat"),
        "endpoint": ("shop", "staging", "sum"),
    }.items():
        with pytest.raises(PermissionDenied) as error:
            access.admit(caller, *asked)
        assert what in error.value.metadata
    with pytest.raises(PermissionDenied, match="names no app"):
        access.admit(verifier(new_secret(), apps=frozenset({"a", "b"})), "", "staging", "chat")


def test_a_rate_limit_is_a_bucket_that_fills(judge):
    access, holder, clock = judge
    secret = new_secret()
    caller = verifier(secret, rate_limit=RateLimit(2.0, 3))
    holder.take_tokens([caller], complete=True)
    left = [access.admit(caller, "shop", "production", "chat") for _ in range(3)]
    assert [(one.limit, one.remaining) for one in left] == [(3, 2), (3, 1), (3, 0)]
    with pytest.raises(RateLimited) as error:
        access.admit(caller, "shop", "production", "chat")
    assert error.value.retry_after_seconds == pytest.approx(0.5)
    clock.now += 0.5
    assert access.admit(caller, "shop", "production", "chat").remaining == 0
    clock.now += 60
    assert access.admit(caller, "shop", "production", "chat").remaining == 2
    # Another token has a bucket of its own.
    assert access.admit(verifier(new_secret(), rate_limit=RateLimit(1.0, 1)), "shop", "production", "chat").remaining == 0


@pytest.fixture
async def guarded(tmp_path):
    """A gateway whose control plane has told it of one token for each role."""
    secrets = {role: new_secret() for role in ("VIEWER", "DEVELOPER", "DEPLOYER", "TRIGGER", "GATEWAY", "ADMIN")}
    async with (
        ScriptedControlPlane().running() as plane,
        start_gateway(tmp_path, plane.address, POINTSMAN_TOKEN=secrets["GATEWAY"]) as server,
        gateway_client(server) as gate,
    ):
        stream = await plane.stream()
        stream.tell(
            3, (*SHOP, "v1", plane.release(marked("v1"))), synced=True, tokens=[told(secret, role) for role, secret in secrets.items()]
        )
        await stream.applied(3)
        yield plane, stream, server, gate, secrets


async def test_both_doors_ask_for_a_token(guarded):
    plane, _, _, gate, secrets = guarded
    for headers in ({}, {"Authorization": bearer(new_secret())}):
        for path in ("/v1/trigger/where", "/v1/trigger/nowhere", "/v1/status", "/v1/endpoints", "/v1/openapi.json", "/metrics"):
            answer = await gate.http.request("POST" if "trigger" in path else "GET", path, headers={"X-App": "shop", **headers})
            assert (answer.status_code, answer.json()["error"]) == (401, "UNAUTHENTICATED"), path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "x-release" not in answer.headers
    for path in ("/livez", "/readyz"):
        assert (await gate.http.get(path)).status_code == 200
    for call in (gate.trigger("shop"), gate.status(), gate.statuses.SimulateOutage(SimulateOutageRequest(), timeout=5)):
        assert (await refused(call)).reason == "UNAUTHENTICATED"
    answer = await gate.post("shop", Authorization=bearer(secrets["TRIGGER"]))
    assert (answer.status_code, answer.headers["x-release"]) == (200, "v1")
    for role in ("VIEWER", "DEVELOPER", "DEPLOYER", "GATEWAY"):
        denied = await gate.post("shop", Authorization=bearer(secrets[role]))
        assert (denied.status_code, denied.json()["error"], denied.json()["details"]["has"]) == (403, "PERMISSION_DENIED", role)
    metadata = (("authorization", bearer(secrets["ADMIN"])),)
    request = TriggerRequest(app="shop", endpoint="where")
    request.input.update({"message": "hello"})
    ran = await gate.triggers.Trigger(request, metadata=metadata, timeout=20)
    assert (await gate.statuses.GetStatus(GetStatusRequest(), metadata=metadata, timeout=5)).revision == 3
    assert (await gate.http.get("/v1/status", headers={"Authorization": bearer(secrets["VIEWER"])})).status_code == 200
    assert (await gate.http.get("/metrics", headers={"Authorization": bearer(secrets["TRIGGER"])})).status_code == 403
    # Whose token it was is on record; who showed none leaves nothing there.
    await eventually(lambda: ran.execution_id in plane.executions)
    assert plane.executions[ran.execution_id].token_id == token_id_of(secrets["ADMIN"])
    reasons = {execution.error_reason for execution in plane.executions.values()}
    assert reasons == {"", "PERMISSION_DENIED"}
    assert all(secret not in str(plane.reports) for secret in secrets.values())


async def test_what_is_too_much_is_refused_with_when_to_come_back(guarded):
    _, stream, _, gate, _ = guarded
    secret = new_secret()
    stream.tell(4, tokens=[told(secret, rate_limit=tokens_pb2.RateLimit(requests_per_second=0.01, burst=2))])
    await stream.applied(4)
    answers = [await gate.post("shop", Authorization=bearer(secret)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
    assert {answer.headers["ratelimit-limit"] for answer in answers} == {"2"}
    assert 90 <= int(answers[2].headers["retry-after"]) <= 100
    assert answers[2].json()["error"] == "RATE_LIMITED"


async def test_a_token_has_its_app_its_environments_and_its_endpoints(guarded):
    plane, stream, _, gate, _ = guarded
    digest = plane.release(marked("v2"))
    secret = new_secret()
    limited = told(secret, apps=["other"], environments=["production"], endpoints=["/where"])
    stream.tell(4, ("other", "production", "v2", digest), ("other", "staging", "v2", digest), tokens=[limited])
    await stream.applied(4)
    headers = {"Authorization": bearer(secret)}
    # The app need not be named: the token has one only.
    answer = await gate.http.post("/v1/trigger/where", json={"message": "hello"}, headers=headers)
    assert (answer.status_code, answer.headers["x-app"]) == (200, "other")
    for more, path in (({"X-App": "shop"}, "where"), ({"X-Environment": "staging"}, "where"), ({}, "elsewhere")):
        denied = await gate.http.post(f"/v1/trigger/{path}", json={"message": "hello"}, headers=headers | more)
        assert (denied.status_code, denied.json()["error"]) == (403, "PERMISSION_DENIED")
    listed = (await gate.http.get("/v1/endpoints", headers=headers)).json()["endpoints"]
    assert [(one["app"], one["environment"], one["path"]) for one in listed] == [("other", "production", "where")]


async def test_a_revoked_token_is_refused_at_once_and_over_a_restart_without_a_control_plane(guarded):
    plane, stream, server, gate, secrets = guarded
    headers = {"Authorization": bearer(secrets["TRIGGER"])}
    assert (await gate.post("shop", **headers)).status_code == 200
    stream.tell(4, tokens=[tokens_pb2.TokenVerifier(token_id=token_id_of(secrets["TRIGGER"]), revision=4)])
    await stream.applied(4)
    assert (await gate.post("shop", **headers)).status_code == 401
    assert (await gate.post("shop", Authorization=bearer(secrets["ADMIN"]))).status_code == 200
    plane.welcoming = False
    stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
    assert await server.stop() == 0
    await server.start()
    async with gateway_client(server) as again:
        assert (await again.post("shop")).status_code == 401
        assert (await again.post("shop", **headers)).status_code == 401
        assert (await again.post("shop", Authorization=bearer(secrets["ADMIN"]))).status_code == 200


async def test_a_revocation_waits_for_no_bytes(guarded):
    plane, stream, _, gate, secrets = guarded
    plane.faulty_fetch = lambda _digest, _count: asyncio.Event()
    revoked = tokens_pb2.TokenVerifier(token_id=token_id_of(secrets["TRIGGER"]), revision=4)
    stream.tell(4, (*SHOP, "v9", "sha256:" + "0" * 64), tokens=[revoked])

    async def shut_out():
        return (await gate.post("shop", Authorization=bearer(secrets["TRIGGER"]))).status_code == 401

    await eventually(shut_out, timeout_seconds=3)


async def test_a_gateway_shows_its_own_token(guarded):
    plane, _, _, _, secrets = guarded
    assert set(plane.shown) == {bearer(secrets["GATEWAY"])}


async def test_who_comes_from_elsewhere_is_not_let_in_without_tokens(tmp_path):
    async with ScriptedControlPlane().running() as plane:
        for more, status in (((), 401), (("--insecure",), 200)):
            flags = ("--listen", "0.0.0.0:0", *more)
            async with start_gateway(tmp_path / str(status), plane.address, *flags) as server:
                server.grpc = server.grpc.replace("0.0.0.0", "127.0.0.1")
                async with gateway_client(server) as gate:
                    await (await plane.stream()).update(1, (*SHOP, "v1", plane.release(marked("v1"))), synced=True)
                    assert (await gate.post("shop")).status_code == status
                    assert (await gate.http.get("/readyz")).status_code == 200


async def test_ten_thousand_tokens_are_told_and_told_apart(guarded):
    _, stream, _, gate, _ = guarded
    secrets = [new_secret() for _ in range(10_000)]
    expires = datetime.now(UTC) + timedelta(days=1)
    many = [told(secret) for secret in secrets]
    for one in many:
        one.expire_time.FromDatetime(expires)
    stream.tell(4, tokens=many)
    await stream.applied(4)
    for secret in (secrets[0], secrets[5000], secrets[-1]):
        assert (await gate.post("shop", Authorization=bearer(secret))).status_code == 200
    # Nor do they take time of each trigger, as what Python looks through for cycles does.
    assert not gc.is_tracked(to_verifier(many[0]))
    assert to_verifier(many[0]).apps is to_verifier(many[1]).endpoints
