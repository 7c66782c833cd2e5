"""An issuer of JWTs: keys that it publishes, and what it signs with them."""

from __future__ import annotations

import base64
import json
import time
import warnings
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

ISSUER, AUDIENCE = "https://issuer.example.com", "pointsman"
KINDS: dict[str, Any] = {
    "RS256": lambda kid: RSAKey.generate_key(2048, {"kid": kid}),
    "PS256": lambda kid: RSAKey.generate_key(2048, {"kid": kid}),
    "ES256": lambda kid: ECKey.generate_key("P-256", {"kid": kid}),
    "EdDSA": lambda kid: OKPKey.generate_key("Ed25519", {"kid": kid}),
}


def base64url(data: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def claims(**changed: Any) -> dict[str, Any]:
    """Of an admin, for an hour. What is changed to None is left out."""
    now = int(time.time())
    all_of_them = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "pointsman_role": "admin",
        **changed,
    }
    return {name: value for name, value in all_of_them.items() if value is not None}


def signed(key: Key, payload: bytes | dict[str, Any], algorithm: str = "ES256", **header: Any) -> str:
    """A JWT, by whatever key and with whatever header."""
    told = {"alg": algorithm, "typ": "JWT", "kid": key.kid, **header}
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with warnings.catch_warnings():
        # joserfc advises against EdDSA in favour of Ed25519, which issuers hardly write yet.
        warnings.simplefilter("ignore")
        registry = jws.JWSRegistry(strict_check_header=False, algorithms=[algorithm])
        return jws.serialize_compact({name: value for name, value in told.items() if value is not None}, data, key, registry=registry)


def jwks(*keys: Key, **more: Any) -> bytes:
    """What is published of them."""
    return json.dumps({"keys": [{**key.as_dict(private=False), **more} for key in keys]}).encode()
