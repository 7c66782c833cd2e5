"""Real servers as real processes, started, killed and restarted by tests, and always stopped by their own pid.

    async with start_control_plane(tmp_path) as control_plane, start_gateway(tmp_path, control_plane.grpc) as gateway: ...

Ports are picked by the system (port 0) and read from the ready line; a restart keeps them. Time limits have room for
a busy 2-core machine; none of them is slept through.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
READY_SECONDS = 20.0
STOP_SECONDS = 15.0
SERVICE_PORTS = ("orders-port", "model-port", "tools-port", "caller-port")
DEV_PORTS = ("control-plane-port", "control-plane-http-port", "gateway-port", "gateway-http-port", *SERVICE_PORTS)
READY_LINE = re.compile(r"ready: (?P<what>\S+).* grpc=(?P<grpc>\S+) http=(?P<http>\S+)")


class Finished(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, which a developer may have exported, and without proxies."""
    left_out = ("POINTSMAN_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY", "GRPC_ENABLE_FORK_SUPPORT")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(left_out)}
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160"} | more


async def run(
    *command: str | Path, stdin: str = "", environment: Mapping[str, str] | None = None, timeout_seconds: float = 30.0, cwd: Path = ROOT
) -> Finished:
    """Runs a command to its end.

    Raises:
        AssertionError: it did not end in time, and was killed; says what it had printed.
    """
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(**(environment or {})),
        cwd=cwd,
    )
    talking = asyncio.ensure_future(process.communicate(stdin.encode()))
    done, _ = await asyncio.wait({talking}, timeout=timeout_seconds)
    if not done:
        process.kill()
        stdout, stderr = await talking
        raise AssertionError(f"{command} did not end within {timeout_seconds:g} s; it said:\n{stdout.decode()}\n{stderr.decode()}")
    stdout, stderr = await talking
    assert process.returncode is not None
    return Finished(process.returncode, stdout.decode(), stderr.decode())


class Server:
    """One server process. `grpc` and `http` are host:port and stay the same over restarts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._ready: asyncio.Future[re.Match[str]] | None = None
        self.what = ""
        self.grpc = ""
        self.http = ""
        self.ready_after_seconds = 0.0
        self.stdout: list[str] = []
        self.stderr: list[str] = []

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "not running"
        return self._process.pid

    async def start(self) -> None:
        """Starts the process and waits for its ready line; a second start listens on the same ports.

        Raises:
            AssertionError: it ended, or said nothing in time; says what it wrote to stderr.
        """
        assert self._process is None, "it runs already"
        started = time.monotonic()
        command = self._command
        if self.grpc:
            command = [*command, "--listen", self.grpc, "--http", self.http]
        self._ready = asyncio.get_running_loop().create_future()
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=clean_environment(**self._environment),
            cwd=ROOT,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({self._ready, ended}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            await self.kill()
            raise AssertionError(f"{' '.join(command)} gave no ready line:\n{self.said()}")
        ended.cancel()
        self.ready_after_seconds = time.monotonic() - started
        found = self._ready.result()
        self.what, self.grpc, self.http = found["what"], found["grpc"], found["http"]

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := (await stream.readline()).decode(errors="replace"):
            lines.append(line.rstrip("\n"))
            found = READY_LINE.search(line)
            if found and self._ready is not None and not self._ready.done():
                self._ready.set_result(found)

    def said(self) -> str:
        """Everything that it wrote, for a failure's message."""
        return "\n".join(["--- stdout", *self.stdout, "--- stderr", *self.stderr])

    async def stop(self) -> int:
        """SIGTERM; the exit status. Raises AssertionError, and kills it, when it does not end in time."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """SIGKILL, as when the power goes."""
        return await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        waiting = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait({waiting}, timeout=STOP_SECONDS)
        if not done:
            process.kill()
        code = await waiting
        await asyncio.gather(*self._readers)
        assert done, f"{self.what} did not end within {STOP_SECONDS:g} s of {number.name}:\n{self.said()}"
        return code


def free_address() -> str:
    """host:port where nobody listens now, for those that must be told of each other before they start."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


def _command(*arguments: str) -> list[str]:
    return [str(BIN / "pointsman"), *arguments]


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Server]:
    # Defaults first: a flag that a test gives again wins, and so do the ports of a restart.
    server = Server(command, environment)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def start_control_plane(folder: Path, *flags: str, **environment: str) -> contextlib.AbstractAsyncContextManager[Server]:
    """A control plane on free ports, with a SQLite store in the folder unless the flags say otherwise."""
    defaults = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", f"sqlite:///{folder / 'pointsman.db'}"]
    return _running(_command("control-plane", *defaults, *flags), environment)


def start_gateway(
    folder: Path, control_plane: str, *flags: str, gateway_id: str = "gateway-1", **environment: str
) -> contextlib.AbstractAsyncContextManager[Server]:
    """A gateway on free ports, with its state in a folder of its own inside the folder."""
    defaults = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--control-plane", control_plane]
    defaults += ["--gateway-id", gateway_id, "--state-dir", str(folder / gateway_id)]
    return _running(_command("gateway", *defaults, *flags), environment)


def start_dev(folder: Path, *more: str, **environment: str) -> contextlib.AbstractAsyncContextManager[Server]:
    """`pointsman dev` on free ports; `grpc` and `http` are the control plane's."""
    flags = [argument for port in DEV_PORTS for argument in (f"--{port}", "0")]
    return _running(_command("dev", "--data-dir", str(folder / "dev"), *flags, *more), environment)
