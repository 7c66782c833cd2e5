"""Why a server cannot be talked to, looked for after a call has failed: what to do about it depends on it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from pointsman.settings import Address

if TYPE_CHECKING:
    from pointsman.tls import ClientTls

SECONDS = 2.0
# RFC 9113, 3.4: how a client of HTTP/2 begins, and settings of which none is set. A server of HTTP/1.1 says what it thinks of that.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def why_unreachable(address: Address, tls: ClientTls | None, starts_with: str, default: str) -> str:
    """What is wrong and what to do, in a line. `starts_with` is the command that starts such a server, `default` where it then is."""
    from pointsman.tls import why_not

    if why := why_not(address, tls):
        return why
    try:
        with socket.create_connection(address, SECONDS) as connection:
            if tls is None:
                connection.sendall(PREFACE)
                if connection.recv(5) == b"HTTP/":
                    return f"{address} speaks HTTP/1.1 and not gRPC, which has a port of its own, {default} unless told otherwise"
    except socket.gaierror:
        return f"there is no host {address.host!r} as far as this machine knows"
    except OSError:
        # As gRPC found too.
        pass
    return f"{address} cannot be reached. Is it running? It starts with `{starts_with}`."
