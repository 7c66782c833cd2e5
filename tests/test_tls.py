"""TLS on every port, and between gateway and control plane: nobody in between reads anything, and certificates change under open streams."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import grpc
import httpx2
import pytest
import trustme

from pointsman.v1 import deployments_pb2, gateways_pb2
from pointsman.v1.executions_pb2 import ReportExecutionsRequest
from tests.certificates import Certificates
from tests.clients import cli, cli_done, control_plane_client
from tests.eventually import eventually
from tests.processes import BIN, run, start_control_plane, start_gateway
from tests.proxy import Proxy
from tests.sample_apps import as_yaml, marked
from tests.test_metrics import samples

CANARY = "canary-4bf92f3577b34da6"


@pytest.fixture(scope="module")
async def certificates(tmp_path_factory):
    """Shared; not renewed."""
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    await made.make()
    return made


@pytest.fixture
async def own_certificates(tmp_path):
    """To be renewed."""
    made = Certificates(tmp_path / "certificates")
    await made.make()
    return made


async def connected(plane):
    found = (await plane.gateways.ListGateways(gateways_pb2.ListGatewaysRequest())).gateways
    return [gateway.gateway_id for gateway in found if gateway.connected]


@pytest.mark.parametrize("tls", [True, False])
async def test_who_listens_in_between_reads_nothing(tmp_path, certificates, tls):
    """Without TLS the same eyes see it all, so they look at the right place."""
    serving = certificates.server_flags(mtls=True) if tls else []
    calling = certificates.gateway_flags("gateway-1") if tls else []
    environment = certificates.client_environment("client") if tls else {}
    file = tmp_path / "app.yaml"
    file.write_text(as_yaml(marked(CANARY)))
    async with (
        start_control_plane(tmp_path, *serving) as control_plane,
        Proxy(control_plane.grpc) as to_control_plane,
        start_gateway(tmp_path, to_control_plane.address, *serving, *calling) as gateway,
        Proxy(gateway.grpc) as to_gateway,
        Proxy(gateway.http) as to_gateway_http,
        Proxy(control_plane.http) as to_control_plane_http,
    ):
        servers = {"POINTSMAN_SERVER": to_control_plane.address, "POINTSMAN_GATEWAY": to_gateway.address, "POINTSMAN_APP": "shop"}
        for command in (["app", "push", str(file)], ["release", "create", "v1"], ["deploy", "v1", "--to", "production"]):
            await cli_done(*command, **servers, **environment)
        told = await cli_done("trigger", "where", "-d", f'{{"message": "{CANARY}"}}', **servers, **environment)
        assert CANARY in told
        scheme, context = ("https", certificates.context("client")) if tls else ("http", False)
        async with httpx2.AsyncClient(verify=context, trust_env=False) as http:
            asked = {"message": CANARY}
            answer = await http.post(f"{scheme}://{to_gateway_http.address}/v1/trigger/where", json=asked, headers={"X-App": "shop"})
            assert answer.json()["first"] == CANARY
            page = await http.get(f"{scheme}://{to_control_plane_http.address}/apps/shop/draft")
            assert CANARY in page.text
            assert ("secure" in page.headers["set-cookie"].lower()) is tls
    for proxy in (to_control_plane, to_gateway, to_gateway_http, to_control_plane_http):
        assert len(proxy.seen) > 500
        assert (CANARY.encode() in proxy.seen) is not tls


async def test_certificates_change_under_open_streams(tmp_path, own_certificates):
    """New connections see the new ones; a gateway's stream, a watcher and an HTTP connection that are open do not notice."""
    certificates = own_certificates
    async with (
        start_control_plane(tmp_path, *certificates.server_flags(mtls=True)) as control_plane,
        Proxy(control_plane.grpc) as between,
        start_gateway(
            tmp_path, between.address, *certificates.server_flags(mtls=True), *certificates.gateway_flags("gateway-1")
        ) as gateway,
        control_plane_client(control_plane, certificates.credentials("client")) as plane,
        httpx2.AsyncClient(verify=certificates.context("client"), trust_env=False) as http,
    ):
        app = await plane.create_app(v1=marked("one"), v2=marked("two"))
        await eventually(lambda: connected(plane))
        await plane.deploy(app, "v1")
        watch = plane.deployments.WatchBindings(deployments_pb2.WatchBindingsRequest(app=app))
        await watch.read()
        where = f"https://{gateway.http}/v1/trigger/where"
        first = await http.post(where, json={"message": "hello"}, headers={"X-App": app})
        stream = first.extensions["network_stream"]
        ports = (control_plane.grpc, control_plane.http, gateway.grpc, gateway.http)
        before = {port: await certificates.shown_by(port) for port in ports}
        assert len(set(before.values())) == 1

        await certificates.make()

        async def renewed():
            return all([await certificates.shown_by(port) != before[port] for port in ports])

        await eventually(renewed)
        deployed = await plane.deploy(app, "v2")
        assert (deployed.rollout.gateways_applied, deployed.rollout.gateways_total) == (1, 1)
        while (message := await watch.read()).binding.release != "v2":
            assert message is not grpc.aio.EOF
        second = await http.post(where, json={"message": "hello"}, headers={"X-App": app})
        assert second.json()["first"] == "two"
        assert second.extensions["network_stream"] is stream
        assert between.connections == 1
        watch.cancel()

        # A gateway that connects anew shows the certificate that it was given meanwhile.
        between.reset_connections()
        await eventually(lambda: between.connections > 1)
        await eventually(lambda: connected(plane))


