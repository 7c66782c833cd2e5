"""More than a server may keep of one connection: heads without an end, headers without number, requests that nobody waits for the answers of."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.engine import Target
from tests.fuzz.site import Site, on_site
from tests.fuzz.wire import INNER, abort

MIB = 1024 * 1024
SENT_BYTES = 4 * MIB
BEGIN = "POST /v1/trigger/where HTTP/1.1\r\nHost: localhost\r\nX-App: shop\r\nAuthorization: Bearer {secret}\r\n"
# What is said first, and what is then said again and again.
KINDS: dict[str, tuple[str, bytes]] = {
    "url": ("GET /", b"a"),
    "query": ("GET /apps?", b"a=%20&"),
    "header name": ("GET / HTTP/1.1\r\n", b"a"),
    "header value": ("GET / HTTP/1.1\r\nA: ", b"a"),
    "headers": ("GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "blank lines": ("", b"\r\n"),
    "requests": ("", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "requests with bodies": ("", b"POST /v1/trigger/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"),
    "chunk extension": (BEGIN + "Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "chunks": (BEGIN + "Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailer": (BEGIN + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: ", b"a"),
    "trailers": (BEGIN + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"A: b\r\n"),
    "body": (BEGIN + "Content-Length: 99999999999\r\n\r\n", b"a"),
    "body to a page": ("GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"a"),
}
CASES = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.booleans(), st.sampled_from([1000, 16_384, 262_144])), min_size=1, max_size=3)


def check_floods(site: Site, cases: list[Any]) -> None:
    """What is too much is cut off, or swallowed; how much it takes is looked at after all of them."""
    for kind, at_gateway, piece_bytes in cases:
        first, again = KINDS[kind]
        address = (site.gateway if at_gateway else site.control_plane).http
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=10)
        got = b""
        # The server may hang up, or listen to nothing until its answers are read, which they never are.
        with contextlib.suppress(ConnectionError, TimeoutError):
            sock.sendall(first.format(secret=site.secret).encode())
            sock.settimeout(0.2)
            piece = again * (piece_bytes // len(again))
            for _ in range(SENT_BYTES // len(piece)):
                sock.sendall(piece)
            got = sock.recv(MIB)
        assert b" 500 " not in got, got[:500]
        assert not any(inner in got for inner in INNER), got[:500]
        abort(sock)


PINNED = [[(kind, at_gateway, 262_144)] for kind in KINDS for at_gateway in (False, True)]

TARGETS = [
    Target(name="floods", cases=CASES, opened=on_site(check_floods), share=600, alone=False, case_seconds=60, memory_mib=64, pinned=PINNED)
]
