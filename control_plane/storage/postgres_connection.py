"""Connections to PostgreSQL: how they are made, what they are called without their password, and what their errors say."""

from __future__ import annotations

import contextlib
import functools
import random
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import conninfo

from control_plane.storage.base import CannotOpenStore

# Where the URL does not say otherwise. A network that swallows everything is noticed within 15 s.
DEFAULTS = {
    "application_name": "pointsman",
    "target_session_attrs": "read-write",
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# A replica that hangs in the midst of a transaction is cut off by the server before those that wait for it give up.
_SESSION = """SELECT
    set_config('idle_in_transaction_session_timeout', '5s', false),
    set_config('lock_timeout', '10s', false),
    set_config('statement_timeout', %s, false),
    CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN set_config('synchronous_commit', 'on', false) END"""

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 2.0

# Classes and codes of SQLSTATE that are about the server, the connection or its rights, and not about the statement.
_UNAVAILABLE_CLASSES = {"08", "28", "3D", "40", "53", "57", "58", "F0", "XX"}
_UNAVAILABLE_STATES = {"25006", "25P03", "25P04", "42501", "55P03"}


def cause_of(error: BaseException) -> str:
    """The name of the SQLSTATE (or "connection") when the error says that the store cannot be used; else empty."""
    if not isinstance(error, psycopg.Error):
        return ""
    state = error.sqlstate
    if state is None:
        return "connection" if isinstance(error, psycopg.OperationalError) else ""
    if state[:2] in _UNAVAILABLE_CLASSES or state in _UNAVAILABLE_STATES:
        return type(error).__name__
    return ""


def one_line(error: BaseException) -> str:
    """A driver's message, which may have several."""
    return " ".join(str(error).split()).rstrip(".")


def parse(url: str) -> dict[str, Any]:
    """The parameters of a connection.

    Raises:
        CannotOpenStore: without the URL, for it may hold a password that was not recognised as one.
    """
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        parameter = str(error).partition("URI query parameter: ")[2]
        what = f"it has no parameter {parameter.strip()}" if parameter else "check its host, port and parameters"
        raise CannotOpenStore(
            f"the store is not a PostgreSQL URL: {what}; it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETER=VALUE, "
            "with @ / : ? % in a password written as %40 %2F %3A %3F %25"
        ) from error
    return DEFAULTS | {name: value for name, value in given.items() if value is not None}


def location_of(parameters: dict[str, Any]) -> str:
    """The URL without secrets."""
    hosts = str(parameters.get("host", "")).split(",")
    ports = str(parameters.get("port", "")).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    user = f"{parameters['user']}@" if "user" in parameters else ""
    return f"postgresql://{user}{','.join(_addresses(hosts, ports))}/{parameters.get('dbname', '')}"


def _addresses(hosts: list[str], ports: list[str]) -> Iterator[str]:
    for host, port in zip(hosts, ports, strict=False):
        address = f"[{host}]" if ":" in host else host.replace("/", "%2F")
        yield f"{address}:{port}" if port else address


def connect(parameters: dict[str, Any], *, statement_timeout: str = "0") -> psycopg.Connection[Any]:
    """A connection with our settings; statements outside BEGIN and COMMIT commit by themselves.

    A commit must not be timed out: while it waits for a synchronous standby, the server would call it done without one.
    """
    connection = psycopg.connect(**parameters, autocommit=True)
    try:
        connection.execute(_SESSION, [statement_timeout])
    except BaseException:
        connection.close()
        raise
    return connection


def shut(connection: psycopg.BaseConnection[Any]) -> None:
    """Wakes whoever waits on it for a server that does not answer. It stays theirs to close; only the network is gone."""
    with contextlib.suppress(psycopg.Error, OSError), socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def commit(connection: psycopg.Connection[Any], first: str = "") -> bool:
    """Commits, after a last few statements; whether it is as durable as the server is set up to make it.

    A server that is told not to wait for its synchronous standby says "committed", and warns.
    """
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(str(diagnostic.message_primary))

    connection.add_notice_handler(note)
    try:
        connection.execute(f"{first}COMMIT".encode())
    finally:
        connection.remove_notice_handler(note)
    return not warnings


def delays() -> Iterator[float]:
    """Seconds to wait before each next try, with jitter."""
    longest = FIRST_DELAY_SECONDS
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311 -- no secret
        longest = min(longest * 2, LONGEST_DELAY_SECONDS)


@functools.lru_cache(maxsize=1024)
def translated(sql: str) -> bytes:
    """A statement of sql.py with psycopg's marks for parameters."""
    return sql.replace("?", "%s").encode()
