"""What the record costs a gateway, whether its delivery keeps up with the fastest triggers, and how soon a tail shows what has ended.

Gateways, control plane and load share the machine's cores, as hardly anywhere else: on two of them, what the control plane spends on
storing is part of what triggers a second lose. The gateway's own processor time for a trigger tells them apart.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx2
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, apps_pb2_grpc, executions_pb2_grpc, releases_pb2, releases_pb2_grpc, trigger_pb2, trigger_pb2_grpc
from pointsman.v1 import executions_pb2 as pb
from pointsman.values import to_struct
from tests.bench.children import processor_seconds, wrapped_gateway
from tests.bench.engine import CONFIG, INPUT, SECONDS, grpc_rate, http_rate
from tests.bench.table import Row, spread
from tests.processes import Server, start_control_plane, start_gateway
from tests.test_metrics import samples

ROUNDS = 7
TAILED = 300
TAIL_PAUSE_SECONDS = 0.02
POLL_SECONDS = 0.1
# Longer than what has ended may take to be among what waits.
QUIET_SECONDS = 0.6
DELIVERY_SECONDS = 60.0
Sample = tuple[str, tuple[tuple[str, str], ...]]
GRPC = "/pointsman.v1.TriggerService/Trigger"


async def rows() -> list[Row]:
    """Medians of alternating rounds of the same load."""
    request = trigger_pb2.TriggerRequest(app="bench", endpoint="bench", input=to_struct(INPUT))
    data = request.SerializeToString()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = await stack.enter_async_context(start_control_plane(folder))
        recorded = await stack.enter_async_context(start_gateway(folder, plane.grpc, gateway_id="recorded"))
        unrecorded = await stack.enter_async_context(wrapped_gateway("unrecorded", folder, plane.grpc))
        await _serve_release(plane)
        contests: dict[str, Callable[[Server], Any]] = {
            "HTTP": lambda server: http_rate(folder, server.http),
            "gRPC": lambda server: grpc_rate(server.grpc, GRPC, data),
        }
        rates: dict[tuple[str, str], list[float]] = {(door, name): [] for door in contests for name in ("recorded", "unrecorded")}
        spent: dict[tuple[str, str], list[float]] = {key: [] for key in rates}
        behind: list[float] = []
        for _ in range(ROUNDS):
            for door, measure in contests.items():
                for name, server in (("unrecorded", unrecorded), ("recorded", recorded)):
                    before = processor_seconds(server.pid)
                    rates[door, name].append(await measure(server))
                    if server is recorded:
                        behind.append(await _delivered(server))
                    spent[door, name].append((processor_seconds(server.pid) - before) / (rates[door, name][-1] * SECONDS))
        tail = await _tailed(plane, recorded, request)
        await _delivered(recorded)
        ran, dropped = _counted(await _page(recorded))
        stored = await _stored(plane)
    return [
        *(_cost(door, rates[door, "recorded"], rates[door, "unrecorded"]) for door in contests),
        *(_own_cost(door, spent[door, "recorded"], spent[door, "unrecorded"]) for door in contests),
        Row(f"stored of {ran:.0f} triggers at full rate; given up", f"{stored}; {dropped:.0f}", bound="all; none"),
        Row(f"the last of {SECONDS} s of them stored so long after its end", spread(behind), bound="it keeps up"),
        Row("a tail shows an execution so long after its end", spread(tail), bound="at most 1 s"),
    ]


async def _serve_release(plane: Server) -> None:
    async with grpc.aio.insecure_channel(plane.grpc) as channel:
        await apps_pb2_grpc.AppServiceStub(channel).CreateApp(apps_pb2.CreateAppRequest(app="bench"))
        request = releases_pb2.CreateReleaseRequest(app="bench", tag="v1", deploy_to="production")
        json_format.ParseDict(CONFIG, request.config)
        await releases_pb2_grpc.ReleaseServiceStub(channel).CreateRelease(request)


async def _page(server: Server) -> dict[Sample, float]:
    async with httpx2.AsyncClient(trust_env=False) as http:
        return samples((await http.get(f"http://{server.http}/metrics")).text)


def _counted(page: dict[Sample, float]) -> tuple[float, float]:
    """How many triggers ran, and how many executions were given up."""
    ran = sum(value for (name, _), value in page.items() if name == "pointsman_triggers_total")
    return ran, page["pointsman_gateway_executions_dropped", ()]


async def _delivered(server: Server) -> float:
    """Seconds until nothing waits, and went on waiting for nothing."""
    began, last, quiet_since = time.perf_counter(), -1.0, 0.0
    while (now := time.perf_counter()) - began < DELIVERY_SECONDS:
        page = await _page(server)
        (ran, _), waiting = _counted(page), page["pointsman_gateway_executions_waiting", ()]
        if waiting or ran != last:
            last, quiet_since = ran, now
        elif now - quiet_since > QUIET_SECONDS:
            return quiet_since - began
        await asyncio.sleep(POLL_SECONDS)
    sys.exit(f"executions still wait {DELIVERY_SECONDS:g} s after the load: {server.said()}")


async def _stored(plane: Server) -> int:
    async with grpc.aio.insecure_channel(plane.grpc) as channel:
        found = await executions_pb2_grpc.ExecutionServiceStub(channel).SummarizeExecutions(pb.SummarizeExecutionsRequest())
    return sum(summary.executions for summary in found.summaries)


async def _tailed(plane: Server, server: Server, request: trigger_pb2.TriggerRequest) -> list[float]:
    """Of triggers one after the other: seconds from the answer to the moment at which a tail shows them."""
    ended: dict[str, float] = {}
    shown: dict[str, float] = {}
    async with grpc.aio.insecure_channel(plane.grpc) as channel, grpc.aio.insecure_channel(server.grpc) as gate:
        tail = executions_pb2_grpc.ExecutionServiceStub(channel).TailExecutions(pb.TailExecutionsRequest(app="bench"))
        await tail.initial_metadata()

        async def read() -> None:
            async for message in tail:
                shown[message.execution.execution_id] = time.perf_counter()
                if len(ended) == TAILED and ended.keys() <= shown.keys():
                    return

        reading = asyncio.create_task(read())
        trigger = trigger_pb2_grpc.TriggerServiceStub(gate)
        for _ in range(TAILED):
            ended[(await trigger.Trigger(request)).execution_id] = time.perf_counter()
            await asyncio.sleep(TAIL_PAUSE_SECONDS)
        async with asyncio.timeout(DELIVERY_SECONDS):
            await reading
    return [shown[execution_id] - moment for execution_id, moment in ended.items()]


def _cost(door: str, recorded: list[float], unrecorded: list[float]) -> Row:
    ours, theirs = statistics.median(recorded), statistics.median(unrecorded)
    return Row(
        f"{door} trigger with --capture errors", f"{ours:.0f}/s", f"no record {theirs:.0f}/s", f"{ours / theirs:.2f}", "at least 0.85"
    )


def _own_cost(door: str, recorded: list[float], unrecorded: list[float]) -> Row:
    ours, theirs = statistics.median(recorded), statistics.median(unrecorded)
    what = f"{door} trigger: the gateway's own processor time"
    return Row(what, f"{ours * 1e6:.0f} us", f"no record {theirs * 1e6:.0f} us", f"{theirs / ours:.2f}", "at least 0.85")
