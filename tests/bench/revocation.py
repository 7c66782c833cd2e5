"""From RevokeToken to the last gateway that has dropped the token: simulated ones in other processes, and real ones under triggers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx2

from pointsman.tokens import token_id_of
from pointsman.v1 import tokens_pb2, tokens_pb2_grpc
from tests.bench.authorization import closed, made, shown
from tests.bench.engine import INPUT
from tests.bench.fanout import Streams, streams
from tests.bench.table import Row, spread
from tests.processes import start_gateway

ROUNDS = 60
WARM_ROUNDS = 3
SIMULATED = 100
# Beside the one that an installation has.
MORE_REAL = 1


class Round(NamedTuple):
    """Moments of one revocation, as time.monotonic()."""

    called: float
    answered: float
    received: list[float]
    """By each simulated gateway."""
    served: list[float]
    """When the last trigger that was let in began, at each real one."""


async def rows() -> list[Row]:
    """So many tokens, one after the other."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one = await enter(closed(folder / "closed"))
        tokens = tokens_pb2_grpc.TokenServiceStub(await enter(grpc.aio.insecure_channel(one.plane.grpc)))
        own = await made(tokens, one.admin, "GATEWAY", "more gateways")
        real = [one.gateway]
        for number in range(MORE_REAL):
            name = f"more-{number}"
            real.append(await enter(start_gateway(folder, one.plane.grpc, gateway_id=name, POINTSMAN_TOKEN=own)))
        doors = [await enter(httpx2.AsyncClient(base_url=f"http://{gateway.http}", trust_env=False)) for gateway in real]
        simulated = await enter(streams("revoked", one.plane.grpc, SIMULATED, own))
        secrets = [await made(tokens, one.admin, "TRIGGER", f"caller {number}") for number in range(WARM_ROUNDS + ROUNDS)]
        rounds = [await _round(tokens, one.admin, secret, simulated, doors) for secret in secrets]
    return _told(rounds[WARM_ROUNDS:], SIMULATED + len(real))


async def _round(
    tokens: tokens_pb2_grpc.TokenServiceStub, admin: str, secret: str, simulated: Streams, doors: list[httpx2.AsyncClient]
) -> Round:
    callers = [_Caller(door, secret) for door in doors]
    called = answered = 0.0

    async def revoke() -> None:
        nonlocal called, answered
        request = tokens_pb2.RevokeTokenRequest(token_id=token_id_of(secret) or "")
        called = time.monotonic()
        answer = await tokens.RevokeToken(request, metadata=shown(admin))
        answered = time.monotonic()
        if answer.rollout.gateways_applied != SIMULATED + len(doors):
            raise RuntimeError(f"not every gateway knows: {answer.rollout}")

    running = [asyncio.create_task(caller.run()) for caller in callers]
    await asyncio.gather(*(caller.was_served.wait() for caller in callers))
    received = await simulated.receipts(revoke)
    return Round(called, answered, received, list(await asyncio.gather(*running)))


class _Caller:
    """Triggers one gateway without a pause."""

    def __init__(self, door: httpx2.AsyncClient, secret: str) -> None:
        self._door = door
        self._headers = {"Authorization": f"Bearer {secret}"}
        self.was_served = asyncio.Event()

    async def run(self) -> float:
        """Until it is not let in any more; when the last trigger that was began."""
        served = 0.0
        while True:
            began = time.monotonic()
            answer = await self._door.post("/v1/trigger/bench", json=INPUT, headers=self._headers)
            if answer.status_code == 200:
                served = began
                self.was_served.set()
            elif self.was_served.is_set():
                return served


def _told(rounds: list[Round], gateways: int) -> list[Row]:
    # The answer is what a person waits for; 100 ms after it nobody may be let in.
    after = [max(*one.received, *one.served) - one.answered for one in rounds]
    return [
        Row(f"{gateways} gateways: RevokeToken to its answer", spread([one.answered - one.called for one in rounds])),
        Row("to the last gateway that has dropped the token", spread([max(one.received) - one.called for one in rounds])),
        Row(
            "the last of all, or the last trigger let in, after the answer",
            f"{max(after) * 1000:+.1f} ms at the latest",
            bound="at most +100 ms",
        ),
    ]
