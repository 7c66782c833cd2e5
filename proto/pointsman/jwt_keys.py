"""The public keys that JWTs are judged by: read from a file or a URL, chosen by `kid` and algorithm, exchanged when they rotate.

Whoever shows a JWT waits for no network: a key that is not known is asked for beside, and what was shown is refused meanwhile. Otherwise
made-up key ids would hold as many calls as somebody likes to send. Issuers publish a key before they sign with it, so the regular look
finds it in time; one that did not is found by the next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import structlog
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key

from pointsman.jwt import JwtError, JwtRules

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""With keys that are public on the issuer's side too: what is shared, such as HS256, and `none` never count."""

MAX_JWKS_BYTES = 256 * 1024
MAX_KEYS = 100
RSA_BITS = range(2048, 4096 + 1)
REFRESH_SECONDS = 300.0
# A file is looked at, and read when it has changed.
CHECK_FILE_SECONDS = 2.0
# After a failure, and between fetches for the sake of unknown keys, whoever shows them and however many.
RETRY_SECONDS = 10.0
FETCH_SECONDS = 10.0
START_SECONDS = 3.0
# Nothing that could be more when it is unpacked.
_HEADERS = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
# What there is to a public key; a private part that somebody published by mistake is not even looked at.
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")

log = structlog.get_logger()


class KeysError(Exception):
    """The keys could not be read; the message says why."""


class _Jwk(msgspec.Struct):
    kty: str
    kid: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None


class KeySet:
    """Those of one JWKS that can be used, by id and algorithm."""

    def __init__(self, keys: dict[tuple[str | None, str], list[Key]]) -> None:
        self._keys = keys

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key of this id, for this algorithm. Without an id: the only one for the algorithm."""
        if kid is not None:
            found = self._keys.get((kid, algorithm), [])
        else:
            found = [key for (_, fits), keys in self._keys.items() if fits == algorithm for key in keys]
        return found[0] if len(found) == 1 else None

    @property
    def ids(self) -> list[str]:
        """For the log."""
        return sorted({kid or "(no kid)" for kid, _ in self._keys})


def parse(data: bytes) -> KeySet:
    """A JWKS. Keys of other kinds, for other uses, too short, or damaged, are left out.

    Raises:
        KeysError: it is no JWKS.
    """
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any])["keys"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError):
        entries = None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeysError(f'it is no JWKS, {{"keys": [...]}} with at most {MAX_KEYS} keys')
    found: dict[tuple[str | None, str], list[Key]] = {}
    for entry in entries:
        try:
            described = msgspec.convert(entry, _Jwk)
            key = import_key({name: entry[name] for name in _PUBLIC if name in entry})
            algorithms = _algorithms(described, key)
        except Exception as error:  # noqa: BLE001 -- of a damaged key the library may raise anything; the others must not go with it
            log.info("a key of the JWKS cannot be used", problem=str(error) or type(error).__name__)
            continue
        for algorithm in algorithms:
            found.setdefault((described.kid, algorithm), []).append(key)
    return KeySet(found)


def _algorithms(described: _Jwk, key: Key) -> list[str]:
    """Those that the key may judge."""
    if described.use not in (None, "sig") or (described.key_ops is not None and "verify" not in described.key_ops):
        return []
    if isinstance(key, RSAKey):
        fits: tuple[str, ...] = ("RS256", "PS256") if key.public_key.key_size in RSA_BITS else ()
    elif isinstance(key, ECKey):
        fits = ("ES256",) if key.curve_name == "P-256" else ()
    else:
        fits = ("EdDSA",) if isinstance(key, OKPKey) and key.curve_name == "Ed25519" else ()
    return [algorithm for algorithm in fits if described.alg in (None, algorithm)]


class JwtKeys:
    """The newest keys that could be read. `generation` grows whenever they are others than before."""

    def __init__(self, rules: JwtRules) -> None:
        self._where = rules.jwks
        self._source = _Url(rules.jwks) if rules.is_url else _File(Path(rules.jwks))
        self._asked = asyncio.Event()
        self._keys: KeySet | None = None
        self._data = b""
        self._failed = False
        self.generation = 0

    @property
    def known(self) -> bool:
        """Whether there were any to read yet."""
        return self._keys is not None

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key, None when it is not known; it is then looked for beside."""
        found = self._keys.find(kid, algorithm) if self._keys is not None else None
        if found is None:
            self._asked.set()
        return found

    async def start(self) -> None:
        """Reads them for the first time. Raises JwtError when they are in a file that cannot be used."""
        try:
            await self._read(START_SECONDS)
        except KeysError as error:
            if isinstance(self._source, _File):
                raise JwtError(f"--jwt-jwks {self._where}: {error}") from None
            self._fail(error)

    async def run(self) -> None:
        """Reads them again and again, until cancelled: regularly, and sooner after a failure or when one is asked for that is not known."""
        asked_at = -math.inf
        while True:
            if await self._was_asked(min(RETRY_SECONDS, self._source.seconds) if self._failed else self._source.seconds):
                await asyncio.sleep(asked_at + min(RETRY_SECONDS, self._source.seconds) - time.monotonic())
                asked_at = time.monotonic()
            self._asked.clear()
            try:
                await self._read(FETCH_SECONDS)
            except KeysError as error:
                self._fail(error)

    async def _was_asked(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._asked.wait()
        return False

    async def _read(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                data = await self._source.read()
        except TimeoutError:
            raise KeysError(f"there was no answer within {seconds:g} s") from None
        if data != self._data:
            self._keys = parse(data)
            self._data = data
            self.generation += 1
            tell = log.info if self._keys.ids else log.warning
            tell("JWTs are judged by these keys from now on", jwks=self._where, keys=self._keys.ids)
        elif self._failed:
            log.info("the keys of JWTs can be read again", jwks=self._where)
        self._failed = False

    def _fail(self, error: KeysError) -> None:
        """Tells of the first of several failures."""
        if not self._failed:
            log.warning("the keys of JWTs cannot be read; those from before go on", jwks=self._where, problem=str(error))
        self._failed = True


class _File:
    """Read when it has changed."""

    seconds = CHECK_FILE_SECONDS

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._data = b""

    async def read(self) -> bytes:
        """All of it. Raises KeysError."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        try:
            stat = self._path.stat()
            mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if mark != self._mark:
                with self._path.open("rb") as file:
                    self._data = file.read(MAX_JWKS_BYTES + 1)
                self._mark = mark
        except OSError as error:
            raise KeysError(error.strerror or str(error)) from None
        return _bounded(self._data)


class _Url:
    """Fetched every time."""

    seconds = REFRESH_SECONDS

    def __init__(self, url: str) -> None:
        self._url = url

    async def read(self) -> bytes:
        """What is there. Raises KeysError."""
        try:
            # A client for each: minutes lie between them, and certificates that are trusted may have changed.
            async with (
                httpx2.AsyncClient(follow_redirects=False, timeout=FETCH_SECONDS) as client,
                client.stream("GET", self._url, headers=_HEADERS) as response,
            ):
                if response.status_code != 200:
                    raise KeysError(f"the answer was {response.status_code}, not 200")
                data = b""
                async for chunk in response.aiter_raw():
                    data = _bounded(data + chunk)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise KeysError(str(error) or type(error).__name__) from None
        return data


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_JWKS_BYTES:
        raise KeysError(f"there are more than {MAX_JWKS_BYTES} bytes")
    return data
