"""Several processes on the same ports (`--workers N`): the kernel spreads connections over them, each has a Sync stream of its own.

The parent only reserves the ports, starts the workers as commands of their own (never by fork: gRPC's threads would not survive it),
starts again those that die, and passes on the end. A worker whose parent is gone ends too: its standard input closes. What one worker
writes to its standard output, the parent writes to the input of the others: `outage <seconds>`, one that is simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import click
import structlog

from data_plane.config import Settings
from pointsman.serving import StartupError, check_free
from pointsman.settings import ENVIRONMENT_PREFIX, Address

WORKER_VARIABLE = ENVIRONMENT_PREFIX + "WORKER"
READY_SECONDS = 60.0
# Beyond what the settings give running triggers, before a worker is killed.
STOP_SECONDS = 10.0
RESTART_SECONDS = (0.1, 10.0)
OUTAGE = b"outage "
# All that a pipe holds: no line is read in part.
PIPE_BYTES = 64 * 1024

log = structlog.get_logger()


async def serve_by_workers(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the workers until stop is set; ready when all of them are.

    Raises:
        StartupError: a port is taken, or a worker did not become ready; it has said why on stderr.
    """
    with contextlib.ExitStack() as reserved:
        listen, http = (_reserve(address, reserved) for address in (settings.listen, settings.http))
        settings = dataclasses.replace(settings, listen=listen, http=http)
        workers = [Worker(index, settings) for index in range(settings.workers)]
        try:
            started = await asyncio.gather(*(worker.start() for worker in workers))
            if not all(started):
                raise StartupError("a worker did not start; what it said is above")
            click.echo(f"ready: gateway grpc={listen} http={http}")
            keeping = [asyncio.create_task(worker.keep(tell_others(worker, workers))) for worker in workers]
            await stop.wait()
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))


def watch_parent(stop: asyncio.Event, simulate_outage: Callable[[float], None]) -> Callable[[float], None]:
    """In a worker: sets stop when the parent is gone, simulates the outages of its siblings, and gives what tells them of its own."""

    def on_input() -> None:
        told = os.read(0, PIPE_BYTES)
        if not told:
            loop.remove_reader(0)
            stop.set()
        for line in told.splitlines():
            if line.startswith(OUTAGE):
                simulate_outage(float(line.removeprefix(OUTAGE)))

    loop = asyncio.get_running_loop()
    loop.add_reader(0, on_input)
    return lambda seconds: click.echo(OUTAGE + f"{seconds:g}".encode())


def tell_others(worker: Worker, workers: Sequence[Worker]) -> Callable[[bytes], None]:
    """Passes on what a worker says to all but itself."""

    def tell(line: bytes) -> None:
        for other in workers:
            if other is not worker:
                other.tell(line)

    return tell


class Worker:
    """One process, and the next one when it dies."""

    def __init__(self, index: int, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> bool:
        """Starts it; False when it does not become ready."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "data_plane",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=worker_environment(os.environ, self._settings, self._index),
            # Ctrl-C in a terminal is for the parent alone, which passes it on once.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                return (await self._process.stdout.readline()).startswith(b"ready:")
        return False

    def tell(self, line: bytes) -> None:
        """A line on its standard input; nothing when it has just died."""
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line)

    async def keep(self, said: Callable[[bytes], None]) -> None:
        """Starts it again whenever it has ended, and passes on what it says, until cancelled."""
        shortest, longest = RESTART_SECONDS
        pause = shortest
        while True:
            assert self._process is not None
            assert self._process.stdout is not None
            began = time.monotonic()
            async for line in self._process.stdout:
                said(line)
            code = await self._process.wait()
            pause = shortest if time.monotonic() - began > longest else min(2 * pause, longest)
            log.error("a worker died and is started again", worker=self._index, exit_status=code)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 -- jitter, not a secret
            await self.start()

    async def stop(self) -> None:
        """Ends it: gracefully, and by force when that takes longer than the settings say."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_delay_seconds + self._settings.drain_seconds + STOP_SECONDS):
                await process.wait()
        if process.returncode is None:
            log.error("a worker did not end and is killed", worker=self._index)
            process.kill()
            await process.wait()


def worker_environment(environment: Mapping[str, str], settings: Settings, index: int) -> dict[str, str]:
    """The settings of a worker, as variables: those of the parent, with a state directory of its own."""
    found = {name: value for name, value in environment.items() if not name.startswith(ENVIRONMENT_PREFIX) or _is_foreign(name)}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "workers":
            value = 1
        if field.name == "state_dir" and value is not None:
            value = value / f"worker-{index}"
        if value is not None and value != ():
            is_many = isinstance(value, tuple) and not isinstance(value, Address)
            found[ENVIRONMENT_PREFIX + field.name.upper()] = " ".join(value) if is_many else str(value)
    return found | {WORKER_VARIABLE: str(index)}


def _is_foreign(name: str) -> bool:
    """Variables with our prefix that are no settings: secrets."""
    return name.removeprefix(ENVIRONMENT_PREFIX).lower() not in {field.name for field in dataclasses.fields(Settings)}


def _reserve(address: Address, reserved: contextlib.ExitStack) -> Address:
    """Holds the address, so that a free port stays ours while workers come and go. A socket that does not listen gets no connections."""
    check_free(address)
    family, kind, _, _, found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    sock = reserved.enter_context(socket.socket(family, kind))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(found)
    return Address(address.host, sock.getsockname()[1])
