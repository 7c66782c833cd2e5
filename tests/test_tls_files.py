"""Files of certificates that change: what is sound is taken by new connections, what is not is told and changes nothing."""

from __future__ import annotations

import shutil
import ssl
import stat
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from pointsman.settings import Address
from pointsman.tls import TlsError, client_tls, server_tls, why_not
from tests.certificates import Certificates
from tests.clients import cli


@pytest.fixture
async def certificates(tmp_path):
    made = Certificates(tmp_path / "certificates")
    await made.make()
    return made


def paths(certificates, *names):
    return [certificates.folder / f"{name}.pem" for name in names]


def shake_hands(server, client, name="localhost"):
    """A handshake in memory; the certificate that the server showed, in DER. Raises ssl.SSLError, of whichever side minded."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller, listener = client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)
    finish(caller, listener)
    return caller.getpeercert(binary_form=True)


def finish(*ends):
    left = list(ends)
    while left:
        for one in list(left):
            try:
                one.do_handshake()
                left.remove(one)
            except ssl.SSLWantReadError:
                continue


async def test_a_renewed_pair_is_taken_whole_or_not_at_all(certificates, tmp_path):
    """The key comes before the certificate, as it does when people copy files: between the two, the old pair goes on."""
    tls = server_tls(*paths(certificates, "server", "server-key"), None)
    listener, client = tls.context(), certificates.context()
    old, old_pems = shake_hands(listener, client), tls.pems
    renewed = Certificates(tmp_path / "renewed")
    shutil.copytree(certificates.folder, renewed.folder)
    await renewed.make()

    shutil.copy(renewed.path("server-key"), certificates.path("server-key"))
    with capture_logs() as logs:
        tls.check()
        tls.check()
    assert [line["log_level"] for line in logs] == ["warning"], "told, and once"
    assert "server-key.pem does not belong to the certificate" in logs[0]["problem"]
    assert (shake_hands(listener, client), tls.pems) == (old, old_pems)

    shutil.copy(renewed.path("server"), certificates.path("server"))
    tls.check()
    assert shake_hands(listener, client) != old
    assert tls.pems.certificate == (renewed.folder / "server.pem").read_bytes()


async def test_files_that_go_or_are_damaged_change_nothing(certificates):
    tls = server_tls(*paths(certificates, "server", "server-key"), None)
    listener, client = tls.context(), certificates.context()
    old = shake_hands(listener, client)
    for damage in (lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nQQ==\n"), lambda path: path.unlink()):
        damage(certificates.folder / "server.pem")
        with capture_logs() as logs:
            tls.check()
        assert "server.pem" in logs[0]["problem"]
        assert shake_hands(listener, client) == old


async def test_another_authority_for_callers_counts_from_the_next_handshake_on(certificates):
    tls = server_tls(*paths(certificates, "server", "server-key", "ca"))
    listener, client = tls.context(), certificates.context("client")
    shake_hands(listener, client)
    trustme.CA().cert_pem.write_to_path(certificates.path("ca"))
    tls.check()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(listener, client)


async def test_nobody_comes_in_on_an_earlier_handshake(certificates):
    """A session is not resumed: it would outlive the authority, and the expiry, of the certificate that began it."""
    tls = server_tls(*paths(certificates, "server", "server-key", "ca"))
    listener, client = tls.context(), certificates.context("client")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller, answerer = client.wrap_bio(down, up, server_hostname="localhost"), listener.wrap_bio(up, down, server_side=True)
    finish(caller, answerer)
    answerer.write(b"x")
    assert caller.read(1) == b"x"
    assert caller.version() == "TLSv1.3"
    assert not caller.session.has_ticket
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        shake_hands(listener, client)


async def test_an_authority_that_has_expired_is_told(certificates, monkeypatch):
    monkeypatch.setattr("pointsman.tls.time.time", lambda: 4e9)
    with pytest.raises(TlsError, match=r"every certificate of an authority in .*ca.pem has expired, the last one at "):
        client_tls("--control-plane-", None, None, certificates.folder / "ca.pem")


def issue(authority, folder, days):
    """A certificate that counts for so many days; its file and its key's."""
    found = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=days))
    certificate, key = folder / "own.pem", folder / "own-key.pem"
    found.private_key_pem.write_to_path(key)
    found.cert_chain_pems[0].write_to_path(certificate)
    return certificate, key


