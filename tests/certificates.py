"""Certificates for tests of TLS: those that `pointsman certs dev` makes, and how servers and clients are told of them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import grpc

from pointsman.settings import Address
from tests.processes import BIN, run

GATEWAYS = ("gateway-1", "gateway-2")


class Certificates:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def make(self) -> None:
        """New ones; of the same authority when there were some already."""
        gateways = [argument for gateway in GATEWAYS for argument in ("--gateway", gateway)]
        done = await run(BIN / "pointsman", "certs", "dev", "--dir", self.folder, *gateways)
        assert done.code == 0, done.stderr

    def path(self, name: str) -> str:
        """Of one file."""
        return str(self.folder / f"{name}.pem")

    def server_flags(self, *, mtls: bool = False) -> list[str]:
        """For either server's own ports."""
        flags = ["--tls-certificate", self.path("server"), "--tls-key", self.path("server-key")]
        return [*flags, "--tls-client-ca", self.path("ca")] if mtls else flags

    def gateway_flags(self, shown: str | None = None) -> list[str]:
        """How a gateway reaches its control plane; `shown` is whose certificate it shows."""
        flags = ["--control-plane-ca", self.path("ca")]
        own = ["--control-plane-certificate", self.path(f"{shown}"), "--control-plane-key", self.path(f"{shown}-key")]
        return flags + own if shown else flags

    def client_environment(self, shown: str | None = None) -> dict[str, str]:
        """How commands reach servers."""
        found = {"POINTSMAN_CA": self.path("ca")}
        return found | {"POINTSMAN_CERTIFICATE": self.path(shown), "POINTSMAN_KEY": self.path(f"{shown}-key")} if shown else found

    def credentials(self, shown: str | None = None) -> grpc.ChannelCredentials:
        """For a gRPC channel."""
        pair = [Path(self.path(name)).read_bytes() for name in (f"{shown}-key", shown)] if shown else []
        return grpc.ssl_channel_credentials(Path(self.path("ca")).read_bytes(), *pair)

    def context(self, shown: str | None = None) -> ssl.SSLContext:
        """For HTTP."""
        context = ssl.create_default_context(cafile=self.path("ca"))
        if shown:
            context.load_cert_chain(self.path(shown), self.path(f"{shown}-key"))
        return context

    async def shown_by(self, address: str) -> bytes:
        """The certificate that a port shows to a new connection, in DER."""
        host, port = Address.parse(address)
        context = self.context("client")
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        try:
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return found
        finally:
            writer.transport.abort()
