"""Whom the certificate of a caller names, where callers show one (mTLS)."""

from __future__ import annotations

from typing import Any

from pointsman.errors import PermissionDenied

# Names of grpc's own, of what it has verified; a caller without a certificate has none of them.
_COMMON_NAME, _DNS_NAME, _CERTIFICATE = "x509_common_name", "peer_dns", "x509_pem_cert"


def check_gateway_id(gateway_id: str, context: Any) -> None:
    """Nobody speaks for another gateway.

    Raises:
        PermissionDenied: the caller's certificate is one of somebody else.
    """
    known = context.auth_context()
    if _CERTIFICATE not in known:
        return
    names = [name.decode(errors="replace") for kind in (_COMMON_NAME, _DNS_NAME) for name in known.get(kind, ())]
    if gateway_id not in names:
        named = ", ".join(repr(name) for name in dict.fromkeys(names)) or "nobody"
        raise PermissionDenied(
            f"The certificate names {named}, and the gateway calls itself {gateway_id!r}: its --gateway-id must be the common name or a "
            "DNS name of the certificate that it shows.",
            gateway_id=gateway_id,
            certificate=named,
        )
