"""How long a gateway takes to start from its disk alone, with many bindings of large releases, and what memory that takes."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import grpc

from pointsman.v1 import config_pb2, deployments_pb2, environments_pb2, environments_pb2_grpc
from tests.bench.children import KIB, memory_bytes
from tests.bench.table import Row, milliseconds
from tests.clients import ControlPlane, apps_pb2, gateway_client, releases_pb2
from tests.eventually import eventually
from tests.processes import Server, start_control_plane, start_gateway

RUNS = 5
APPS = 10
RELEASES_EACH = 10
ENVIRONMENTS = [f"e{number}" for number in range(100)]
RELEASE_BYTES = 100 * KIB
PIPELINES = 25
# A port that nothing listens on: the control plane is away.
NOBODY = "127.0.0.1:1"


def release_of(mark: str) -> config_pb2.AppConfig:
    """A release of RELEASE_BYTES: pipelines that each compute something, ask a model with a long prompt, and shape its answer."""
    config = config_pb2.AppConfig(models=[config_pb2.Model(name="large")])
    config.models[0].targets.add(base_url="http://127.0.0.1:1/v1", model="large")
    for number in range(PIPELINES):
        pipeline = config.pipelines.add(name=f"p{number}")
        begin, ask, end = (pipeline.stages.add(name=name).steps.add(name=name) for name in ("begin", "ask", "end"))
        begin.transform.expression = f"{{'question': input.question + ' {mark}', 'words': size(input.question) + {number}}}"
        ask.inference.model = "large"
        ask.inference.prompt = "{{ steps.begin.question }} "
        end.transform.expression = f"{{'answer': steps.ask.text, 'by': '{mark}', 'long': steps.begin.words > {number}}}"
        config.endpoints.add(name=f"e{number}", path=f"ask/{number}", pipeline=f"p{number}")
    padding = (RELEASE_BYTES - config.ByteSize()) // PIPELINES
    text = f"You answer for {mark}, briefly and politely, and never guess. " * (padding // 40)
    for pipeline in config.pipelines:
        pipeline.stages[1].steps[0].inference.system = text[: padding - 8]
    return config


async def rows() -> list[Row]:
    """Starts from a full disk, in alternation with starts from an empty one; medians."""
    full, empty, memory = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = await _fill(folder)
        for number in range(RUNS):
            async with start_gateway(folder, NOBODY) as gateway:
                full.append(gateway.ready_after_seconds)
                memory.append(memory_bytes(gateway.pid))
                await _check(gateway)
            async with start_gateway(folder, NOBODY, gateway_id=f"empty-{number}") as gateway:
                empty.append(gateway.ready_after_seconds)
    bound = 4 * size + 100 * KIB * KIB
    count = APPS * RELEASES_EACH
    what = f"{APPS * len(ENVIRONMENTS)} bindings, {count} releases of {size / count / KIB:.0f} KiB"
    return [
        Row(
            f"gateway ready from disk: {what}",
            milliseconds(statistics.median(full)),
            f"from an empty disk {milliseconds(statistics.median(empty))}",
            bound="under 3000 ms",
        ),
        Row("its memory then", f"{statistics.median(memory) / KIB / KIB:.0f} MiB", bound=f"at most {bound / KIB / KIB:.0f} MiB"),
    ]


async def _fill(folder: Path) -> int:
    """Lets a gateway learn everything from a control plane; the bytes of the distinct releases."""
    async with start_control_plane(folder) as server, grpc.aio.insecure_channel(server.grpc) as channel:
        plane = ControlPlane(channel)
        stub = environments_pb2_grpc.EnvironmentServiceStub(channel)
        for environment in ENVIRONMENTS:
            await stub.CreateEnvironment(environments_pb2.CreateEnvironmentRequest(environment=environment))
        size = 0
        for app in (f"app{number}" for number in range(APPS)):
            await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app=app))
            for tag in (f"v{number}" for number in range(RELEASES_EACH)):
                request = releases_pb2.CreateReleaseRequest(app=app, tag=tag, config=release_of(f"{app}-{tag}"))
                size += (await plane.releases.CreateRelease(request)).release.size_bytes
            many = deployments_pb2.DeployManyRequest()
            for number, environment in enumerate(ENVIRONMENTS):
                many.targets.add(app=app, environment=environment, release=f"v{number % RELEASES_EACH}")
            await plane.deployments.DeployMany(many)
        async with start_gateway(folder, server.grpc) as gateway:
            await _check(gateway)
        return size


async def _check(server: Server) -> None:
    """That it serves all of it."""
    async with gateway_client(server) as gate:

        async def serves_all() -> bool:
            return len((await gate.status()).bindings) == APPS * len(ENVIRONMENTS)

        await eventually(serves_all, 60)
        assert (await gate.http.get("/readyz")).status_code == 200
