"""Servers as child processes of dev and demo: started, waited for, stopped by their own pid, never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

READY = re.compile(r"ready: \S+ grpc=(\S+) http=(\S+)")
READY_SECONDS = 20.0
STOP_SECONDS = 15.0
SHOWN_LINES = 8
POLL_SECONDS = 0.02
PLAIN: dict[str, str | None] = dict.fromkeys(("POINTSMAN_CA", "POINTSMAN_CERTIFICATE", "POINTSMAN_KEY"))
"""Unsets, for commands, what a shell may say of other servers: the children speak plain text."""
# Not by the proxy that a developer's shell may name.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ChildFailedError(Exception):
    """A server did not start; the message has its name and the last lines that it wrote."""


class Child:
    """One server process. `grpc` and `http` are host:port."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Starts it and waits until it is ready.

        Raises:
            ChildFailedError: when it ends, or is not ready in time.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed in stop
        # -P: a folder of the same name where the command is called must not take the module's place.
        self.process = subprocess.Popen(  # noqa: S603 -- our own program with our own arguments
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(),
            # Ctrl-C is for the parent, which stops its children in order.
            start_new_session=True,
        )
        assert self.process.stdout is not None
        too_late = threading.Timer(READY_SECONDS, self.process.kill)
        too_late.start()
        try:
            found = READY.search(self.process.stdout.readline())
        finally:
            too_late.cancel()
        if found is None:
            code = self.stop()
            raise ChildFailedError(f"{name} did not start (exit status {code}):\n{self.last_words}")
        self.grpc, self.http = found.groups()

    def wait_until_synced(self) -> None:
        """Of a gateway: waits until it holds what it shall serve, which it learns after it has said that it listens.

        Raises:
            ChildFailedError: when it does not in time.
        """
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                with direct.open(f"http://{self.http}/readyz", timeout=READY_SECONDS):
                    return
            except urllib.error.HTTPError:
                time.sleep(POLL_SECONDS)
        code = self.stop()
        raise ChildFailedError(f"{self.name} did not get ready (exit status {code}):\n{self.last_words}")

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that does not help; the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = self.kill()
        self._close()
        return code

    def kill(self) -> int:
        """SIGKILL, as when the power goes."""
        self.process.kill()
        return self.process.wait()

    def _close(self) -> None:
        if not self._errors.closed:
            self._errors.seek(0)
            self.last_words = "".join(self._errors.readlines()[-SHOWN_LINES:]).strip()
            self._errors.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    last_words = ""
    """The last lines that it wrote to stderr; known after stop."""


def _environment() -> dict[str, str]:
    """Ours without settings: those exported for commands, such as POINTSMAN_APP, would count for servers too. Secrets stay."""
    return {name: value for name, value in os.environ.items() if not name.startswith("POINTSMAN_") or name.startswith("POINTSMAN_SECRET_")}


def free_port() -> int:
    """One that is free on loopback now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(name: str, module: str, *arguments: str) -> Iterator[Child]:
    """A child that is stopped at the end, whatever happens."""
    child = Child(name, module, arguments)
    try:
        yield child
    finally:
        child.stop()