@pytest.mark.parametrize("of_server", [True, False])
def test_what_expires_soon_is_told_at_the_first_look_at_each_renewal_and_every_day(tmp_path, monkeypatch, of_server):
    authority, now = trustme.CA(), time.time()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    make = server_tls if of_server else partial(client_tls, "--control-plane-")
    tls = make(*issue(authority, tmp_path, 13), tmp_path / "ca.pem")

    def told(at_seconds=0):
        monkeypatch.setattr("pointsman.tls.time.time", lambda: now + at_seconds)
        with capture_logs() as logs:
            tls.check()
        return [(line["event"].partition(";")[0], Path(line["file"]).name) for line in logs if line["log_level"] == "warning"]

    soon, over = ("a certificate expires soon", "own.pem"), ("a certificate has expired", "own.pem")
    assert [told(0), told(1), told(23 * 3600), told(25 * 3600), told(26 * 3600)] == [[soon], [], [], [soon], []]
    issue(authority, tmp_path, 12)
    assert told(26 * 3600) == [soon]
    assert told(12.5 * 86_400) == [over]
    monkeypatch.undo()
    issue(authority, tmp_path, 30)
    assert told() == []
    # A clock that is set back hides nothing.
    assert [told(17 * 86_400), told()] == [[soon], []]


async def test_what_is_wrong_is_no_defect_when_the_files_have_gone(certificates):
    tls = client_tls("--control-plane-", *paths(certificates, "gateway-1", "gateway-1-key", "ca"))
    shutil.rmtree(certificates.folder)
    assert why_not(Address("127.0.0.1", 1), tls) == ""


async def test_a_caller_must_show_a_certificate_under_mtls(certificates):
    tls = server_tls(*paths(certificates, "server", "server-key", "ca"))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(tls.context(), certificates.context())


async def test_a_client_takes_renewed_files_for_its_next_connection(certificates):
    tls = client_tls("--control-plane-", *paths(certificates, "gateway-1", "gateway-1-key", "ca"))
    before = tls.pems
    tls.check()
    assert tls.pems is before
    await certificates.make()
    tls.check()
    assert tls.pems.certificate != before.certificate
    assert tls.pems.ca == before.ca


async def test_an_encrypted_key_is_told_and_nobody_is_asked_for_its_passphrase(certificates, tmp_path):
    from cryptography.hazmat.primitives import serialization

    path = certificates.folder / "server-key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(TlsError, match=r"server-key.pem is encrypted; give a key without a passphrase"):
        server_tls(*paths(certificates, "server", "server-key"), None)


async def test_certs_dev_keeps_its_authority_and_its_keys_to_itself(certificates):
    before = {path.name: path.read_bytes() for path in certificates.folder.iterdir()}
    await certificates.make()
    after = {path.name: path.read_bytes() for path in certificates.folder.iterdir()}
    assert set(before) == set(after)
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}
    for path in certificates.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == (0 if path.stem.endswith("-key") else 0o044)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gateway", "../etc"], "'../etc' cannot be the id of a gateway here"),
        (["--gateway", "server"], "'server' cannot be the id of a gateway here"),
        (["--gateway", "g" * 65], "must have 1 to 64 characters"),
        (["--host", "münchen"], "'münchen' is no name of a host"),
    ],
)
async def test_names_that_certs_dev_cannot_use(tmp_path, flags, told):
    done = await cli("certs", "dev", "--dir", str(tmp_path / "certs"), *flags)
    assert done.code == 2
    assert told in done.stderr


async def test_certs_dev_overwrites_no_authority_that_it_cannot_read(tmp_path):
    (tmp_path / "ca-key.pem").write_text("precious")
    (tmp_path / "ca.pem").write_text("precious")
    done = await cli("certs", "dev", "--dir", str(tmp_path))
    assert (done.code, "no authority" in done.stderr) == (1, True)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}
