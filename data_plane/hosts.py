"""Which hosts a gateway may call: a URL in a release, or in what a caller sends, must not open the network that the gateway stands in.

What counts is the address that a connection is made to, so it is checked where connections are made, after the name was resolved, and
the checked address is the one that is used. TLS still asks for the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

from data_plane.connections import Connection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERY_PUBLIC_HOST = "*"
ENTRIES = "a host (tools.internal), a suffix (*.example.com), an address, a network (10.0.0.0/8), or * (every host with a public address)"
HEADER_REFUSED = (
    "HTTP does not allow the value of one of its headers, a secret's perhaps: a line break, a space at an end, or a letter beyond ASCII"
)
# RFC 6052: an IPv4 address in the last 32 bits of an IPv6 one.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that IANA gives out for the internet. What else Python calls global leads to IPv4 (::/8) or stays local (fec0::/10).
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
# RFC 6890: of protocols, not of hosts. Older Pythons know a part of it only, and a cloud answers with credentials there.
_IETF_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")


class HostRefusedError(Exception):
    """This gateway does not call that host; the message says why and what would allow it."""


class HostPolicy:
    """The hosts that may be called.

    Entries are a host name (`tools.internal`), a suffix (`*.example.com`), an address or a network (`10.0.0.0/8`), or `*` for every
    host with a public address. A host that is named may have any address. No entries mean `*`.
    """

    def __init__(self, allowed: Iterable[str] = (), *, loopback: bool = False) -> None:
        """`loopback`: addresses of this machine may be called too. Raises ValueError when an entry is none of these."""
        entries = [entry.strip().lower().rstrip(".") for entry in allowed] or [EVERY_PUBLIC_HOST]
        self._public = EVERY_PUBLIC_HOST in entries
        self._loopback = loopback
        self._names: set[str] = set()
        self._suffixes: list[str] = []
        self._networks: list[Network] = []
        for entry in entries:
            if entry != EVERY_PUBLIC_HOST:
                self._add(entry)

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry.removeprefix("[").removesuffix("]")))
        except ValueError:
            name = entry.removeprefix("*.")
            if not name or any(char in name for char in "/:*[]@ ") or name.replace(".", "").isdecimal():
                raise ValueError(f"{entry!r} is none of: {ENTRIES}") from None
            if entry.startswith("*."):
                self._suffixes.append(entry[1:])
            else:
                self._names.add(name)

    def allows_name(self, host: str) -> bool:
        """Whether it is named, so that it may have any address."""
        host = host.lower().rstrip(".")
        return host in self._names or any(host.endswith(suffix) for suffix in self._suffixes)

    def check_address(self, host: str, address: Address) -> None:
        """Raises HostRefusedError."""
        real = _embedded(address)
        if any(real in network for network in self._networks):
            return
        if self._loopback and (real.is_loopback or real.is_unspecified):
            return
        shown = host if host == str(address) else f"{host} ({address})"
        remedy = f"start the gateway with --allow-host {host}"
        if not self._public:
            raise HostRefusedError(f"this gateway may not call {shown}; {remedy} if it shall")
        if not _is_public(real):
            raise HostRefusedError(f"{shown} is no public address; {remedy} if it may be called")


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one is another word for, or itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and address not in _IETF_PROTOCOLS
    return address.is_global and address in _PUBLIC_IPV6


class PolicedTransport(httpx2.AsyncHTTPTransport):
    """HTTP by connections that the policy allows. A request to another host raises HostRefusedError."""

    def __init__(self, policy: HostPolicy, limits: httpx2.Limits) -> None:
        ssl_context = httpx2.create_ssl_context(trust_env=False)
        super().__init__(verify=ssl_context, limits=limits, trust_env=False)
        # httpx2 has no argument for the backend of its pool, so the same pool is made again with ours.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_PolicedBackend(policy),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """As ever, but no error shows the value of a header, which may be a secret."""
        try:
            return await super().handle_async_request(request)
        except httpx2.LocalProtocolError:
            raise httpx2.LocalProtocolError(HEADER_REFUSED, request=request) from None


class _PolicedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses of a name that the policy allows, the first one that answers."""

    def __init__(self, policy: HostPolicy) -> None:
        self._policy = policy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- the library's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        last: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for address in await self._addresses(host, port):
            try:
                return await Connection.open(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last or httpcore2.ConnectError(f"{host} has no address")

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Raises HostRefusedError when none is allowed, ConnectError when the name is unknown."""
        try:
            found = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from error
            found = [ipaddress.ip_address(str(info[4][0]).split("%", 1)[0]) for info in infos]
        if self._policy.allows_name(host):
            return [str(address) for address in found]
        allowed, refused = [], None
        for address in found:
            try:
                self._policy.check_address(host, address)
            except HostRefusedError as error:
                refused = error
            else:
                allowed.append(str(address))
        if refused is not None and not allowed:
            raise refused
        return allowed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
