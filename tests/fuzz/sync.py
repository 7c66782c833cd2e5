"""A hostile control plane: any messages on the Sync stream, any chunks for a snapshot, to a gateway that serves something already."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import structlog
from hypothesis import strategies as st
from structlog.testing import LogCapture

from data_plane.lookup import Asked, Here, find_endpoint, find_release
from pointsman.v1 import gateways_pb2 as pb
from pointsman.v1 import tokens_pb2
from tests.eventually import eventually
from tests.fuzz.engine import Checker, Target
from tests.fuzz.site import Loop
from tests.fuzz.snapshots import GOOD, SNAPSHOTS
from tests.fuzz.strategies import SEEDS, messages, mutated, nested, tame
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedStream, snapshot_of
from tests.test_sync import Gateway

SERVICE = "pointsman.v1.GatewayService"
STEADY = ("steady", "calm")
STEADY_DIGEST, STEADY_DATA = snapshot_of(marked("steady"))
DIGEST, DATA = snapshot_of(marked("v1"))
KINDS = {field.name: field.number for field in pb.SyncResponse.DESCRIPTOR.fields}
NUL_DIGEST = "sha256:" + "0" * 64
WAIT_SECONDS = 20.0


@st.composite
def _telling(draw: Any, digest: str) -> bytes:
    """An Update or a Prepare about a release that can be fetched."""
    stream = ScriptedStream(pb.SyncRequest.Hello())
    environment = draw(st.sampled_from(["staging", "production", "", "a" * 3000]))
    told = (
        "shop",
        environment,
        draw(st.sampled_from(["v1", "", "\x00"])),
        draw(st.sampled_from([digest, digest, NUL_DIGEST, "", "md5:x", "../../x"])),
    )
    if draw(st.booleans()):
        stream.tell(draw(st.sampled_from([0, 1, 2, 3, 10, 2**62])), told, synced=draw(st.booleans()))
        return stream.outgoing.get_nowait().SerializeToString()  # type: ignore[union-attr]  # a message
    target = pb.SyncResponse.Prepare.Target(app=told[0], environment=told[1], release=told[2], digest=told[3])
    return pb.SyncResponse(
        prepare=pb.SyncResponse.Prepare(prepare_id=draw(st.sampled_from(["", "1", "x" * 5000])), targets=[target])
    ).SerializeToString()


@st.composite
def _cases(draw: Any) -> tuple[list[bytes], bytes, int, int]:
    """Messages, a snapshot, how large it is said to be beyond what it is, and the bytes in a chunk."""
    snapshot = draw(st.just(DATA) | SNAPSHOTS)
    said = [
        message.map(lambda found: found.SerializePartialToString())
        for message in (tame(pb.SyncResponse.DESCRIPTOR), messages(pb.SyncResponse.DESCRIPTOR, 5))
    ]
    message = st.one_of(
        _telling(_digest(snapshot)),
        _telling(_digest(snapshot)),
        *said,
        st.builds(mutated, said[1], SEEDS),
        st.binary(max_size=30),
        st.builds(nested, st.sampled_from([b"\x0a", b"\x12", b"\x1a"]), st.sampled_from([50, 101, 5000])),
    )
    return (
        draw(st.lists(message, min_size=3, max_size=10)),
        snapshot,
        draw(st.sampled_from([0, 0, 0, 1, -1, 2**40, -(2**40)])),
        draw(st.sampled_from([1000, 7, 10**6])),
    )


def _digest(snapshot: bytes) -> str:
    return "sha256:" + hashlib.sha256(snapshot).hexdigest()


class Hostile(Checker):
    """Its server, and a gateway of its own for each case."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(lambda case: loop.run(self._check(case), 4 * WAIT_SECONDS))
        self._case: Any = ([], b"", 0, 1)
        self._address = ""
        self._conversations = 0
        self._logs = LogCapture()

    def count(self, case: Any) -> int:
        """How many messages."""
        return len(case[0])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Hostile]:
        """Listens until the end."""
        server = grpc.aio.server()
        methods = {
            "Sync": grpc.stream_stream_rpc_method_handler(self._sync),
            "FetchSnapshot": grpc.unary_stream_rpc_method_handler(self._fetch),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self._address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        before = structlog.get_config()["processors"]
        structlog.configure(processors=[self._logs])
        try:
            yield self
        finally:
            structlog.configure(processors=before)
            await server.stop(0)

    async def _check(self, case: Any) -> None:
        """The gateway lives on, serves what it served, and logs no exception."""
        self._case, self._conversations = case, 0
        self._logs.entries.clear()
        async with Gateway(self._address).running() as gateway:
            await eventually(lambda: self._conversations > 1 or gateway.pauses, WAIT_SECONDS)
            asked = Asked(endpoint="where", input={}, app=STEADY[0], environment=STEADY[1], method="POST")
            assert find_endpoint(
                asked, find_release(asked, gateway.holder.table, Here(gateway_id="g", default_environment="calm", control_plane=""))
            )
        raised = [entry for entry in self._logs.entries if entry.get("exc_info")]
        assert not raised, repr(raised)

    async def _sync(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        self._conversations += 1
        await anext(aiter(requests))
        stream = ScriptedStream(pb.SyncRequest.Hello())
        stream.welcome("store-1", 5.0)
        stream.tell(1, (*STEADY, "v1", STEADY_DIGEST), synced=True)
        while not stream.outgoing.empty():
            yield stream.outgoing.get_nowait().SerializeToString()  # type: ignore[union-attr]  # messages
        async for data in requests:
            if pb.SyncRequest.FromString(data).applied.revision >= 1:
                break
        for data in self._case[0]:
            yield data
        # What was asked for meanwhile is loaded, or given up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                async for _ in requests:
                    pass

    async def _fetch(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        _, snapshot, off, chunk = self._case
        known = {STEADY_DIGEST: (STEADY_DATA, 0), _digest(snapshot): (snapshot, off)}
        found = known.get(pb.FetchSnapshotRequest.FromString(data).digest)
        if found is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return
        size = min(max(len(found[0]) + found[1], -(2**63)), 2**63 - 1)
        for start in range(0, len(found[0]), chunk):
            yield pb.FetchSnapshotResponse(data=found[0][start : start + chunk], size_bytes=0 if start else size).SerializeToString()


@contextlib.contextmanager
def hostile() -> Iterator[Checker]:
    """For a target's `opened`."""
    loop = Loop()
    stack = contextlib.AsyncExitStack()
    try:
        yield loop.run(stack.enter_async_context(Hostile(loop).running()))
    finally:
        loop.run(stack.aclose())
        loop.close()


def _limited(rate: float, burst: int = 0) -> bytes:
    limit = tokens_pb2.RateLimit(requests_per_second=rate, burst=burst)
    token = tokens_pb2.TokenVerifier(token_id="a" * 16, secret_hash=b"", role=tokens_pb2.Token.ADMIN, rate_limit=limit)
    return pb.SyncResponse(update=pb.SyncResponse.Update(revision=2, tokens=[token])).SerializeToString()


PINNED = [
    ([b"\xff\xff"], GOOD[0], 0, 1000),
    *(([_limited(rate, burst)], DATA, 0, 1000) for rate in (0.0, float("inf"), float("nan"), -1.0) for burst in (0, -1)),
]

TARGETS = [Target(name="sync", cases=_cases(), opened=hostile, share=6_000, case_seconds=60, pinned=PINNED)]
