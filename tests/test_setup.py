"""What a machine lacks is named: by tests/setup.sh, with the command that installs it, and by the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What the script calls; everything else is not on its PATH.
TOOLS = ("sh", "grep", "tr", "paste", "cut", "rm")


@pytest.fixture
def path(tmp_path):
    """A PATH with the basic tools, to which a test adds its own python3."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def add(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def set_up(path: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path / "sh", "tests/setup.sh", "runtime", "python3", venv, ""],
        capture_output=True,
        text=True,
        env={"PATH": str(path)},
        cwd=ROOT,
        timeout=30,
        check=False,
    )


def test_a_python_that_is_too_old_is_named(path, tmp_path):
    add(path, "python3", 'case "$1" in -V) echo Python 3.9.6 ;; *) exit 1 ;; esac')
    done = set_up(path, tmp_path / "venv")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; python3 is Python 3.9.6" in done.stderr
    assert "apt-get install python3.11" in done.stderr


def test_no_python_at_all_is_named(path, tmp_path):
    done = set_up(path, tmp_path / "venv")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_a_python_without_the_venv_module_is_named(path, tmp_path):
    add(path, "python3", f'case "$2" in *ensurepip*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac')
    done = set_up(path, tmp_path / "venv")
    assert done.returncode == 1
    assert "python3 has no venv module" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(("required", "outcome", "status"), [("", "1 skipped", 0), ("grpcurl,chromium", "1 error", 1)])
def test_without_a_browser_tests_are_skipped_or_fail_where_it_is_required(path, required, outcome, status):
    """As `.ci/run` has it; the reason is told either way."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_console_browser_long.py", "-k", "glance"],
        capture_output=True,
        text=True,
        env={"PATH": str(path), "POINTSMAN_REQUIRED": required},
        cwd=ROOT,
        timeout=50,
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert outcome in done.stdout
    assert "chromium: not installed" in done.stdout
    assert ("it is required here" in done.stdout) == bool(required)
