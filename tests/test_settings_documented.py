"""Every setting of the servers is in the table of its folder's README, with its default; nothing else is."""

from __future__ import annotations

import importlib
import re
import socket
from pathlib import Path

import pytest

from pointsman.settings import describe

ROOT = Path(__file__).parent.parent


def _default(shown: str) -> str:
    """As the table has it, on any machine."""
    if shown == socket.gethostname():
        return "the host's name"
    return f"`{shown}`" if shown else ""


@pytest.mark.parametrize("package", ["control_plane", "data_plane"])
def test_the_table_of_settings_is_complete_and_true(package):
    settings = importlib.import_module(f"{package}.config").Settings
    wanted = [
        f"| `{one.flag}` | `{one.variable}` | {_default(one.default)} | {one.description} |".replace("|  |", "| |")
        for one in describe(settings)
    ]
    told = re.findall(r"^\| `--.*$", (ROOT / package / "README.md").read_text(), re.MULTILINE)
    assert told == wanted, "the table should be:\n" + "\n".join(["| flag | variable | default | what |", "|---|---|---|---|", *wanted])
