"""Files in a gateway's --state-dir that somebody else has written: the table, when the control plane was heard, snapshots, and waiting executions."""

from __future__ import annotations

import copy
import json
import math
import random
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from structlog.testing import LogCapture

from data_plane.disk import Disk
from data_plane.heard import HeardFile
from data_plane.holder import Holder
from data_plane.loading import Compiler
from data_plane.saved import seal
from data_plane.secrets import Secrets
from data_plane.spool import Spool
from data_plane.staleness import Staleness
from data_plane.sync_report import Reporter
from data_plane.sync_stream import Me
from pointsman.v1 import executions_pb2
from tests.fuzz.engine import Checker, Target
from tests.fuzz.site import Loop
from tests.fuzz.strategies import ODD_TEXTS, SEEDS, messages, mutated
from tests.sample_apps import marked
from tests.scripted_control_plane import snapshot_of

DIGEST, DATA = snapshot_of(marked("v1"))
RELEASE = ["v1", DIGEST, 3]
TABLE = {
    "revision": 3,
    "store_id": "store-1",
    "apps": [],
    "environments": [],
    "bindings": [{"app": "shop", "environment": "staging", "told": RELEASE, "served": RELEASE, "standby": [RELEASE]}],
    "policies": [{"environment": "staging", "max_staleness_seconds": 60.0, "action": "REFUSE"}],
    "tokens": [{"token_id": "a" * 16, "secret_hash": "AAAA", "role": "ADMIN", "apps": [], "environments": [], "endpoints": [], "rate_limit": None, "expire_time": None}],
    "format": 1,
}  # fmt: skip
HEARD = {"wall": 1.7e9, "boot_id": "", "uptime": 5.0}
ODD = [
    *ODD_TEXTS[:30],
    0,
    -1,
    2**63,
    2**64,
    10**400,
    1e308,
    -1e308,
    1.5,
    None,
    True,
    [],
    {},
    [[]],
    "sha256:" + "0" * 64,
    "../../x",
    RELEASE,
    ["v1", "../x", 1],
]
FILES = ["table.json", "table.old.json", "heard.json", f"blobs/{DIGEST[7:]}", "blobs/x.tmp", "lock"]
SPOOLED = messages(executions_pb2.ReportExecutionsRequest.DESCRIPTOR, 3).map(lambda message: message.SerializePartialToString())


def _perturbed(plain: Any, seed: int) -> Any:
    """With a few odd values in places of others, chosen by the seed."""
    chance, found = random.Random(seed), {"": copy.deepcopy(plain)}
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        inside: Any = found
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            key = chance.choice(keys)
            if not isinstance(inside[key], dict | list) or not inside[key] or chance.random() < 0.2:
                break
            inside = inside[key]
        inside[key] = copy.deepcopy(chance.choice(ODD))
    return found[""]


def _sealed(plain: Any, seed: int, sound: bool) -> bytes:
    body = json.dumps(_perturbed(plain, seed)).encode()
    return seal(mutated(body, seed) if seed % 5 == 0 else body) if sound else mutated(seal(body), seed)


CONTENTS = st.builds(_sealed, st.sampled_from([TABLE, TABLE, HEARD]), SEEDS, st.sampled_from([True, True, True, False])) | st.binary(max_size=50) | st.sampled_from([DATA, b"", b"{}", seal(b"{}"), seal(b"[" * 5000), seal(b"null")])  # fmt: skip
BATCHES = st.builds(lambda data, sound: (zlib.crc32(data).to_bytes(4) if sound else b"\0\0\0\0") + data, SPOOLED | st.binary(max_size=30) | st.builds(mutated, SPOOLED, SEEDS), st.sampled_from([True, True, False]))  # fmt: skip
NAMES = st.sampled_from(["0000000000000000-1.executions", "0000000000000001-5.executions", "9999999999999999-999999999.executions", "0000000000000002-0.executions", "x.executions", "0000000000000003-1.tmp"])  # fmt: skip
CASES = st.tuples(st.dictionaries(st.sampled_from(FILES), CONTENTS, max_size=4), st.dictionaries(NAMES, BATCHES, max_size=3))


class _Channel:
    """A control plane that refuses what is no report."""

    def unary_unary(self, _method: str) -> Callable[..., Any]:
        async def call(data: bytes, **_more: Any) -> bytes:
            try:
                executions_pb2.ReportExecutionsRequest.FromString(data)
            except DecodeError:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata(), "no message"
                ) from None
            return b""

        return call


class OnDisk(Checker):
    """Each case has a folder of its own."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        super().__init__(lambda case: loop.run(self._check(*case), 30))
        self._folder = folder
        self._number = 0
        self._logs = LogCapture()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[OnDisk]:
        """What is logged meanwhile is looked at."""
        before = structlog.get_config()["processors"]
        structlog.configure(processors=[self._logs])
        try:
            yield self
        finally:
            structlog.configure(processors=before)

    async def _check(self, files: dict[str, bytes], batches: dict[str, bytes]) -> None:
        """The gateway starts, serves only what is whole, keeps its state, and delivers or gives up what waits."""
        self._number += 1
        folder = self._folder / str(self._number)
        for name, data in (files | {f"executions/{name}": data for name, data in batches.items()}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self._logs.entries.clear()
        holder, compiler = Holder(lambda: datetime.now(UTC)), Compiler(Secrets(environment={}))
        folder.mkdir(exist_ok=True)
        disk = Disk(folder, lambda: datetime.now(UTC))
        try:
            await disk.load(holder, compiler)
            assert all(active.loaded.digest == DIGEST for active in holder.table.active.values())
            if holder.table.synced:
                seconds = await HeardFile(folder).seconds_ago()
                assert math.isfinite(seconds)
                assert seconds >= 0
                Staleness(holder).resume(seconds)
            await disk.warm(holder, compiler)
            disk.changed()
            assert await disk._save(holder)
        finally:
            compiler.close()
            await disk.close()
        await self._deliver(folder / "executions")
        raised = [entry for entry in self._logs.entries if entry.get("exc_info")]
        assert not raised, repr(raised)

    async def _deliver(self, folder: Path) -> None:
        spool = Spool(folder, 2**20)
        me = Me(gateway_id="g1", instance_id="018f2b1e-0000-7000-8000-000000000000", version="1")
        reporter = Reporter(spool, None, me)  # type: ignore[arg-type]  # it is told its channel here
        channel: Any = _Channel()
        while spool.depth or spool._batches:
            with spool.oldest() as batch:
                await reporter._deliver(channel, batch)
        assert not list(folder.glob("0000*.executions"))


@contextmanager
def on_disk() -> Iterator[Checker]:
    """For a target's `opened`."""
    loop, stack = Loop(), AsyncExitStack()
    with tempfile.TemporaryDirectory(prefix="pointsman-fuzz-") as folder:
        try:
            yield loop.run(stack.enter_async_context(OnDisk(loop, Path(folder)).listening()))
        finally:
            loop.run(stack.aclose())
            loop.close()


PINNED = [
    ({}, {"0000000000000001-5.executions": zlib.crc32(b"\xff").to_bytes(4) + b"\xff"}),
    ({"table.json": seal(json.dumps(TABLE).encode().replace(b"shop", b"sho\xa2"))}, {}),
    ({"table.json": seal(json.dumps(TABLE).encode()), "heard.json": seal(b'{"wall": 1.0, "boot_id": "\xff"}')}, {}),
    ({"table.json": seal(b'{"revision": ' + b"[" * 100_000)}, {}),
]

TARGETS = [Target(name="disk", cases=CASES, opened=on_disk, share=7_000, case_seconds=30, pinned=PINNED)]
