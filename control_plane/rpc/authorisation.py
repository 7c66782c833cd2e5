"""Lets callers in, for GrpcServer: before a request is decoded by its role, then by what it names."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from control_plane.authority import Authority
from control_plane.model import Token
from control_plane.roles import check_method, check_request, has_limits
from pointsman.serving_calls import Check

CALLER: ContextVar[Token | None] = ContextVar("caller", default=None)
"""Of the call that runs; None while there are no tokens."""


class Authorisation:
    """For GrpcServer."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def __call__(self, method: str, metadata: Mapping[str, str]) -> Check | None:
        """Lets the caller in; what its requests are shown to when its token is limited.

        Raises:
            Unauthenticated: it shows no token that counts.
            PermissionDenied: its role may not call this.
        """
        caller = self._authority.caller(metadata.get("authorization", ""))
        CALLER.set(caller)
        if caller is None:
            return None
        name = method.rpartition("/")[2]
        check_method(caller, name)
        return (lambda request: check_request(caller, name, request)) if has_limits(caller, name) else None
