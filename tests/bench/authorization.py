"""What tokens cost: on a trigger, on a unary RPC, in memory; what a bad one costs; and what is left to others in a flood of bad ones.

Two installations side by side, one without tokens and one with; the same load on both in alternating turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, releases_pb2, releases_pb2_grpc, tokens_pb2, tokens_pb2_grpc, trigger_pb2
from pointsman.values import to_struct
from tests.bench.children import KIB, memory_bytes
from tests.bench.engine import CONFIG, INPUT, grpc_rate, http_rate
from tests.bench.table import Row
from tests.processes import BIN, Server, run, start_control_plane, start_gateway

ROUNDS = 5
TOKENS = 10_000
CALLERS = 32
FLOOD_SECONDS = 20.0
TRIGGER = "/pointsman.v1.TriggerService/Trigger"
GET_BINDING = "/pointsman.v1.DeploymentService/GetBinding"


class Installation(NamedTuple):
    """A control plane, its gateway, and the secrets of two tokens, empty without tokens."""

    plane: Server
    gateway: Server
    admin: str = ""
    caller: str = ""


async def rows() -> list[Row]:
    """All of it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        free = await stack.enter_async_context(_open(folder / "open"))
        closed = await stack.enter_async_context(_closed(folder / "closed"))
        costs = await _costs(folder, free, closed)
        bad = await _bad(folder, closed)
        flood = await _flood(folder, closed)
        return [*costs, bad, *flood, *await _many(folder, closed)]


@asynccontextmanager
async def _open(folder: Path) -> AsyncIterator[Installation]:
    folder.mkdir()
    async with start_control_plane(folder) as plane, start_gateway(folder, plane.grpc) as gateway:
        await _serve(plane, "")
        yield Installation(plane, gateway)


@asynccontextmanager
async def _closed(folder: Path) -> AsyncIterator[Installation]:
    folder.mkdir()
    done = await run(BIN / "pointsman", "token", "bootstrap", "--store", f"sqlite:///{folder / 'pointsman.db'}")
    admin = done.stdout.strip()
    async with start_control_plane(folder) as plane:
        async with grpc.aio.insecure_channel(plane.grpc) as channel:
            tokens = tokens_pb2_grpc.TokenServiceStub(channel)
            own, caller = [await _made(tokens, admin, role) for role in ("GATEWAY", "TRIGGER")]
        async with start_gateway(folder, plane.grpc, POINTSMAN_TOKEN=own) as gateway:
            await _serve(plane, admin)
            yield Installation(plane, gateway, admin, caller)


async def _made(tokens: tokens_pb2_grpc.TokenServiceStub, admin: str, role: str, name: str = "") -> str:
    request = tokens_pb2.CreateTokenRequest(name=name or role.lower(), role=tokens_pb2.Token.Role.Value(role))
    return (await tokens.CreateToken(request, metadata=_shown(admin))).secret


def _shown(secret: str) -> Any:
    return (("authorization", f"Bearer {secret}"),) if secret else None


async def _serve(plane: Server, admin: str) -> None:
    request = releases_pb2.CreateReleaseRequest(app="bench", tag="v1", deploy_to="production")
    json_format.ParseDict(CONFIG, request.config)
    async with grpc.aio.insecure_channel(plane.grpc) as channel:
        await apps_pb2_grpc.AppServiceStub(channel).CreateApp(apps_pb2.CreateAppRequest(app="bench"), metadata=_shown(admin))
        await releases_pb2_grpc.ReleaseServiceStub(channel).CreateRelease(request, metadata=_shown(admin))


async def _costs(folder: Path, free: Installation, closed: Installation) -> list[Row]:
    trigger = trigger_pb2.TriggerRequest(app="bench", endpoint="bench", input=to_struct(INPUT)).SerializeToString()
    binding = deployments_pb2.GetBindingRequest(app="bench", environment="production").SerializeToString()
    doors: dict[str, Callable[[Installation], Any]] = {
        "HTTP trigger": lambda one: http_rate(folder, one.gateway.http, token=one.caller),
        "gRPC Trigger": lambda one: grpc_rate(one.gateway.grpc, TRIGGER, trigger, one.caller),
        "GetBinding": lambda one: grpc_rate(one.plane.grpc, GET_BINDING, binding, one.admin),
    }
    with_, without = await _turns(doors, closed, free)
    bounds = {"HTTP trigger": "at most 5 %", "gRPC Trigger": "at most 5 %, 30 us", "GetBinding": "at most 30 us"}
    return [
        Row(
            f"{door} with a token; adds {1e6 / with_[door] - 1e6 / without[door]:.0f} us",
            f"{with_[door]:.0f}/s",
            f"without tokens {without[door]:.0f}/s",
            f"{with_[door] / without[door]:.2f}",
            bounds[door],
        )
        for door in doors
    ]


