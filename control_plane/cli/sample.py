"""The sample app, and the order service that its tool calls."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

from control_plane.cli.model import MODEL_PORT

SAMPLE_APP = "support-chat"
ORDERS_PORT = 7590
STATUSES = ("packed", "on its way", "delivered", "waiting for payment")


def sample_text(orders_port: int = ORDERS_PORT, model_port: int = MODEL_PORT) -> str:
    """The app file, with the ports of its tool and its model."""
    text = resources.files("control_plane.cli").joinpath(f"samples/{SAMPLE_APP}.yaml").read_text()
    text = text.replace(f"127.0.0.1:{ORDERS_PORT}", f"127.0.0.1:{orders_port}")
    return text.replace(f"127.0.0.1:{MODEL_PORT}", f"127.0.0.1:{model_port}")


class _Orders(http.server.BaseHTTPRequestHandler):
    """Knows every order whose number has up to eight digits."""

    protocol_version = "HTTP/1.1"
    # Head and body in one segment: in two, the second waits 40 ms for the acknowledgement of the first.
    wbufsize = -1

    def do_GET(self) -> None:
        order_id = self.path.removeprefix("/orders/")
        known = order_id.isdecimal() and len(order_id) <= 8
        answer = {"id": order_id, "status": STATUSES[int(order_id) % len(STATUSES)]} if known else {"error": f"no order {order_id}"}
        body = json.dumps(answer).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Silent: the gateway tells what matters."""


@contextmanager
def order_service(port: int = ORDERS_PORT) -> Iterator[int]:
    """Serves orders on loopback; gives the port. Raises OSError, which names the address, when it is taken."""
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Orders)
    except OSError as error:
        raise OSError(error.errno, f"the order service cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="orders", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
