"""Fetches snapshots from a control plane: verified, and tried again for as long as somebody wants them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import structlog

from data_plane.cancellation import raise_if_cancelled
from data_plane.loaded import ReleaseUnusableError
from pointsman.rules import MAX_SNAPSHOT_BYTES
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import gateways_pb2_grpc

FETCH_SECONDS = 60.0
BACKOFF_SECONDS = (0.1, 5.0)
# Bytes that come damaged are asked for again, so often in all.
DAMAGED_FETCHES = 3

log = structlog.get_logger()


class _DamagedError(Exception):
    """Bytes came that are not what was asked for."""


class Fetcher:
    """Fetches over one channel. Every try after the first waits, with jittered and capped backoff."""

    def __init__(
        self,
        stub: gateways_pb2_grpc.GatewayServiceAsyncStub,
        metadata: tuple[tuple[str, str], ...],
        jitter: Callable[[float, float], float],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._jitter = jitter
        self._pause = pause

    async def __call__(self, digest: str) -> bytes:
        """The bytes, whole and with the right hash. A connection that fails is tried again until the caller gives up.

        Raises:
            ReleaseUnusableError: the control plane has no such snapshot, or its bytes are damaged again and again.
        """
        backoff, longest = BACKOFF_SECONDS
        damaged = 0
        while True:
            try:
                return await self._fetch(digest)
            except _DamagedError as error:
                damaged += 1
                problem = str(error)
                if damaged >= DAMAGED_FETCHES:
                    raise ReleaseUnusableError([f"the control plane sent damaged bytes {damaged} times: {problem}"]) from error
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                    raise ReleaseUnusableError([error.details() or "the control plane has no such snapshot"]) from error
                problem = f"{error.code().name}: {error.details()}"
            raise_if_cancelled()
            log.warning("a release could not be fetched; trying again", digest=digest, problem=problem)
            await self._pause(self._jitter(backoff / 2, backoff))
            backoff = min(backoff * 2, longest)

    async def _fetch(self, digest: str) -> bytes:
        data, size = bytearray(), 0
        request = pb.FetchSnapshotRequest(digest=digest)
        async for chunk in self._stub.FetchSnapshot(request, timeout=FETCH_SECONDS, metadata=self._metadata):
            size = size or chunk.size_bytes
            data += chunk.data
            if len(data) > min(size, MAX_SNAPSHOT_BYTES):
                raise _DamagedError(f"more than the {size} bytes that were announced, or than the {MAX_SNAPSHOT_BYTES} that are allowed")
        if len(data) != size:
            raise _DamagedError(f"{len(data)} bytes of {size}")
        # Up to milliseconds of work: beside the event loop.
        actual = "sha256:" + (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        if actual != digest:
            raise _DamagedError(f"they hash to {actual}")
        return bytes(data)
