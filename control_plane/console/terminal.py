"""The same from a terminal: lines that do what a page does, and work as they are pasted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from pointsman.settings import Address

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 -- compared with, not listened on
# Whom commands ask by themselves.
BY_THEMSELVES = ("localhost:7400", "127.0.0.1:7400", "[::1]:7400")
# What a script puts the reason in for. The shell takes it within quotes, and no name has it.
REASON = "{reason}"


class Line(msgspec.Struct, frozen=True):
    """A line to copy, with the reason that was typed; `without` one, and `reasoned`, with REASON for it. Empty where none can be given."""

    label: str
    text: str
    without: str = ""
    reasoned: str = ""


class Terminal(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gRPC of this control plane listens, and what it asks callers for. Tokens and files are named, never shown."""

    address: Address
    is_tls: bool = False
    asks_for_certificates: bool = False

    def command(self, host: str, *words: str) -> str:
        """`host` is how the browser reached us; other than commands would by themselves, the server is named."""
        server = self.server(host)
        return shlex.join(["pointsman", *words, *([] if server in BY_THEMSELVES else ["--server", server])])

    def grpcurl(self, host: str, method: str, request: Mapping[str, Any], *, token: bool) -> str:
        """`token`: callers show one."""
        flags = '-cacert "$POINTSMAN_CA"' if self.is_tls else "-plaintext"
        if self.asks_for_certificates:
            flags += ' -cert "$POINTSMAN_CERTIFICATE" -key "$POINTSMAN_KEY"'
        if token:
            flags += ' -H "authorization: Bearer $POINTSMAN_TOKEN"'
        return f"grpcurl {flags} -d {shlex.quote(json.dumps(request))} {self.server(host)} pointsman.v1.{method}"

    def server(self, host: str) -> str:
        """HOST:PORT of the gRPC."""
        return str(Address(host.strip("[]"), self.address.port) if self.address.host in WILDCARDS else self.address)
