"""What the engine costs: a pipeline with an input schema, three transforms and a gate, beside the same logic by hand and bare floors.

Each server is one process on a processor of its own; the load, over kept connections in alternating turns, and the control plane, which
stores what the gateway reports with what time is left, are on the others.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, apps_pb2_grpc, releases_pb2, releases_pb2_grpc, trigger_pb2
from pointsman.values import to_struct
from tests.bench.children import bare_server, child, give_way, line, on_processors
from tests.bench.node_red import node_red
from tests.bench.table import Row, milliseconds, percentile
from tests.processes import run, start_control_plane, start_gateway

ROUNDS = 5
SECONDS = 3
CONNECTIONS = 32
INPUT = {"message": "Where is my order 1234?", "customer": {"tier": "gold", "since": 2019}, "items": [3, 4, 5]}
CONFIG = {
    "endpoints": [
        {
            "name": "bench",
            "pipeline": "bench",
            "input_schema": {
                "type": "object",
                "required": ["message", "customer"],
                "properties": {
                    "message": {"type": "string", "minLength": 1},
                    "customer": {"type": "object", "required": ["tier"], "properties": {"tier": {"type": "string"}}},
                    "items": {"type": "array", "items": {"type": "integer"}},
                },
            },
        }
    ],
    "pipelines": [
        {
            "name": "bench",
            "stages": [
                {
                    "name": "first",
                    "steps": [
                        {"name": "greeting", "transform": {"expression": "'Dear ' + input.customer.tier + ' customer'"}},
                        {"name": "count", "transform": {"expression": "size(input.items)"}},
                    ],
                },
                {
                    "name": "second",
                    "gate": "steps.count > 2 && input.customer.tier == 'gold'",
                    "steps": [{"name": "answer", "transform": {"expression": "{'greeting': steps.greeting, 'count': steps.count}"}}],
                },
            ],
        }
    ],
}
BY_HAND = """
from fastapi import FastAPI
from pydantic import BaseModel, Field

class Customer(BaseModel):
    tier: str
    since: int = 0

class Body(BaseModel):
    message: str = Field(min_length=1)
    customer: Customer
    items: list[int] = []

app = FastAPI()

@app.post("/v1/trigger/bench")
async def bench(body: Body):
    greeting = "Dear " + body.customer.tier + " customer"
    count = len(body.items)
    if count > 2 and body.customer.tier == "gold":
        return {"greeting": greeting, "count": count}
    return count
"""
ECHO = """
import orjson

async def app(scope, receive, send):
    body = orjson.dumps(orjson.loads((await receive())["body"]))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
SERVE = """
import sys, socket, uvicorn
sys.path.insert(0, sys.argv[1])
sock = socket.socket(); sock.bind(("127.0.0.1", 0)); sock.listen(2048)
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(sys.argv[2] + ":app", log_level="critical", access_log=False, loop="uvloop", http="httptools")).run([sock])
"""


