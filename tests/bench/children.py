"""Child processes of benchmarks: peers and load generators, stopped by their own pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.processes import ROOT, Server, clean_environment

START_SECONDS = 60.0
KIB = 1024
ALL_PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()


@contextlib.asynccontextmanager
async def child(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is killed at the end; its stdin and stdout are pipes."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
        cwd=ROOT,
        limit=16 * 1024 * 1024,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process, seconds: float = START_SECONDS) -> str:
    """The next line that it prints. Raises RuntimeError when it ends instead."""
    assert process.stdout is not None
    async with asyncio.timeout(seconds):
        found = (await process.stdout.readline()).decode().strip()
    if not found:
        raise RuntimeError("a child of the benchmark ended early; its error is above")
    return found


@contextlib.contextmanager
def on_processors(*, first: bool) -> Iterator[None]:
    """What is started inside runs on this machine's first processor alone, or on the others: one server, one core.

    Where there is only one, or the system cannot, it changes nothing.
    """
    if len(ALL_PROCESSORS) < 2:
        yield
        return
    before, ours = os.sched_getaffinity(0), min(ALL_PROCESSORS)
    os.sched_setaffinity(0, {ours} if first else ALL_PROCESSORS - {ours})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def give_way(pid: int) -> None:
    """The process gets what of a processor nobody else wants, in all of its threads."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


@contextlib.asynccontextmanager
async def bare_server(payload_bytes: int) -> AsyncIterator[str]:
    """The address of tests.bench.bare_server."""
    async with child(sys.executable, "-m", "tests.bench.bare_server", str(payload_bytes)) as process:
        yield f"127.0.0.1:{await line(process)}"


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4 * KIB


def processor_seconds(pid: int) -> float:
    """Of a process so far, in its own code and the system's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def wrapped_gateway(module: str, folder: Path, control_plane: str) -> AsyncIterator[Server]:
    """A gateway by a program of tests.bench that changes something in it."""
    addresses = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--control-plane", control_plane)
    state = ("--gateway-id", module, "--state-dir", str(folder / module))
    server = Server([sys.executable, "-m", f"tests.bench.{module}", *addresses, *state], {})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
