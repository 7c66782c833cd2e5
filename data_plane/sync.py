"""Keeps a stream to a control plane: connects, goes elsewhere when asked to, comes back after every failure with jittered backoff.

Nothing here is on the way of a trigger: with the control plane gone the gateway goes on with what it holds.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
import grpc.aio
import structlog

from data_plane.cancellation import raise_if_cancelled
from data_plane.holder import Holder
from data_plane.loading import Blobs, Compiler
from data_plane.outage import Outage, SimulatedOutageError
from data_plane.sync_stream import Me, MovedError, OtherStoreError, SilentError, Stream
from pointsman.settings import Address
from pointsman.tls import ClientTls, why_not

BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# The control plane tolerates a ping every 8 s; proxies that cut idle connections do so after 60 s or more.
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A channel that shares a connection shares its backoff too; connecting again is this module's business.
    ("grpc.use_local_subchannel_pool", 1),
]

log = structlog.get_logger()


class Sync:
    """Keeps the holder in step with a control plane."""

    def __init__(
        self,
        holder: Holder,
        me: Me,
        control_planes: Sequence[Address],
        compiler: Compiler,
        *,
        tls: ClientTls | None = None,
        blobs: Blobs | None = None,
        on_flip: Callable[[], None] = lambda: None,
        on_heard: Callable[[], None] = lambda: None,
        jitter: Callable[[float, float], float] = random.uniform,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.outage = Outage()
        self.connected = False
        self.problem = ""
        """Why there is no stream, or was none the last time; empty once there is one."""
        self.compiler = compiler
        self.blobs = blobs
        self.jitter = jitter
        self.pause = pause
        self._holder = holder
        self._me = me
        self._control_planes = control_planes
        self._tls = tls
        self._said = self._why_not = ""
        self._on_flip = on_flip
        self._on_heard = on_heard
        self._channel: grpc.aio.Channel | None = None
        self._welcomed = asyncio.Event()

    async def run(self) -> None:
        """Runs until cancelled."""
        failures = 0
        for address in itertools.cycle(self._control_planes):
            await self.outage.over()
            began = time.monotonic()
            seconds: float | None = None
            try:
                await self._converse(address)
                self._tell(address, "it ended the stream")
            except MovedError as moved:
                log.info("the control plane asked to move", control_plane=str(address), within_seconds=moved.seconds_left)
                seconds = moved.seconds_left
            except SimulatedOutageError:
                self._tell(address, "an outage is simulated")
                seconds = 0.0
            except (grpc.aio.AioRpcError, SilentError, OtherStoreError) as error:
                self._tell(address, await self._problem(error, address))
            except Exception:
                # The gateway outlives any defect of one conversation: it serves on, and tries again.
                log.exception("the conversation with the control plane failed", control_plane=str(address))
            finally:
                self.connected = False
                self._welcomed.clear()
            raise_if_cancelled()
            failures = 0 if seconds is not None or time.monotonic() - began > MAX_BACKOFF_SECONDS else failures + 1
            await self.pause(backoff_seconds(failures, len(self._control_planes), self.jitter) if seconds is None else seconds)

    async def _converse(self, address: Address) -> None:
        async with self.outage.cuts(), await self._open(address) as channel:
            self._channel = channel
            await Stream(self, self._holder, self._me, channel).run()

    async def _open(self, address: Address) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(str(address), options=CHANNEL_OPTIONS)
        await asyncio.to_thread(self._tls.check)
        pems = self._tls.pems
        credentials = grpc.ssl_channel_credentials(pems.ca, pems.key or None, pems.certificate or None)
        return grpc.aio.secure_channel(str(address), credentials, options=CHANNEL_OPTIONS)

    async def channel(self) -> grpc.aio.Channel:
        """That of the stream, once one is open."""
        await self._welcomed.wait()
        assert self._channel is not None, "a stream that was welcomed has a channel"
        return self._channel

    def welcomed(self) -> None:
        """A stream is open."""
        self.connected = True
        self._welcomed.set()
        self.problem = self._said = self._why_not = ""
        log.info("connected to the control plane", revision=self._holder.table.revision)

    def heard(self) -> None:
        """A sign of life."""
        self._on_heard()

    def flipped(self) -> None:
        """The table has changed."""
        self._on_flip()

    async def _problem(self, error: Exception, address: Address) -> str:
        if not isinstance(error, grpc.aio.AioRpcError):
            return str(error)
        said = f"{error.code().name}: {error.details()}"
        # What gRPC says of TLS is the text of a library; looked into once, not at every attempt.
        if said != self._said and error.code() is grpc.StatusCode.UNAVAILABLE and not self.connected:
            self._why_not = await asyncio.to_thread(why_not, address, self._tls)
        self._said = said
        return self._why_not or said

    def _tell(self, address: Address, problem: str) -> None:
        """One line for each problem, not one for each attempt."""
        if problem != self.problem:
            self.problem = problem
            log.warning("no connection to the control plane; serving what is loaded", control_plane=str(address), problem=problem)


def backoff_seconds(failures: int, addresses: int, jitter: Callable[[float, float], float]) -> float:
    """How long to wait before the next attempt: short until every replica has been tried, then doubling up to a limit."""
    rounds = max(0, failures - 1) // max(1, addresses)
    longest = min(BACKOFF_SECONDS * 2 ** min(rounds, 16), MAX_BACKOFF_SECONDS)
    return jitter(longest / 2, longest)
