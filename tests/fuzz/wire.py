"""Bytes to an HTTP port and whatever comes back, over several connections at the same time."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

# A server that has nothing to say for so long waits for more; then there is no more.
PATIENCE_SECONDS = 0.03
BOUND_SECONDS = 10.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
INNER = (b"Traceback", b'File "', b"object at 0x")


@dataclass
class Talk:
    """One connection."""

    address: str
    data: bytes
    got: bytearray = field(default_factory=bytearray)
    closed: bool = False
    sent: int = 0
    half_closed: bool = False
    heard_at: float = 0.0

    @property
    def statuses(self) -> list[int]:
        """Of every answer that came."""
        return [int(found) for found in _STATUS.findall(bytes(self.got))]

    def check(self) -> None:
        """Nothing unexpected, and an end. Raises AssertionError."""
        shown = f"{bytes(self.data[:1500])!r} of {len(self.data)} -> {bytes(self.got[:1500])!r}"
        assert self.closed, f"no end: {shown}"
        assert 500 not in self.statuses, f"a 500: {shown}"
        assert not any(inner in self.got for inner in INNER), f"what is inside: {shown}"


def talk(address: str, payloads: Sequence[bytes], patience_seconds: float = PATIENCE_SECONDS) -> list[Talk]:
    """Sends each over its own connection; ends the sending when the server says nothing for so long."""
    talks = [Talk(address, data) for data in payloads]
    selector = selectors.DefaultSelector()
    host, _, port = address.rpartition(":")
    for one in talks:
        sock = socket.create_connection((host, int(port)), timeout=BOUND_SECONDS)
        sock.setblocking(False)
        one.heard_at = time.monotonic()
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, one)
    try:
        _converse(selector, patience_seconds)
    finally:
        for key in list(selector.get_map().values()):
            abort(key.fileobj)  # type: ignore[arg-type]  # sockets alone are registered
        selector.close()
    return talks


def _converse(selector: selectors.BaseSelector, patience_seconds: float) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while selector.get_map() and time.monotonic() < deadline:
        for key, mask in selector.select(PATIENCE_SECONDS / 3):
            one, sock = key.data, key.fileobj
            one.heard_at = time.monotonic()
            if mask & selectors.EVENT_WRITE:
                _send(selector, sock, one)
            if mask & selectors.EVENT_READ:
                _receive(selector, sock, one)
        now = time.monotonic()
        for key in list(selector.get_map().values()):
            one = key.data
            if one.sent >= len(one.data) and not one.half_closed and now - one.heard_at > patience_seconds:
                one.half_closed = True
                with contextlib.suppress(OSError):
                    key.fileobj.shutdown(socket.SHUT_WR)  # type: ignore[union-attr]  # a socket


def _send(selector: selectors.BaseSelector, sock: socket.socket, one: Talk) -> None:
    try:
        one.sent += sock.send(one.data[one.sent : one.sent + 65536])
    except OSError:
        # The server has closed; what it said before may still be read.
        one.sent = len(one.data)
    if one.sent >= len(one.data):
        selector.modify(sock, selectors.EVENT_READ, one)


def _receive(selector: selectors.BaseSelector, sock: socket.socket, one: Talk) -> None:
    try:
        data = sock.recv(65536)
    except OSError:
        data = b""
    one.got += data
    if not data:
        one.closed = True
        selector.unregister(sock)
        sock.close()


def abort(sock: socket.socket) -> None:
    """Away without a word: a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
