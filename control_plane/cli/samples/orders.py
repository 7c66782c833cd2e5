"""The orders of the samples, and the HTTP service that support-chat's tool calls: `python -m control_plane.cli.samples.orders PORT`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.cli.samples import SERVICES
from control_plane.cli.samples.serving import QuietHandler, serve_until_told, start

STATUSES = ("packed", "on its way", "delivered", "waiting for payment")


def order(order_id: str) -> dict[str, str] | None:
    """Every order whose number has up to eight digits is known."""
    known = order_id.isdecimal() and len(order_id) <= 8
    return {"id": order_id, "status": STATUSES[int(order_id) % len(STATUSES)]} if known else None


class _Orders(QuietHandler):
    def do_GET(self) -> None:
        order_id = self.path.removeprefix("/orders/")
        found = order(order_id)
        self.answer(200 if found else 404, "application/json", json.dumps(found or {"error": f"no order {order_id}"}).encode())


@contextmanager
def order_service(port: int = SERVICES["orders"].port) -> Iterator[int]:
    """Serves orders on loopback; gives the port. Raises OSError when it is taken."""
    server = start(_Orders, port)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    serve_until_told(SERVICES["orders"].title, int(sys.argv[1]), lambda port: start(_Orders, port))
