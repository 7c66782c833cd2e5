"""The secret that a caller shows: `pm_<token_id>_<secret part>`, and what is kept of it.

The token_id is 16 characters of a-z and 2-7 (80 random bits), the secret part 52 of them (32 random bytes in base32). Both planes keep
only the SHA-256 of the whole. That is enough without a slow hash: nobody can go through 2^256 secrets.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

PREFIX = "pm_"
SECRET_BYTES = 32
ID_BYTES = 10
_SECRET = re.compile(r"pm_([a-z2-7]{16})_[a-z2-7]{52}")
_BEARER = "bearer "


def new_secret() -> str:
    """A secret that nobody has had before."""
    return f"{PREFIX}{_base32(secrets.token_bytes(ID_BYTES))}_{_base32(secrets.token_bytes(SECRET_BYTES))}"


def token_id_of(secret: str) -> str | None:
    """The part that may be shown; None when the text does not look like a secret."""
    found = _SECRET.fullmatch(secret) if len(secret) < 100 else None
    return found[1] if found else None


def hash_of(secret: str) -> bytes:
    """What is kept of it, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def matches(secret: str, secret_hash: bytes) -> bool:
    """Whether it is the secret that has this hash; takes as long whatever the answer."""
    return hmac.compare_digest(hash_of(secret), secret_hash)


def secret_of(authorization: str) -> str:
    """What an `authorization` header shows; empty when it is absent or not `Bearer ...`."""
    return authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else ""


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
