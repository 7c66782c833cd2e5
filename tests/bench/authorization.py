"""What tokens cost: on a trigger, on a unary RPC, in memory; what a bad one costs; and what is left to others in a flood of bad ones.

Two installations side by side, one without tokens and one with; the same load on both in alternating turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format

from pointsman.v1 import apps_pb2, apps_pb2_grpc, deployments_pb2, releases_pb2, releases_pb2_grpc, tokens_pb2, tokens_pb2_grpc, trigger_pb2
from pointsman.values import to_struct
from tests.bench.children import KIB, memory_bytes, processor_seconds
from tests.bench.engine import CONFIG, INPUT, SECONDS, grpc_rate, http_rate
from tests.bench.table import Row
from tests.processes import BIN, Server, run, start_control_plane, start_gateway

ROUNDS = 5
TOKENS = 10_000
CALLERS = 32
BESIDE = {"none": "without tokens", "unread": "not looked at"}
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
        guarded = await stack.enter_async_context(closed(folder / "closed"))
        costs = await _costs(folder, free, guarded)
        bad = await _bad(folder, guarded)
        flood = await _flood(folder, guarded)
        return [*costs, bad, *flood, *await _many(folder, guarded)]


@asynccontextmanager
async def _open(folder: Path) -> AsyncIterator[Installation]:
    folder.mkdir()
    async with start_control_plane(folder) as plane, start_gateway(folder, plane.grpc) as gateway:
        await _serve(plane, "")
        yield Installation(plane, gateway)


@asynccontextmanager
async def closed(folder: Path) -> AsyncIterator[Installation]:
    """With tokens; the app `bench` has a release in production."""
    folder.mkdir()
    done = await run(BIN / "pointsman", "token", "bootstrap", "--store", f"sqlite:///{folder / 'pointsman.db'}")
    admin = done.stdout.strip()
    async with start_control_plane(folder) as plane:
        async with grpc.aio.insecure_channel(plane.grpc) as channel:
            tokens = tokens_pb2_grpc.TokenServiceStub(channel)
            own, caller = [await made(tokens, admin, role) for role in ("GATEWAY", "TRIGGER")]
        async with start_gateway(folder, plane.grpc, POINTSMAN_TOKEN=own) as gateway:
            await _serve(plane, admin)
            yield Installation(plane, gateway, admin, caller)


async def made(tokens: tokens_pb2_grpc.TokenServiceStub, admin: str, role: str, name: str = "") -> str:
    """The secret of a new token."""
    request = tokens_pb2.CreateTokenRequest(name=name or role.lower(), role=tokens_pb2.Token.Role.Value(role))
    return (await tokens.CreateToken(request, metadata=shown(admin))).secret


def shown(secret: str) -> Any:
    """As metadata."""
    return (("authorization", f"Bearer {secret}"),) if secret else None


async def _serve(plane: Server, admin: str) -> None:
    request = releases_pb2.CreateReleaseRequest(app="bench", tag="v1", deploy_to="production")
    json_format.ParseDict(CONFIG, request.config)
    async with grpc.aio.insecure_channel(plane.grpc) as channel:
        await apps_pb2_grpc.AppServiceStub(channel).CreateApp(apps_pb2.CreateAppRequest(app="bench"), metadata=shown(admin))
        await releases_pb2_grpc.ReleaseServiceStub(channel).CreateRelease(request, metadata=shown(admin))


async def _costs(folder: Path, free: Installation, closed: Installation) -> list[Row]:
    trigger = trigger_pb2.TriggerRequest(app="bench", endpoint="bench", input=to_struct(INPUT)).SerializeToString()
    binding = deployments_pb2.GetBindingRequest(app="bench", environment="production").SerializeToString()
    doors: dict[str, Callable[[Installation], Any]] = {
        "HTTP trigger": lambda one: http_rate(folder, one.gateway.http, token=one.caller),
        "gRPC Trigger": lambda one: grpc_rate(one.gateway.grpc, TRIGGER, trigger, one.caller),
        "GetBinding": lambda one: grpc_rate(one.plane.grpc, GET_BINDING, binding, one.admin),
    }
    # The header alone costs something to send and to read, also where nobody looks at it.
    whose = {"ours": closed, "none": free, "unread": free._replace(admin=closed.admin, caller=closed.caller)}
    rates = await _medians({(door, who): partial(measure, one) for door, measure in doors.items() for who, one in whose.items()})
    bounds = {"HTTP trigger": "at most 5 %", "gRPC Trigger": "at most 5 %, 30 us", "GetBinding": "at most 30 us"}
    return [_cost(door, bounds[door], rates[door, "ours"], rates[door, who], told) for door in doors for who, told in BESIDE.items()]


def _cost(door: str, bound: str, ours: float, theirs: float, told: str) -> Row:
    what = f"{door} with a token; {1e6 / ours - 1e6 / theirs:+.0f} us"
    return Row(what, f"{ours:.0f}/s", f"{told} {theirs:.0f}/s", f"{ours / theirs:.2f}", bound)


async def _medians(contests: dict[Any, Callable[[], Awaitable[float]]]) -> dict[Any, float]:
    """Of alternating rounds."""
    found: dict[Any, list[float]] = {name: [] for name in contests}
    for _ in range(ROUNDS):
        for name, measure in contests.items():
            found[name].append(await measure())
    return {name: statistics.median(rates) for name, rates in found.items()}


async def _bad(folder: Path, closed: Installation) -> Row:
    """A trigger with a bad token beside a path that is not there."""
    measure = partial(http_rate, folder, closed.gateway.http, token=_wrong(closed.caller), refused=True)
    rates = await _medians({path: partial(measure, path) for path in ("v1/trigger/bench", "nowhere")})
    ours, theirs = (1e6 / rate for rate in rates.values())
    return Row("HTTP trigger with a bad token", f"{ours:.0f} us", f"a 404 {theirs:.0f} us", f"{ours - theirs:+.0f} us", "at most +20 us")


def _wrong(secret: str) -> str:
    """Its id is known, so that all of the check is done."""
    return secret[:-4] + ("aaaa" if not secret.endswith("aaaa") else "bbbb")


async def _flood(folder: Path, closed: Installation) -> list[Row]:
    """One good client beside two that send bad tokens as fast as they can, and beside two good ones."""
    address = closed.gateway.http
    said = len(closed.gateway.said())

    async def beside(token: str, *, refused: bool) -> float:
        others = [http_rate(folder, address, token=token, refused=refused, seconds=FLOOD_SECONDS) for _ in range(2)]
        found = await asyncio.gather(http_rate(folder, address, token=closed.caller, seconds=FLOOD_SECONDS), *others)
        return found[0]

    fair, flooded = await beside(closed.caller, refused=False), await beside(_wrong(closed.caller), refused=True)
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
    """Memory of a gateway, its rate, and its own processor time for a trigger, with many tokens."""
    before, few = memory_bytes(closed.gateway.pid), await _triggered(folder, closed)
    async with grpc.aio.insecure_channel(closed.plane.grpc) as channel:
        tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        names = iter(range(TOKENS))

        async def make() -> None:
            for number in names:
                await made(tokens, closed.admin, "TRIGGER", f"token-{number}")

        await asyncio.gather(*(make() for _ in range(CALLERS)))
    added = memory_bytes(closed.gateway.pid) - before
    many = await _triggered(folder, closed)
    rates, times = (many[0], few[0]), (many[1] * 1e6, few[1] * 1e6)
    return [
        Row(f"a gateway's memory for {TOKENS:,} tokens", f"{added / KIB / KIB:.1f} MiB", bound="under 20 MB"),
        Row(
            f"HTTP trigger with {TOKENS:,} tokens",
            f"{rates[0]:.0f}/s",
            f"with two {rates[1]:.0f}/s",
            f"{rates[0] / rates[1]:.2f}",
            "unchanged",
        ),
        Row("its own processor time", f"{times[0]:.1f} us", f"with two {times[1]:.1f} us", f"{times[0] / times[1]:.2f}", "unchanged"),
    ]


async def _triggered(folder: Path, closed: Installation) -> tuple[float, float]:
    """HTTP triggers a second, and the gateway's processor seconds for one; medians."""
    found = []
    for _ in range(ROUNDS):
        began = processor_seconds(closed.gateway.pid)
        rate = await http_rate(folder, closed.gateway.http, token=closed.caller)
        found.append((rate, (processor_seconds(closed.gateway.pid) - began) / (rate * SECONDS)))
    rates, times = zip(*found, strict=True)
    return statistics.median(rates), statistics.median(times)
