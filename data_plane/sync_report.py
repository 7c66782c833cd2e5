"""Delivers executions to the control plane that the Sync stream is open to: at least once, oldest first, one batch at a time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from data_plane.spool import Batch, Spool
from data_plane.sync import Sync
from data_plane.sync_stream import Me
from pointsman.v1 import executions_pb2 as pb

METHOD = "/pointsman.v1.GatewayService/ReportExecutions"
REPORT_SECONDS = 30.0
BACKOFF_SECONDS = (0.2, 10.0)
# The control plane has read the batch and will never take it: then the one that it cannot take is looked for.
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE)

log = structlog.get_logger()


class Reporter:
    """Empties a spool. A control plane that is away costs nothing but room in it."""

    def __init__(self, spool: Spool, sync: Sync, me: Me) -> None:
        self._spool = spool
        self._sync = sync
        self._me = me

    async def run(self) -> None:
        """Runs until cancelled."""
        shortest, longest = BACKOFF_SECONDS
        backoff, told = shortest, ""
        while True:
            await self._spool.wait()
            channel = await self._sync.channel()
            try:
                with self._spool.oldest() as batch:
                    await self._deliver(channel, batch)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                problem = (
                    f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else "the connection was closed"
                )
                if problem != told:
                    told = problem
                    log.warning("executions cannot be delivered; trying again", waiting=self._spool.depth, problem=problem)
                await asyncio.sleep(random.uniform(backoff / 2, backoff))  # noqa: S311 -- jitter, not a secret
                backoff = min(backoff * 2, longest)
            else:
                backoff, told = shortest, ""

    async def _deliver(self, channel: grpc.aio.Channel, batch: Batch) -> None:
        """Raises AioRpcError, InvalidStateError when it is to be tried again."""
        data = await self._spool.read(batch)
        # As it is in the spool: no message is made of it again.
        await self._report(channel.unary_unary(METHOD), data, batch.count)
        await self._spool.done(batch)

    async def _report(self, call: Any, data: bytes, count: int) -> None:
        me = self._me
        header = pb.ReportExecutionsRequest(gateway_id=me.gateway_id, instance_id=me.instance_id, dropped=self._spool.dropped)
        try:
            await call(header.SerializeToString() + data, timeout=REPORT_SECONDS, metadata=me.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            await self._report_parts(call, data, count, error)

    async def _report_parts(self, call: Any, data: bytes, count: int, error: grpc.aio.AioRpcError) -> None:
        """The halves apart, down to the one that is refused, which is given up: it would hold up all others for ever."""
        try:
            executions = pb.ReportExecutionsRequest.FromString(data).executions
        except DecodeError as broken:
            self._spool.dropped += count
            log.warning("executions on disk are not what a gateway wrote and are given up", count=count, problem=str(broken))
            return
        if len(executions) <= 1:
            self._spool.dropped += len(executions)
            log.error("an execution was refused by the control plane and is given up", problem=error.details())
            return
        middle = len(executions) // 2
        for half in (executions[:middle], executions[middle:]):
            await self._report(call, pb.ReportExecutionsRequest(executions=half).SerializeToString(), len(half))
