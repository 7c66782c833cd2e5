"""Certificates of both servers and of whoever calls them: read, checked as a peer would, and noticed when their files change.

Knows nothing of gRPC. A server's ports ask ServerTls for what counts now at every handshake, so that connections which exist go on
with what they began with; ClientTls is read for every new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from pointsman.settings import Address

CHECK_SECONDS = 2.0
DIAGNOSE_SECONDS = 2.0
SOON_SECONDS = 14 * 86_400.0
WARN_AGAIN_SECONDS = 86_400.0
MAX_FILE_BYTES = 1024 * 1024
_WANTS_TLS = (
    "{} speaks TLS, and was spoken to in plain text; name the authority of its certificate by --ca (a gateway's is --control-plane-ca)"
)
_SPEAKS_PLAIN = "{} does not speak TLS, and was spoken to over TLS; it is another port, or its server has no certificate"
_WANTS_CERTIFICATE = (
    "{} hung up on a caller without a certificate: it asks for one (mTLS), by --certificate and --key "
    "(a gateway's are --control-plane-certificate and --control-plane-key)"
)
_OTHER_CERTIFICATE = "{} hung up on the certificate that was shown: it is not of an authority that it knows, or has expired"

log = structlog.get_logger()


class TlsError(Exception):
    """Certificates that cannot be used; the message is one line that names the file, what is wrong, and what to do."""


@dataclass(frozen=True, slots=True)
class Pems:
    """The bytes of the files, as they were at one moment. Empty where there is no such file."""

    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    ca: bytes = b""
    ends: Mapping[Path, float] = field(default_factory=dict)
    """Until when the certificate of each file counts, in seconds since 1970; of several authorities, the last."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a certificate with its chain, its key, and the authorities that others are judged by are kept, each in PEM."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def read(self, purpose: str) -> Pems:
        """The files, checked; `purpose` is what the certificate is for: `server` or `client`.

        Raises:
            TlsError: one is missing, damaged or expired, or the key is another certificate's.
        """
        before = self.marks()
        certificate, key, ca = (_bytes(path) for path in (self.certificate, self.key, self.ca))
        ends: dict[Path, float] = {}
        if self.ca is not None:
            ends[self.ca] = _check_ca(self.ca)
        if self.certificate is not None and self.key is not None:
            ends[self.certificate] = _check_pair(self.certificate, self.key, purpose)
        if self.marks() != before:
            raise TlsError(f"{self.certificate or self.ca} changed while it was read")
        return Pems(certificate, key, ca, ends)

    @property
    def paths(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.certificate, self.key, self.ca) if path is not None]

    def marks(self) -> list[tuple[int, int, int] | None]:
        """What differs once a file was replaced or written to; None for one that is not there."""
        return [_mark(path) for path in self.paths]


def server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """Of the settings --tls-...; None when there are none. Raises TlsError."""
    _check_both("--tls-", certificate, key)
    if certificate is None and client_ca is not None:
        raise TlsError("--tls-client-ca needs --tls-certificate and --tls-key too")
    return ServerTls(TlsFiles(certificate, key, client_ca)) if certificate is not None else None


def client_tls(named: str, certificate: Path | None, key: Path | None, ca: Path | None) -> ClientTls | None:
    """Of settings whose names begin with `named`, such as `--control-plane-`; None when there are none. Raises TlsError."""
    _check_both(named, certificate, key)
    if certificate is not None and ca is None:
        raise TlsError(f"{named}certificate needs {named}ca too: the authority that the server's certificate is of")
    return ClientTls(TlsFiles(certificate, key, ca)) if ca is not None else None