async def test_renewal_reaches_every_worker(tmp_path, own_certificates):
    certificates = own_certificates
    async with (
        start_control_plane(tmp_path) as control_plane,
        start_gateway(tmp_path, control_plane.grpc, "--workers", "2", *certificates.server_flags(mtls=True)) as gateway,
    ):
        old = await certificates.shown_by(gateway.grpc)
        await certificates.make()

        async def renewed():
            # The kernel chooses a worker for each connection.
            return all([await certificates.shown_by(port) != old for port in (gateway.grpc, gateway.http) for _ in range(8)])

        await eventually(renewed)


async def test_callers_of_an_authority_that_went_are_sent_away(tmp_path, own_certificates):
    certificates = own_certificates
    known = tmp_path / "known.pem"
    known.write_bytes((certificates.folder / "ca.pem").read_bytes())
    async with start_control_plane(tmp_path, *certificates.server_flags(), "--tls-client-ca", str(known)) as control_plane:
        environment = certificates.client_environment("client")
        assert (await cli("environment", "list", control_plane=control_plane, **environment)).code == 0
        trustme.CA().cert_pem.write_to_path(known)

        async def sent_away():
            done = await cli("environment", "list", control_plane=control_plane, **environment)
            return done.code == 3 and f"{control_plane.grpc} hung up on the certificate that was shown" in done.stderr

        await eventually(sent_away)


async def test_a_gateway_is_who_its_certificate_says(tmp_path, certificates):
    async with (
        start_control_plane(tmp_path, *certificates.server_flags(mtls=True)) as control_plane,
        control_plane_client(control_plane, certificates.credentials("client")) as plane,
        start_gateway(tmp_path, control_plane.grpc, *certificates.gateway_flags("gateway-2"), gateway_id="gateway-1") as impostor,
        start_gateway(tmp_path, control_plane.grpc, *certificates.gateway_flags(), gateway_id="nobody") as nobody,
        start_gateway(tmp_path, control_plane.grpc, *certificates.gateway_flags("gateway-2"), gateway_id="gateway-2"),
    ):
        refused = "The certificate names 'gateway-2', and the gateway calls itself 'gateway-1'"
        await eventually(lambda: "PERMISSION_DENIED" in impostor.said() and refused in impostor.said())
        await eventually(lambda: "hung up on a caller without a certificate" in nobody.said())

        async def settled():
            return await connected(plane) == ["gateway-2"]

        await eventually(settled)
        report = ReportExecutionsRequest(gateway_id="gateway-2", instance_id=str(uuid.uuid4()))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await plane.gateways.ReportExecutions(report)
        assert "names 'client'" in (error.value.details() or "")


async def test_servers_tell_when_certificates_expire_soon(tmp_path):
    authority, ends = trustme.CA(), datetime.now(UTC) + timedelta(days=3)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "gateway-1"):
        found = authority.issue_cert("127.0.0.1", common_name=name, not_after=ends)
        found.private_key_pem.write_to_path(tmp_path / f"{name}-key.pem")
        found.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    certificates = Certificates(tmp_path)
    async with (
        start_control_plane(tmp_path, *certificates.server_flags(mtls=True)) as control_plane,
        start_gateway(tmp_path, control_plane.grpc, *certificates.server_flags(), *certificates.gateway_flags("gateway-1")) as gateway,
    ):
        for server, names in ((control_plane, ["server"]), (gateway, ["server", "gateway-1"])):
            for name in names:

                def told(server=server, name=name):
                    soon = [line for line in server.stderr if "a certificate expires soon" in line]
                    return any(certificates.path(name) in line and ends.isoformat()[:10] in line for line in soon)

                await eventually(told)
        async with httpx2.AsyncClient(verify=certificates.context("gateway-1"), trust_env=False) as http:
            for server, name in ((control_plane, "pointsman"), (gateway, "pointsman_gateway")):
                found = samples((await http.get(f"https://{server.http}/metrics")).text)
                assert found[f"{name}_certificate_expiry_timestamp_seconds", ()] == int(ends.timestamp())


@pytest.mark.parametrize("shown", ["", "client"])
async def test_commands_with_and_without_a_certificate(tmp_path, certificates, shown):
    async with start_control_plane(tmp_path, *certificates.server_flags(mtls=True)) as control_plane:
        done = await cli("environment", "list", control_plane=control_plane, **certificates.client_environment(shown))
        if shown:
            assert done.code == 0, done.stderr
        else:
            assert (done.code, done.stderr) == (
                3,
                (
                    f"pointsman: {control_plane.grpc} hung up on a caller without a certificate: it asks for one (mTLS), by --certificate and --key"
                    " (a gateway's are --control-plane-certificate and --control-plane-key)\n"
                ),
            )