async def _turns(contests: dict[str, Callable[[Any], Any]], ours: Any, theirs: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of alternating turns."""
    found: dict[tuple[str, bool], list[float]] = {(name, mine): [] for name in contests for mine in (True, False)}
    for _ in range(ROUNDS):
        for name, measure in contests.items():
            for mine, whose in ((False, theirs), (True, ours)):
                found[name, mine].append(await measure(whose))
    medians = {key: statistics.median(rates) for key, rates in found.items()}
    return {name: medians[name, True] for name in contests}, {name: medians[name, False] for name in contests}


async def _bad(folder: Path, closed: Installation) -> Row:
    """A trigger with a bad token beside a path that is not there."""
    bad = closed.caller[:-4] + ("AAAA" if not closed.caller.endswith("AAAA") else "BBBB")
    contests = {"bad": lambda path: http_rate(folder, closed.gateway.http, path, bad, refused=True)}
    ours, theirs = await _turns(contests, "v1/trigger/bench", "nowhere")
    added = 1e6 / ours["bad"] - 1e6 / theirs["bad"]
    return Row(
        "HTTP trigger with a bad token",
        f"{1e6 / ours['bad']:.0f} us",
        f"a 404 {1e6 / theirs['bad']:.0f} us",
        f"{added:+.0f} us",
        "at most +20 us",
    )


async def _flood(folder: Path, closed: Installation) -> list[Row]:
    """One good client beside two that send bad tokens as fast as they can, and beside two good ones."""
    address, bad = closed.gateway.http, "pm_" + "A" * (len(closed.caller) - 3)
    said = len(closed.gateway.said())

    async def beside(token: str, *, refused: bool) -> float:
        others = [http_rate(folder, address, token=token, refused=refused, seconds=FLOOD_SECONDS) for _ in range(2)]
        found = await asyncio.gather(http_rate(folder, address, token=closed.caller, seconds=FLOOD_SECONDS), *others)
        return found[0]

    fair, flooded = await beside(closed.caller, refused=False), await beside(bad, refused=True)
    return [
        Row(
            f"good triggers in a flood of bad tokens, by two clients for {FLOOD_SECONDS:g} s",
            f"{flooded:.0f}/s",
            f"beside two good clients {fair:.0f}/s",
            f"{flooded / fair:.2f}",
            "its fair share, 1 or more",
        ),
        Row("the gateway's log meanwhile", f"{len(closed.gateway.said()) - said} characters", bound="it is not filled"),
    ]


async def _many(folder: Path, closed: Installation) -> list[Row]:
    """Memory of a gateway, and its rate, with many tokens."""
    before, few = memory_bytes(closed.gateway.pid), list[float]()
    for _ in range(ROUNDS):
        few.append(await http_rate(folder, closed.gateway.http, token=closed.caller))
    async with grpc.aio.insecure_channel(closed.plane.grpc) as channel:
        tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        names = iter(range(TOKENS))

        async def make() -> None:
            for number in names:
                await _made(tokens, closed.admin, "TRIGGER", f"token-{number}")

        await asyncio.gather(*(make() for _ in range(CALLERS)))
    added = memory_bytes(closed.gateway.pid) - before
    many = [await http_rate(folder, closed.gateway.http, token=closed.caller) for _ in range(ROUNDS)]
    ours, theirs = statistics.median(many), statistics.median(few)
    return [
        Row(f"a gateway's memory for {TOKENS:,} tokens", f"{added / KIB / KIB:.1f} MiB", bound="under 20 MB"),
        Row(f"HTTP trigger with {TOKENS:,} tokens", f"{ours:.0f}/s", f"with two {theirs:.0f}/s", f"{ours / theirs:.2f}", "unchanged"),
    ]
