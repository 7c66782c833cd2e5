"""How a service of a sample runs, as a child of dev and demo: on loopback, until SIGTERM."""

from __future__ import annotations

import http.server
import signal
import socket
import sys
import threading
from collections.abc import Callable


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """One that answers in whole bodies, and logs nothing: the gateway tells what matters."""

    protocol_version = "HTTP/1.1"
    # Head and body in one segment: in two, the second waits 40 ms for the acknowledgement of the first.
    wbufsize = -1

    def answer(self, status: int, kind: str, body: bytes) -> None:
        """Sends it."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Silent."""


def start(handler: type[http.server.BaseHTTPRequestHandler], port: int) -> http.server.ThreadingHTTPServer:
    """Serves from threads that end with the process; 0 is any port. Raises OSError when it is taken."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="service", daemon=True).start()
    return server


def serve_until_told(title: str, port: int, begin: Callable[[int], object]) -> None:
    """`begin(port)` serves from threads of its own, as long as what it returns is kept. Exits with a sentence when the port is taken."""
    ended = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    try:
        # Found out here: not every server says why it cannot listen.
        with socket.create_server(("127.0.0.1", port)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        sys.exit(f"{title} cannot listen on 127.0.0.1:{port}: {error.strerror}")
    server = begin(port)
    print(f"ready: service grpc=- http=127.0.0.1:{port}", flush=True)
    signal.sigwait(ended)
    del server