async def test_what_does_not_fit_together_is_told(tmp_path, certificates):
    """Plain text to a TLS port, TLS to one of plain text, another authority, another name."""
    stranger = trustme.CA()
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    (tmp_path / "other").mkdir()
    async with (
        start_control_plane(tmp_path, *certificates.server_flags()) as secure,
        start_control_plane(tmp_path / "other") as plain,
        start_gateway(tmp_path, secure.grpc, gateway_id="plain-to-tls") as plain_to_tls,
        start_gateway(tmp_path, plain.grpc, *certificates.gateway_flags(), gateway_id="tls-to-plain") as tls_to_plain,
        start_gateway(tmp_path, secure.grpc, "--control-plane-ca", str(tmp_path / "stranger.pem"), gateway_id="distrust") as distrust,
    ):
        to_tls = await cli("environment", "list", control_plane=secure)
        assert (to_tls.code, f"{secure.grpc} speaks TLS, and was spoken to in plain text" in to_tls.stderr) == (3, True), to_tls
        to_plain = await cli("--ca", certificates.path("ca"), "environment", "list", control_plane=plain)
        assert (to_plain.code, f"{plain.grpc} does not speak TLS" in to_plain.stderr) == (3, True), to_plain
        other = await cli("environment", "list", "--ca", str(tmp_path / "stranger.pem"), control_plane=secure)
        assert (other.code, f"the certificate of {secure.grpc} is not accepted: unable to get" in other.stderr) == (3, True), other
        for done in (to_tls, to_plain, other):
            assert done.stderr.count("\n") == 1
        assert (await cli("environment", "list", control_plane=secure, **certificates.client_environment())).code == 0

        await eventually(lambda: "speaks TLS, and was spoken to in plain text" in plain_to_tls.said())
        await eventually(lambda: "does not speak TLS" in tls_to_plain.said())
        await eventually(lambda: "is not accepted: unable to get" in distrust.said())
        assert "Handshake failed" not in secure.said(), "strangers could fill the log"


@pytest.fixture
def bad(tmp_path, certificates):
    """Files that cannot be used, by name."""
    authority = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    old = authority.issue_cert("localhost", not_before=yesterday - timedelta(days=1), not_after=yesterday)
    old.private_key_pem.write_to_path(tmp_path / "old-key.pem")
    old.cert_chain_pems[0].write_to_path(tmp_path / "old.pem")
    (tmp_path / "letter.pem").write_text("Dear Sir or Madam\n")
    return {"old": str(tmp_path / "old.pem"), "old-key": str(tmp_path / "old-key.pem"), "letter": str(tmp_path / "letter.pem")}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--tls-certificate", "missing.pem", "--tls-key", "server-key"), "cannot read missing.pem: No such file"),
        (("--tls-certificate", "server", "--tls-key", "client-key"), "client-key.pem does not belong to the certificate"),
        (("--tls-certificate", "old", "--tls-key", "old-key"), "old.pem does not count as that of a server: certificate has expired"),
        (("--tls-certificate", "letter", "--tls-key", "server-key"), "are no certificate and its key in PEM"),
        (
            ("--tls-certificate", "server", "--tls-key", "server-key", "--tls-client-ca", "server"),
            "server.pem holds no certificate of an authority",
        ),
        (
            ("--tls-certificate", "server", "--tls-key", "server-key", "--tls-client-ca", "letter"),
            "letter.pem holds no certificates in PEM",
        ),
        (("--tls-certificate", "server"), "--tls-certificate needs --tls-key too"),
        (("--tls-client-ca", "ca"), "--tls-client-ca needs --tls-certificate and --tls-key too"),
    ],
)
@pytest.mark.parametrize("server", ["control-plane", "gateway"])
async def test_bad_files_are_one_line_at_the_start(tmp_path, certificates, bad, server, flags, told):
    named = [flag if flag.startswith("--") or "." in flag else bad.get(flag, certificates.path(flag)) for flag in flags]
    done = await run(BIN / "pointsman", server, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *named, cwd=tmp_path)
    assert (done.code, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("pointsman: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--control-plane-ca", "missing.pem"), "cannot read missing.pem"),
        (("--control-plane-certificate", "gateway-1", "--control-plane-key", "gateway-1-key"), "needs --control-plane-ca too"),
        (
            ("--control-plane-ca", "ca", "--control-plane-certificate", "old", "--control-plane-key", "old-key"),
            "old.pem does not count as that of a client: certificate has expired",
        ),
    ],
)
async def test_so_are_those_for_the_control_plane(tmp_path, certificates, bad, flags, told):
    await test_bad_files_are_one_line_at_the_start(tmp_path, certificates, bad, "gateway", flags, told)


async def test_a_command_with_bad_files_is_a_usage_error(certificates):
    done = await cli("environment", "list", "--ca", "missing.pem", "--server", "127.0.0.1:1")
    assert (done.code, "cannot read missing.pem" in done.stderr) == (2, True)
