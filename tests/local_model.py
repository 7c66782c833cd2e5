"""The real small model of the extra local-model: SmolLM2-135M behind llama.cpp's own OpenAI-compatible server, on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.cli.samples.model import serve_real, weights

WITHOUT = "import sys\nsys.modules['xllamacpp'] = None  # as where it is not installed\n"


def needs_local_model() -> None:
    """Skips, saying why, where the extra is not installed."""
    if weights() is None:
        pytest.skip("the extra local-model is not installed: see what tests/setup.sh said")


def without_local_model(folder: Path) -> dict[str, str]:
    """Settings of processes that do not find the extra."""
    (folder / "startup").mkdir()
    (folder / "startup" / "sitecustomize.py").write_text(WITHOUT)
    return {"PYTHONPATH": str(folder / "startup")}


@contextlib.contextmanager
def local_model() -> Iterator[str]:
    """The server's URL, without /v1. Skips, saying why, where the extra is not installed."""
    needs_local_model()
    file = weights()
    assert file is not None
    server = serve_real(file, 0)
    yield server.listening_address
    del server
