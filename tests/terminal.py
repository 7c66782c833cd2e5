"""A pseudo-terminal with a program on it, as a person has it: of a width, with keys to press."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.eventually import eventually
from tests.processes import BIN, clean_environment

ROWS = 50
END_SECONDS = 20.0


class Terminal:
    """What a program has written so far, and its keyboard."""

    def __init__(self, leader: int, process: asyncio.subprocess.Process) -> None:
        self.shown = ""
        self.process = process
        self._leader = leader
        self._reader = asyncio.create_task(asyncio.to_thread(self._read))

    def press(self, keys: str) -> None:
        """E.g. a Tab, or Ctrl-C as `\\x03`."""
        os.write(self._leader, keys.encode())

    async def until(self, pattern: str, seconds: float = END_SECONDS) -> None:
        """Waits until something was shown that fits."""
        try:
            await eventually(lambda: re.search(pattern, self.shown), seconds)
        except AssertionError as error:
            raise AssertionError(f"{pattern!r} is not in {self.shown!r}") from error

    async def end(self) -> int:
        """The exit status, once the program has ended and all was read."""
        async with asyncio.timeout(END_SECONDS):
            code = await self.process.wait()
            await self._reader
        return code

    async def close(self) -> None:
        """Ends the program, if it has not ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.end()
        os.close(self._leader)

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._leader, 65536)
            except OSError:  # how Linux says that the other end was closed
                return
            self.shown += found.decode(errors="replace").replace("\r\n", "\n")


@asynccontextmanager
async def terminal(program: Path | str, *arguments: str, columns: int = 120, **environment: str) -> AsyncIterator[Terminal]:
    """Runs a program on a terminal of that width, which nothing but the terminal says."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    settings = clean_environment(**{"TERM": "xterm", "NO_COLOR": ""} | environment)
    for name in ("COLUMNS", "LINES"):
        settings.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        str(program),
        *arguments,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=settings,
        # The terminal is its own: Ctrl-C on it is a signal.
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    found = Terminal(leader, process)
    try:
        yield found
    finally:
        await found.close()


async def shown(*arguments: str, columns: int = 120, **environment: str) -> str:
    """All that a `pointsman ...` which must succeed writes to a terminal."""
    async with terminal(BIN / "pointsman", *arguments, columns=columns, **environment) as found:
        assert await found.end() == 0, found.shown
        return found.shown