@asynccontextmanager
async def asgi(folder: Path, name: str, source: str) -> AsyncIterator[str]:
    """A peer under uvicorn; its address."""
    (folder / f"{name}.py").write_text(source)
    async with child(sys.executable, "-c", SERVE, str(folder), name) as process:
        yield f"127.0.0.1:{await line(process)}"


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Addresses, gRPC and HTTP, of a gateway that serves the pipeline in production."""
    async with start_control_plane(folder) as plane, AsyncExitStack() as stack:
        give_way(plane.pid)
        with on_processors(first=True):
            served = await stack.enter_async_context(start_gateway(folder, plane.grpc))
        async with grpc.aio.insecure_channel(plane.grpc) as channel:
            await apps_pb2_grpc.AppServiceStub(channel).CreateApp(apps_pb2.CreateAppRequest(app="bench"))
            request = releases_pb2.CreateReleaseRequest(app="bench", tag="v1", deploy_to="production")
            json_format.ParseDict(CONFIG, request.config)
            await releases_pb2_grpc.ReleaseServiceStub(channel).CreateRelease(request)
        yield served.grpc, served.http


async def http_rate(
    folder: Path, address: str, path: str = "v1/trigger/bench", token: str = "", *, refused: bool = False, seconds: float = SECONDS
) -> float:
    """Requests a second by wrk, which is one thread in C. Ends the benchmark when answers are not all good, or not all refused."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    # A file of its own: several may run at the same time.
    script = Path(tempfile.mkstemp(".lua", dir=folder)[1])
    script.write_text("\n".join([f"wrk.method = 'POST'\nwrk.body = [==[{json.dumps(INPUT)}]==]", *lines]))
    url = f"http://{address}/{path}"
    done = await run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), url, timeout_seconds=60 + seconds)
    found, count = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout), re.search(r"(\d+) requests in", done.stdout)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if found is None or count is None or (bad[1] if bad else "0") != (count[1] if refused else "0"):
        sys.exit(f"wrk against {address} failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


async def grpc_rate(address: str, method: str, request: bytes, token: str = "") -> float:
    """Calls a second by a client process on 4 channels with 8 calls each."""
    async with child(sys.executable, "-m", "tests.bench.grpc_client", address, method, request.hex(), str(SECONDS), token) as process:
        return float(await line(process))


async def rows() -> list[Row]:
    """Medians of alternating rounds."""
    if not shutil.which("wrk"):
        sys.exit("this benchmark needs wrk: apt-get install wrk")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_processors(first=False))
        ours_grpc, ours_http = await stack.enter_async_context(gateway(folder))
        with on_processors(first=True):
            by_hand = await stack.enter_async_context(asgi(folder, "by_hand", BY_HAND))
            echo = await stack.enter_async_context(asgi(folder, "echo", ECHO))
            flow = await stack.enter_async_context(node_red(folder / "node-red"))
            bare = await stack.enter_async_context(bare_server(100))
        trigger = trigger_pb2.TriggerRequest(app="bench", endpoint="bench", input=to_struct(INPUT)).SerializeToString()
        contests: dict[str, Callable[[], Any]] = {
            "ours": lambda: http_rate(folder, ours_http),
            "by hand": lambda: http_rate(folder, by_hand),
            "echo": lambda: http_rate(folder, echo),
            "Node-RED": lambda: http_rate(folder, flow),
            "ours gRPC": lambda: grpc_rate(ours_grpc, "/pointsman.v1.TriggerService/Trigger", trigger),
            "bare gRPC": lambda: grpc_rate(bare, "/bench.Bare/Echo", trigger),
        }
        rates: dict[str, list[float]] = {name: [] for name in contests}
        for _ in range(ROUNDS):
            for name, measure in contests.items():
                rates[name].append(await measure())
        medians = {name: statistics.median(found) for name, found in rates.items()}
        latencies = await _at_half_load([ours_http, echo], medians["ours"] / 2)
    ours, floor = map(_median_round, latencies)
    return [*_told(medians), Row("HTTP trigger at half that rate", ours, f"uvicorn echo, as many: {floor}", bound="p99 under 10 ms")]


def _median_round(rounds: list[list[float]]) -> str:
    p50, p99 = (statistics.median(percentile(found, percent) for found in rounds) for percent in (50, 99))
    return f"p50 {milliseconds(p50)}, p99 {milliseconds(p99)}"


async def _at_half_load(addresses: Sequence[str], per_second: float) -> list[list[list[float]]]:
    """Of triggers that are sent evenly, answered or not, seconds from when each was due, for each server and round; in turns.

    The load is Python's, on the processor that the control plane is on too: how late it is by itself shows at the floor.
    """
    latencies = [list[list[float]]() for _ in addresses]
    async with AsyncExitStack() as stack:
        loads = []
        for address in addresses:
            load = child(sys.executable, "-m", "tests.bench.trigger_client", address, "bench", str(per_second), json.dumps(INPUT))
            loads.append(await stack.enter_async_context(load))
            await line(loads[-1])
        for _ in range(ROUNDS):
            for process, found in zip(loads, latencies, strict=True):
                assert process.stdin is not None
                process.stdin.write(f"{SECONDS}\n".encode())
                found.append([float(text) for text in (await line(process)).split()])
    return latencies


def _told(rates: dict[str, float]) -> list[Row]:
    def row(what: str, ours: str, peer: str, told: str, bound: str) -> Row:
        return Row(what, f"{rates[ours]:.0f}/s", f"{told} {rates[peer]:.0f}/s", f"{rates[ours] / rates[peer]:.2f}", bound)

    return [
        row("HTTP trigger: schema, 3 transforms, gate", "ours", "by hand", "FastAPI by hand", "at least 1.7"),
        row("HTTP trigger: schema, 3 transforms, gate", "ours", "echo", "uvicorn echo", "at least 0.33"),
        row("HTTP trigger: schema, 3 transforms, gate", "ours", "Node-RED", "Node-RED, a template", "at least 4"),
        row("gRPC Trigger of the same", "ours gRPC", "bare gRPC", "grpc.aio echo", "at least 0.7"),
    ]
