"""The console as part of a control-plane process: forms across replicas, and what an open page does to a shutdown."""

from __future__ import annotations

import html
import re
import time

import httpx2
import pytest

from control_plane.console.app import Console
from control_plane.http import make_app
from control_plane.metrics import Metrics
from pointsman.v1 import apps_pb2
from tests.certificates import Certificates
from tests.clients import control_plane_client
from tests.console_app import open_site
from tests.executions import ran, report
from tests.postgres_server import MISSING, available
from tests.processes import BIN, run, start_control_plane
from tests.sample_apps import as_yaml, marked
from tests.simulated_gateway import SimulatedGateway


async def test_a_form_that_one_replica_made_is_taken_by_another(tmp_path):
    async with open_site(tmp_path) as site:
        form = await site.hidden("/apps")
        other = make_app(site.store, Metrics(), site.parts.authority, Console(site.parts, ""))
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(other), base_url="http://localhost:7481", cookies=dict(site.http.cookies)
        ) as http:
            assert (await http.post("/apps", data=form | {"app": "shop"})).status_code == 303
        assert "No release yet" not in await site.page("/apps/shop/releases")


@pytest.mark.parametrize("tls", [False, True])
async def test_the_lines_of_a_page_work_as_they_are_pasted(tmp_path, grpcurl, tls):
    """On a port of its own, with tokens, with and without mTLS: the shell has what README.md says it has, and nothing else."""
    certificates, token = Certificates(tmp_path / "certificates"), tmp_path / "token"
    await certificates.make()
    flags = certificates.server_flags(mtls=True) if tls else []
    own = certificates.client_environment("client") if tls else {}
    async with start_control_plane(tmp_path, "--bootstrap-token-file", str(token), *flags) as server:
        secret = token.read_text().strip()
        shell = {"POINTSMAN_TOKEN": secret, "POINTSMAN_SERVER": "127.0.0.1:9", "PATH": f"{BIN}:{grpcurl.parent}:/usr/bin:/bin"} | own
        pointsman = [BIN / "pointsman", "--server", server.grpc]
        file = tmp_path / "app.yaml"
        file.write_text(as_yaml(marked("v1")))
        for words in (["app", "push", file], ["release", "create", "v1"]):
            done = await run(*pointsman, "--app", "shop", *words, environment=shell)
            assert done.code == 0, done.stderr
        verify = certificates.context("client") if tls else False
        scheme = "https" if tls else "http"
        async with httpx2.AsyncClient(
            base_url=f"{scheme}://{server.http}", headers={"authorization": f"Bearer {secret}"}, verify=verify, trust_env=False
        ) as http:
            for number, environment in enumerate(("staging", "production")):
                page = await http.get(f"/apps/shop/deploy?release=v1&environment={environment}")
                line = html.unescape(re.findall(r"<pre[^>]*><code[^>]*>(.*)</code>", page.text)[number])
                done = await run("/bin/sh", "-c", line, environment=shell)
                assert done.code == 0, (line, done)
                assert "v1 is live in" in html.unescape((await http.get(f"/apps/shop/deploy?release=v1&environment={environment}")).text)


@pytest.mark.skipif(not available(), reason=MISSING)
async def test_the_live_view_of_one_replica_follows_what_another_one_stored(tmp_path, postgres_server):
    """Within 0.3 s, most of the time: a reader asks what others stored every 0.15 s."""
    store = ("--store", postgres_server.url(postgres_server.new_database()))
    async with (
        start_control_plane(tmp_path, *store) as one,
        start_control_plane(tmp_path, *store) as other,
        control_plane_client(one) as plane,
        httpx2.AsyncClient(timeout=20, trust_env=False) as http,
    ):
        await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="shop"))
        took = []
        async with http.stream("GET", f"http://{other.http}/apps/shop/executions/tail?outcome=FAILED") as events:
            lines = events.aiter_lines()
            assert await anext(lines) == "event: all"
            for _ in range(7):
                started = time.monotonic()
                await report(plane, ran("shop"), failed := ran("shop", outcome="FAILED"))
                async for line in lines:
                    if failed.execution_id in line:
                        break
                took.append(time.monotonic() - started)
        assert sorted(took)[3] < 0.3, took


async def test_a_page_that_follows_a_rollout_does_not_hold_up_the_end(tmp_path):
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane:
        await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="shop"))
        await plane.create_release("shop", "v1", marked("v1"))
        url = f"http://{server.http}/apps/shop/environments/staging/rollout"
        async with (
            SimulatedGateway("east", apply=False).connected(server.grpc),
            httpx2.AsyncClient(timeout=20, trust_env=False) as http,
        ):
            await plane.deploy("shop", "v1", "staging", force=True, wait={"nanos": 1000})
            async with http.stream("GET", url) as events:
                lines = events.aiter_lines()
                assert await anext(lines) == "event: rollout"
                started = time.monotonic()
                assert await server.stop() == 0
                assert time.monotonic() - started < 8
                assert "event: end" in [line async for line in lines]