def _check_both(named: str, certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        has, lacks = ("certificate", "key") if key is None else ("key", "certificate")
        raise TlsError(f"{named}{has} needs {named}{lacks} too")


class _Watched:
    """Files that are read again when they have changed. Those that cannot be used are told, once, and what was read before goes on.

    What expires soon, or has, is told at the first look, when it was read again, and once a day.
    """

    def __init__(self, files: TlsFiles, purpose: str) -> None:
        """Raises TlsError when the files cannot be used."""
        self.files = files
        self._purpose = purpose
        self._marks = files.marks()
        self.pems = files.read(purpose)
        self._warned_at = -math.inf

    @property
    def first_end(self) -> float:
        """When the first of the certificates, or the authorities, that count now expires, in seconds since 1970."""
        return min(self.pems.ends.values())

    def check(self) -> None:
        """Takes changed files, and tells of what ends soon."""
        marks = self.files.marks()
        if marks != self._marks:
            self._marks = marks
            self._read_again()
        now = time.time()
        # Also when the clock was set back.
        if abs(now - self._warned_at) >= WARN_AGAIN_SECONDS:
            self._warned_at = now
            _warn_of_ends(self.pems.ends, now)

    def _read_again(self) -> None:
        try:
            self._take(self.files.read(self._purpose))
        except TlsError as error:
            log.warning("changed certificates cannot be used; those from before go on", problem=str(error))
        else:
            self._warned_at = -math.inf
            log.info("new connections use changed certificates", files=[str(path) for path in self.files.paths])

    def _take(self, pems: Pems) -> None:
        self.pems = pems


class ServerTls(_Watched):
    """What the ports of a server show and ask for. With `files.ca` callers must show a certificate of one of those authorities (mTLS)."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError when the files cannot be used."""
        super().__init__(files, "server")
        self._context = _server_context(files)

    @property
    def asks_for_certificates(self) -> bool:
        """Whether callers must show one."""
        return self.files.ca is not None

    def context(self) -> ssl.SSLContext:
        """For a listener; each of its handshakes goes on with what counts then."""
        context = _server_context(self.files)

        def take_newest(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._context

        context.sni_callback = take_newest
        return context

    async def watch(self) -> None:
        """Looks at the files every few seconds, until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(CHECK_SECONDS)

    def _take(self, pems: Pems) -> None:
        self._context = _server_context(self.files)
        self.pems = pems


class ClientTls(_Watched):
    """What a caller judges a server by, `files.ca`, and what it shows, if anything."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError when the files cannot be used."""
        super().__init__(files, "client")

    def context(self) -> ssl.SSLContext:
        """For a connection of our own. Raises TlsError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, _given(self.files.ca))
        if self.files.certificate is not None:
            _load(context, self.files.certificate, self.files.key)
        return context


def why_not(address: Address, tls: ClientTls | None) -> str:
    """Why a gRPC port cannot be talked to, as far as TLS is the cause; else an empty text. Connects to it, for a few seconds at most.

    Without `tls` the question is whether the port would rather have had TLS.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if tls is None else tls.context()
        if tls is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(address, DIAGNOSE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as connection,
        ):
            # Over TLS 1.3 a server looks at the caller's certificate only when the caller believes that all is well.
            if tls is None or connection.recv(1):
                return _WANTS_TLS.format(address) if tls is None else ""
            return (_OTHER_CERTIFICATE if tls.files.certificate else _WANTS_CERTIFICATE).format(address)
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {address} is not accepted: {error.verify_message.rstrip('.')}"
    except ssl.SSLError as error:
        if tls is None:
            # It knows what an alert is.
            return _WANTS_TLS.format(address) if "ALERT" in str(error) else ""
        if "ALERT" in str(error):
            return (_OTHER_CERTIFICATE if tls.files.certificate else _WANTS_CERTIFICATE).format(address)
        return _SPEAKS_PLAIN.format(address) if error.reason == "WRONG_VERSION_NUMBER" else ""
    except (OSError, ValueError, TlsError):
        # It cannot be reached, is no name, or our files have gone meanwhile, which is told elsewhere.
        return ""


def _given(path: Path | None) -> Path:
    assert path is not None, "looked at when the settings were read"
    return path


def _bytes(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from error


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _warn_of_ends(ends: Mapping[Path, float], now: float) -> None:
    for path, end in ends.items():
        if end - now < SOON_SECONDS:
            moment = datetime.fromtimestamp(end, UTC).isoformat()
            told = "a certificate expires soon; replace its file" if end > now else "a certificate has expired; replace its file"
            log.warning(told, file=str(path), expires=moment)


def _check_ca(path: Path) -> float:
    """When the last of them expires. Raises TlsError when none of them counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, path)
    found = context.get_ca_certs()
    if not found:
        raise TlsError(f"{path} holds no certificate of an authority; give the one that issued the certificates of the other side")
    end, last = max((ssl.cert_time_to_seconds(str(one["notAfter"])), str(one["notAfter"])) for one in found)
    if end <= time.time():
        raise TlsError(f"every certificate of an authority in {path} has expired, the last one at {last}")
    return end


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(f"{path} holds no certificates in PEM ({_words(error)})") from error
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from error


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def no_passphrase() -> str:
        raise TlsError(f"{key} is encrypted; give a key without a passphrase")

    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the key {key} does not belong to the certificate {certificate}; give those that were made together") from error
        raise TlsError(f"{certificate} and {key} are no certificate and its key in PEM ({_words(error)})") from error
    except OSError as error:
        raise TlsError(f"cannot read {certificate} or {key}: {error.strerror}") from error


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "nothing of the kind in it").lower().replace("_", " ")


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, _given(files.certificate), files.key)
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, files.ca)
        # A session that is resumed would be let in by what was trusted when it began. TLS 1.2 cannot be kept from resuming.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _check_pair(certificate: Path, key: Path, purpose: str) -> float:
    """When it expires. Raises TlsError when a peer would not take it: a handshake with ourselves in which it alone is trusted."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        _load(context, certificate, key)
    judge = client if purpose == "server" else server
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _trust(judge, certificate)
    try:
        ends = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        raise TlsError(f"the certificate {certificate} does not count as that of a {purpose}: {error.verify_message}") from error
    shown = next(found for found in (end.getpeercert() for end in ends) if found)
    return ssl.cert_time_to_seconds(str(shown["notAfter"]))


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> list[ssl.SSLObject]:
    """In memory; both ends. Raises ssl.SSLError."""
    upwards, downwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(downwards, upwards), server.wrap_bio(upwards, downwards, server_side=True)]
    left = list(ends)
    while left:
        for one in list(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.do_handshake()
                left.remove(one)
    return ends
