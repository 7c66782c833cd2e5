"""What the gateway adds to a model: to a call, to many streams at once, in memory while models are slow, and while releases are swapped.

The upstream is scripted and costs next to nothing; upstream, gateway and callers share the machine's processors.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, config_pb2, deployments_pb2, releases_pb2
from tests.bench.children import KIB, child, line, memory_bytes, wrapped_gateway
from tests.bench.model_server import PER_SECOND
from tests.bench.spreading import RELEASE_BYTES, large_config
from tests.bench.table import Row, milliseconds, percentile
from tests.clients import ControlPlane, control_plane_client
from tests.eventually import eventually
from tests.processes import Server, start_control_plane, start_gateway

CALLS = 1500
STREAMS = 500
STREAM_ROUNDS = 3
WAITING = 2000
SWAPS = 50
MESSAGE = {"message": "Where is my order?"}
DIRECT = {"model": "bench", "messages": [{"role": "user", "content": MESSAGE["message"]}]}


def config(upstream: str) -> dict[str, Any]:
    """Two endpoints of one inference step each; the model of one of them is slow."""
    return {
        "endpoints": [{"name": name, "pipeline": name, "timeout": "60s"} for name in ("chat", "slow")],
        "pipelines": [_pipeline(name) for name in ("chat", "slow")],
        "models": [
            {"name": name, "targets": [{"base_url": f"http://{upstream}/{name}/v1", "model": "bench"}]} for name in ("chat", "slow")
        ],
    }


def _pipeline(name: str) -> dict[str, Any]:
    step = {"name": "reply", "inference": {"model": name, "prompt": "{{ input.message }}"}}
    return {"name": name, "stages": [{"name": "write", "steps": [step]}], "output": "steps.reply"}


async def rows() -> list[Row]:
    """All four."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = await stack.enter_async_context(start_control_plane(folder))
        client = await stack.enter_async_context(control_plane_client(plane))
        upstream = f"127.0.0.1:{await line(await stack.enter_async_context(child(sys.executable, '-m', 'tests.bench.model_server')))}"
        gateway = await stack.enter_async_context(start_gateway(folder, plane.grpc))
        await client.apps.CreateApp(apps_pb2.CreateAppRequest(app="bench"))
        given = json_format.ParseDict(config(upstream), config_pb2.AppConfig())
        await client.releases.CreateRelease(releases_pb2.CreateReleaseRequest(app="bench", tag="v1", config=given, deploy_to="production"))
        told = [*await _added(gateway, upstream), *await _streamed(gateway, upstream), await _held(gateway)]
        probed = await stack.enter_async_context(wrapped_gateway("probed", folder, plane.grpc))
        return [*told, await _swapped(client, probed)]


async def _added(gateway: Server, upstream: str) -> list[Row]:
    """One call after the other, straight and by the gateway in turns."""
    straight, ours = list[float](), list[float]()
    async with httpx2.AsyncClient(trust_env=False) as http:

        async def timed(found: list[float], url: str, body: Any) -> None:
            began = time.perf_counter()
            response = await http.post(url, json=body, headers={"X-App": "bench"})
            found.append(time.perf_counter() - began)
            assert response.status_code == 200, response.text

        for _ in range(CALLS):
            await timed(straight, f"http://{upstream}/chat/v1/chat/completions", DIRECT)
            await timed(ours, f"http://{gateway.http}/v1/trigger/chat", MESSAGE)
    return [
        Row(
            f"inference by the gateway, {what} of {CALLS} one after the other",
            milliseconds(percentile(ours, percent)),
            f"straight {milliseconds(percentile(straight, percent))}",
            milliseconds(percentile(ours, percent) - percentile(straight, percent)),
            f"adds under {bound} ms",
        )
        for what, percent, bound in (("median", 50, "1.5"), ("p99", 99, "4"))
    ]


async def _streamed(gateway: Server, upstream: str) -> list[Row]:
    """How late tokens are, straight and by the gateway in turns."""
    streamed = '{"model":"bench","stream":true,"messages":[]}'
    turns: dict[str, tuple[str, str, str]] = {
        "straight": (upstream, "/chat/v1/chat/completions", streamed),
        "ours": (gateway.http, "/v1/trigger/chat", '{"message":"?"}'),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in turns}
    for _ in range(STREAM_ROUNDS):
        for name, (address, path, body) in turns.items():
            async with child(sys.executable, "-m", "tests.bench.stream_client", address, path, body, str(STREAMS)) as process:
                found[name].append([float(text) for text in (await line(process)).split()])
    median = {name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in found.items()}
    return [
        Row(
            f"{STREAMS} streams of {PER_SECOND} tokens/s: {what} of how late a token is",
            milliseconds(median["ours"][column]),
            f"straight {milliseconds(median['straight'][column])}",
            bound=bound,
        )
        for column, (what, bound) in enumerate((("median", ""), ("p99", "less than 100 ms")))
    ]


async def _held(gateway: Server) -> Row:
    """Memory while triggers wait for a slow model, per trigger; what a first lot of them left behind is not counted twice."""
    risen: list[float] = []
    async with httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=None), timeout=60) as http:
        url = f"http://{gateway.http}/v1/trigger/slow"
        before = memory_bytes(gateway.pid)
        tasks = [asyncio.create_task(http.post(url, json=MESSAGE, headers={"X-App": "bench"})) for _ in range(WAITING)]

        async def all_wait() -> bool:
            page = (await http.get(f"http://{gateway.http}/metrics")).text
            return any(text == f"pointsman_gateway_triggers_running {WAITING}.0" for text in page.splitlines())

        await eventually(all_wait, 30)
        risen.append((memory_bytes(gateway.pid) - before) / WAITING)
        answers = await asyncio.gather(*tasks)
    assert all(answer.status_code == 200 for answer in answers), {answer.status_code for answer in answers}
    return Row(f"memory of each of {WAITING} triggers that wait for a slow model", f"{risen[0] / KIB:.1f} KiB", bound="at most 40 KB")


async def _swapped(client: ControlPlane, gateway: Server) -> Row:
    """How long the event loop stands still while releases of 1 MB are fetched, compiled and swapped."""
    lags = list[float]()

    async def lag() -> float:
        told = len(gateway.stdout)
        os.kill(gateway.pid, signal.SIGUSR1)
        await eventually(lambda: len(gateway.stdout) > told, 10)
        return float(gateway.stdout[-1].split()[1])

    await lag()
    for number in range(SWAPS):
        given = large_config(f"swap{number}")
        await client.releases.CreateRelease(releases_pb2.CreateReleaseRequest(app="bench", tag=f"swap{number}", config=given))
        deployed = deployments_pb2.DeployRequest(app="bench", environment="staging", release=f"swap{number}")
        deployed.wait.seconds = 30
        answer = await client.deployments.Deploy(deployed)
        assert not answer.rollout.gateways_pending, answer.rollout
        lags.append(await lag())
    what = f"the event loop stood still at most, over {SWAPS} swaps of {RELEASE_BYTES / KIB / KIB:.0f} MB"
    return Row(what, milliseconds(max(lags)), f"median swap {milliseconds(statistics.median(lags))}", bound="at most 20 ms")
