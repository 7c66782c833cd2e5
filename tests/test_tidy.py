"""The repository checks itself: who imports whom, how long things are, what must not be left lying about.

Each rule is a function from source to complaints, so that the tests at the end can show that it is able to fail.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("control_plane", "data_plane", "proto/pointsman", "tests")
MAX_MODULE_LINES = 400
# A flat list of cases over one set of fixtures reads well for longer.
MAX_TEST_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70

GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
MAY_IMPORT_GRPC = (
    "control_plane/rpc/",
    "control_plane/cli/",
    "data_plane/rpc",
    "data_plane/sync",
    "proto/pointsman/serving",
    "tests/",
)
DRIVERS = {
    "sqlite3": "control_plane/storage/sqlite",
    "pysqlite3": "control_plane/storage/sqlite",
    "sqlite_utils": "control_plane/storage/sqlite",
    "psycopg": "control_plane/storage/postgres",
    "opentelemetry": "data_plane/spans.py",
}
# Migrations are written for both drivers, side by side.
DRIVERS_TOO = ("control_plane/storage/migrations", "tests/")
# Assembled here, so that this file does not complain about itself.
LEFT_LYING = re.compile("|".join([r"\b" + "TO" + r"DO\b", r"\b" + "FIX" + r"ME\b", r"\b" + "XX" + r"X\b"]))
BLANKET_IGNORE = re.compile(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z])|mypy:\s*ignore-errors|ruff:\s*noqa(?!:\s*[A-Z]))")


def modules() -> list[str]:
    """Paths, relative to the root, of every Python file that people write."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if not re.search(r"_pb2(_grpc)?\.py$", path.name))


MODULES = modules()


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import, wherever it stands; relative ones are resolved."""
    package = Path(path).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            full = ".".join(part for part in (base, node.module or "") if part)
            # Both `from control_plane import hub` and `from control_plane.hub import Hub` name control_plane.hub.
            for alias in node.names:
                yield node.lineno, f"{full}.{alias.name}"


def wrong_imports(path: str, source: str) -> list[str]:
    """Complaints about imports that go the wrong way."""
    complaints = []
    for line, name in imported(path, source):
        root, inside = name.split(".")[0], f"{name}."
        why = ""
        if path.startswith("data_plane/") and root == "control_plane":
            why = "the gateway knows nothing of the control plane"
        elif path.startswith("control_plane/") and root == "data_plane":
            why = "the control plane knows nothing of the gateway"
        elif path.startswith("proto/") and root in ("control_plane", "data_plane"):
            why = "what both planes share knows neither"
        elif path.startswith("control_plane/cli/") and root == "control_plane" and not inside.startswith("control_plane.cli."):
            why = "the command line is a client from outside"
        elif root in GRPC and not path.startswith(MAY_IMPORT_GRPC):
            why = "only rpc, serving, sync and cli know grpc"
        elif root in DRIVERS and not path.startswith((DRIVERS[root], *DRIVERS_TOO)):
            why = f"only {DRIVERS[root]}*.py knows this driver"
        if why:
            complaints.append(f"{path}:{line} imports {name}: {why}")
    return complaints


def too_long(path: str, source: str) -> list[str]:
    """Complaints about modules and functions that should be divided."""
    lines = source.count("\n")
    limit = MAX_TEST_MODULE_LINES if path.startswith("tests/test_") else MAX_MODULE_LINES
    complaints = [f"{path} has {lines} lines; at most {limit}"] if lines > limit else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                complaints.append(f"{path}:{node.lineno} {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}")
    return complaints


def left_lying(path: str, source: str) -> list[str]:
    """Complaints about work put off and checks switched off wholesale."""
    complaints = []
    for number, line in enumerate(source.splitlines(), 1):
        if LEFT_LYING.search(line):
            complaints.append(f"{path}:{number} puts work off: {line.strip()}")
        if BLANKET_IGNORE.search(line):
            complaints.append(f"{path}:{number} ignores without saying what: {line.strip()}")
    return complaints


@pytest.mark.parametrize("rule", [wrong_imports, too_long, left_lying])
def test_every_module_is_tidy(rule):
    complaints = [complaint for path in MODULES for complaint in rule(path, (ROOT / path).read_text())]
    assert not complaints, "\n".join(["", *complaints])


def test_the_modules_are_found():
    assert {"control_plane/__main__.py", "proto/pointsman/errors.py", "tests/test_tidy.py"} <= set(MODULES)
    assert "proto/pointsman/v1/apps_pb2.py" not in MODULES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data_plane/table.py", "from control_plane import model"),
        ("control_plane/hub.py", "def f():\n    import data_plane.sync"),
        ("proto/pointsman/rules.py", "import control_plane"),
        ("control_plane/cli/deploy.py", "from control_plane.model import Release"),
        ("control_plane/cli/deploy.py", "from .. import model"),
        ("control_plane/service/apps.py", "import grpc.aio"),
        ("data_plane/pipeline.py", "from grpc import StatusCode"),
        ("control_plane/hub.py", "import sqlite_utils"),
        ("control_plane/storage/sqlite.py", "from psycopg import sql"),
        ("data_plane/gateway.py", "from opentelemetry import trace"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(path, source):
    assert len(wrong_imports(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("control_plane/cli/deploy.py", "from . import output\nfrom control_plane.cli import main"),
        ("control_plane/rpc/apps.py", "import grpc"),
        ("control_plane/storage/sqlite.py", "import sqlite_utils"),
    ],
)
def test_an_import_in_the_right_direction_is_not(path, source):
    assert wrong_imports(path, source) == []


def test_what_is_too_long_or_left_lying_is_found():
    assert len(too_long("a.py", "x = 1\n" * (MAX_MODULE_LINES + 1))) == 1
    assert len(too_long("a.py", "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES)) == 1
    assert too_long("a.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)) == []
    assert len(left_lying("a.py", "# TO" + "DO: later\nx = 1  # type: ig" + "nore\ny = 2  # no" + "qa\n")) == 3
    assert left_lying("a.py", "x = f()  # type: ignore[override]  # why\ny = 2  # noqa: S101\n") == []


def test_the_lock_file_follows_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = next(p for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"] if p["name"] == "pointsman")

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}

    extras = project["project"]["optional-dependencies"]
    wanted = names(project["project"]["dependencies"]) | {name for extra in extras.values() for name in names(extra)}
    assert {entry["name"] for entry in locked["metadata"]["requires-dist"]} == wanted, "run `uv lock`"
    wanted_dev = names(project["dependency-groups"]["dev"])
    assert {entry["name"] for entry in locked["metadata"]["requires-dev"]["dev"]} == wanted_dev, "run `uv lock`"


def test_every_lint_ignore_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    ignores = [line for line in lines if re.match(r'\s+"[A-Z]+[0-9]*"', line)]
    assert ignores
    assert [line for line in ignores if "#" not in line] == []
