"""A server as a process: its signals, its limits, its event loop, its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import uvloop
from structlog.typing import Processor

from pointsman.jwt import JwtError
from pointsman.logs import configure
from pointsman.serving import StartupError
from pointsman.tls import TlsError

MAX_FILES = 65_536
# Objects that are made before the youngest are looked through; Python's own 700 are made many times in one fan-out.
GC_THRESHOLD = 20_000


def run(main: Callable[[asyncio.Event], Awaitable[None]], log_format: str, *logged: Processor) -> NoReturn:
    """Runs a server until SIGINT or SIGTERM sets the event that it is given, then exits with 0; a second signal exits at once.

    A StartupError, TlsError or JwtError is one line on stderr and exit status 1. `log_format` and `logged` are as in logs.configure.
    """
    configure(log_format, logged)
    _raise_file_limit()
    # What is loaded by now stays. What comes is looked through for cycles less often: that was a sixth of the cost of a fan-out to 1,000.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)

    async def with_signals() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                sys.stderr.write("second signal: exiting without draining\n")
                sys.stderr.flush()
                loop.stop()
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        await main(stop)

    try:
        uvloop.run(with_signals())
    except (StartupError, TlsError, JwtError) as error:
        sys.exit(f"pointsman: {error}")
    except RuntimeError:
        # loop.stop() after the second signal ends the run half-way; anything else is a defect and keeps its traceback.
        if "Event loop stopped before Future completed" not in str(sys.exc_info()[1]):
            raise
        sys.exit(1)
    sys.exit(0)


def _raise_file_limit() -> None:
    """Shells grant 1,024: fewer than one control plane has gateways."""
    with contextlib.suppress(ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
