"""Which hosts a gateway calls: what counts is the address that the connection is made to, however it was written or looked up."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from data_plane.hosts import HostPolicy, HostRefusedError
from data_plane.pipeline import run
from data_plane.steps.base import Clients
from pointsman.errors import StepFailed
from tests.processes import BIN
from tests.processes import run as run_command
from tests.scripted_upstream import ScriptedUpstream
from tests.test_inference import asking
from tests.test_tool_call import calling, running

PUBLIC = "93.184.215.14"
PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "192.0.0.192",
    "::1",
    "fe80::1",
    "fd00::1",
    "fec0::1",
    "ff02::1",
    "::",
]
# The same, as IPv6 has other words for them: mapped, NAT64 (also a network's own), 6to4, compatible, translated.
DISGUISED = [
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.1.2.3",
    "64:ff9b:1::10.1.2.3",
    "2002:7f00:1::",
    "::127.0.0.1",
    "::ffff:0:10.1.2.3",
]
PUBLIC_TOO = ["2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]


def refused(policy: HostPolicy, host: str, address: str) -> str:
    with pytest.raises(HostRefusedError) as error:
        policy.check_address(host, ipaddress.ip_address(address))
    return str(error.value)


@pytest.mark.parametrize("address", [*PRIVATE, *DISGUISED])
def test_without_a_word_only_public_addresses_are_called(address):
    says = refused(HostPolicy(), "tools.example.com", address)
    assert f"tools.example.com ({ipaddress.ip_address(address)}) is no public address" in says
    assert "--allow-host tools.example.com" in says


@pytest.mark.parametrize("address", [PUBLIC, *PUBLIC_TOO])
def test_public_addresses_are_called(address):
    HostPolicy().check_address("tools.example.com", ipaddress.ip_address(address))


def test_what_is_named_may_be_anywhere_and_nothing_else_may():
    policy = HostPolicy(["Tools.Internal.", "*.example.com", "10.0.0.0/8", "192.168.0.7", "fd00::/8"])
    assert [policy.allows_name(name) for name in ("tools.internal", "TOOLS.internal.", "a.b.example.com")] == [True, True, True]
    assert [policy.allows_name(name) for name in ("internal", "example.com", "badexample.com", "tools.internal.evil.com")] == [False] * 4
    for address in ("10.255.0.1", "::ffff:10.0.0.1", "192.168.0.7", "fd12::1"):
        policy.check_address("any", ipaddress.ip_address(address))
    assert "may not call any" in refused(policy, "any", PUBLIC)
    assert "may not call any" in refused(policy, "any", "192.168.0.8")
    both = HostPolicy(["*", "10.0.0.0/8"])
    both.check_address("any", ipaddress.ip_address(PUBLIC))
    both.check_address("any", ipaddress.ip_address("10.0.0.1"))
    refused(both, "any", "192.168.0.8")


def test_loopback_alone_may_be_let_in():
    policy = HostPolicy(loopback=True)
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        policy.check_address("localhost", ipaddress.ip_address(address))
    refused(policy, "any", "10.0.0.1")


@pytest.mark.parametrize("entry", ["http://a", "a:80", "*", "10.0.0.0/33", "a b", "*.*", "300.1.1.1", ""])
async def test_an_entry_that_is_none_is_refused_at_the_start(entry):
    if entry == "*":
        HostPolicy([entry])
        return
    done = await run_command(str(BIN / "pointsman"), "gateway", "--allow-host", entry)
    assert done.code == 2
    assert f"{entry!r} is none of: a host (tools.internal)" in done.stderr


@pytest.fixture
async def strict():
    clients = Clients.open(HostPolicy())
    yield clients
    await clients.aclose()


@pytest.mark.parametrize("written", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_this_machine_is_not_reached_however_its_address_is_written(strict, written):
    async with ScriptedUpstream().running() as upstream:
        url = upstream.url.replace("127.0.0.1", written)
        for endpoint in (calling(url + "/echo"), asking(url, prompt="Hello")):
            with pytest.raises(StepFailed) as error:
                await run(endpoint, running(strict))
            assert "no public address" in error.value.metadata["cause"]
            assert "--allow-host" in error.value.metadata["cause"]
        assert not upstream.seen


async def test_an_octal_address_is_no_url(strict):
    with pytest.raises(StepFailed, match="Invalid IPv4 address"):
        await run(calling("http://0177.0.0.1/echo"), running(strict))


async def test_a_name_that_leads_here_is_not_followed_and_the_address_that_was_checked_is_the_one_that_is_used(strict, monkeypatch):
    lookups = []
    really = socket.getaddrinfo

    def resolve(host, port, *arguments, **more):
        if host != "tools.example.com":
            return really(host, port, *arguments, **more)
        lookups.append(host)
        # A second look would find the way in.
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC if len(lookups) == 1 else "127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with ScriptedUpstream().running() as upstream:
        port = upstream.url.rpartition(":")[2]
        lookups.append("the first look has been")
        with pytest.raises(StepFailed) as error:
            await run(calling(f"http://tools.example.com:{port}/echo"), running(strict))
        assert "tools.example.com (127.0.0.1) is no public address" in error.value.metadata["cause"]
        named = Clients.open(HostPolicy(["tools.example.com"]))
        found = await run(calling(f"http://tools.example.com:{port}/echo"), running(named))
        assert found["path"] == "/echo"
        assert upstream.seen[-1][2]["host"] == f"tools.example.com:{port}"
        await named.aclose()
