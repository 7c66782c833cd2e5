"""pointsman certs ...: certificates to try TLS with."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

VALID_DAYS = 90
# Clocks differ.
SINCE = timedelta(hours=1)
MAX_NAME_CHARACTERS = 64
AUTHORITY, SERVER, CLIENT = "ca", "server", "client"
_GATEWAY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.group("certs")
def command() -> None:
    """Certificates."""


@command.command(short_help="Make an authority to throw away, and certificates of it.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default="certs", show_default=True, help="Where to.")
@click.option("--host", "hosts", multiple=True, help="A name or address of the servers, beside this machine's; may be repeated.")
@click.option("--gateway", "gateways", multiple=True, help="A gateway's id, to make its certificate; may be repeated. [this host's name]")
def dev(folder: Path, hosts: Sequence[str], gateways: Sequence[str]) -> None:
    """Make an authority to throw away, and certificates of it: for servers, gateways and commands.

    Called again it makes new certificates of the same authority, as a renewal would. They count for 90 days.

    Example: pointsman certs dev --dir certs --gateway gateway-1
    """
    try:
        import cryptography  # noqa: F401 -- asked for here, where there is something to say
    except ImportError:
        raise click.ClickException("this takes the package cryptography: pip install 'pointsman[certs]'") from None
    me = socket.gethostname()
    gateways = gateways or [me]
    for gateway in gateways:
        if not _GATEWAY_ID.fullmatch(gateway) or gateway in (AUTHORITY, SERVER, CLIENT):
            raise click.UsageError(f"--gateway: {gateway!r} cannot be the id of a gateway here")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _authority(folder)
        _issue(folder, authority, SERVER, SERVER, ["localhost", "127.0.0.1", "::1", me, *hosts])
        for gateway in gateways:
            _issue(folder, authority, gateway, gateway, [gateway])
        _issue(folder, authority, CLIENT, CLIENT, [])
    except OSError as error:
        raise click.ClickException(f"cannot use {error.filename or folder}: {error.strerror}") from None
    click.echo(_use(folder, gateways[0]))


def _use(folder: Path, gateway: str) -> str:
    return f"""{folder}: an authority ({AUTHORITY}.pem) and certificates of it, for {VALID_DAYS} days; for trying things out only

pointsman control-plane --tls-certificate {folder}/server.pem --tls-key {folder}/server-key.pem --tls-client-ca {folder}/{AUTHORITY}.pem
pointsman gateway --tls-certificate {folder}/server.pem --tls-key {folder}/server-key.pem --tls-client-ca {folder}/{AUTHORITY}.pem \\
    --gateway-id {gateway} --control-plane localhost:7400 --control-plane-ca {folder}/{AUTHORITY}.pem \\
    --control-plane-certificate {folder}/{gateway}.pem --control-plane-key {folder}/{gateway}-key.pem
export POINTSMAN_CA={folder}/{AUTHORITY}.pem POINTSMAN_CERTIFICATE={folder}/client.pem POINTSMAN_KEY={folder}/client-key.pem"""


Authority = tuple["x509.Certificate", "ec.EllipticCurvePrivateKey"]


def _authority(folder: Path) -> Authority:
    """That of the folder, or a new one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate_path, key_path = _paths(folder, AUTHORITY)
    if key_path.exists():
        try:
            key = load_pem_private_key(key_path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (ValueError, TypeError) as error:
            raise click.ClickException(
                f"{certificate_path} and {key_path} are no authority of ours ({error}); take another --dir"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise click.ClickException(f"{key_path} is not the key of {certificate_path}; take another --dir")
        return certificate, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Pointsman, an authority to throw away")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _keep(folder, AUTHORITY, builder.add_extension(usage, critical=True), key, key), key


def _issue(folder: Path, authority: Authority, file: str, name: str, hosts: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    # A server may call another, as a gateway does.
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _builder(_name(name), issuer.subject, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
    _keep(folder, file, builder, key, issuer_key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SINCE)
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not 0 < len(text) <= MAX_NAME_CHARACTERS:
        raise click.UsageError(f"{text!r} must have 1 to {MAX_NAME_CHARACTERS} characters, to be the name of a certificate")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise click.UsageError(f"{host!r} is no name of a host, and no address") from None


def _keep(
    folder: Path, file: str, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Signed and written; a server that reads the files meanwhile goes on with those from before until both are there."""
    from cryptography.hazmat.primitives import hashes, serialization

    certificate = builder.sign(issuer_key, hashes.SHA256())
    certificate_path, key_path = _paths(folder, file)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(key_path, secret, 0o600)
    _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate


def _write(path: Path, data: bytes, mode: int) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    new.replace(path)


def _paths(folder: Path, file: str) -> tuple[Path, Path]:
    return folder / f"{file}.pem", folder / f"{file}-key.pem"
