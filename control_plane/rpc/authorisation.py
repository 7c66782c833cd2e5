"""Which role may call what: one table, and what is not in it nobody may call. Asked before a request is decoded.

A token's limits to apps and environments are compared with the fields of the request that name them, once it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from control_plane.authority import Authority
from control_plane.model import Role, Token
from pointsman.errors import PermissionDenied
from pointsman.serving import Check

READERS = frozenset({Role.VIEWER, Role.DEVELOPER, Role.DEPLOYER, Role.ADMIN})
DEVELOPERS = frozenset({Role.DEVELOPER, Role.ADMIN})
DEPLOYERS = frozenset({Role.DEPLOYER, Role.ADMIN})
GATEWAYS = frozenset({Role.GATEWAY, Role.ADMIN})
ADMINS = frozenset({Role.ADMIN})

ROLES: dict[str, dict[str, frozenset[Role]]] = {
    "AppService": {"CreateApp": DEVELOPERS, "GetApp": READERS, "ListApps": READERS, "UpdateDraft": DEVELOPERS, "GetDraft": READERS},
    "ReleaseService": {
        "CreateRelease": DEVELOPERS,
        "GetRelease": READERS,
        "ListReleases": READERS,
        "DiffReleases": READERS,
        "PruneReleases": ADMINS,
    },
    "EnvironmentService": {
        "CreateEnvironment": ADMINS,
        "GetEnvironment": READERS,
        "ListEnvironments": READERS,
        "UpdateEnvironment": ADMINS,
        "DeleteEnvironment": ADMINS,
    },
    "DeploymentService": {
        "Deploy": DEPLOYERS,
        "DeployMany": DEPLOYERS,
        "Promote": DEPLOYERS,
        "Rollback": DEPLOYERS,
        "GetBinding": READERS,
        "ListBindings": READERS,
        "ListDeployments": READERS,
        "WatchBindings": READERS,
    },
    "GatewayService": {"Sync": GATEWAYS, "FetchSnapshot": GATEWAYS, "ReportExecutions": GATEWAYS, "ListGateways": READERS},
    "ExecutionService": {
        "ListExecutions": READERS,
        "GetExecution": READERS,
        "TailExecutions": READERS,
        "SummarizeExecutions": READERS,
        "GetRollbackReport": READERS,
    },
    "TokenService": {"CreateToken": ADMINS, "ListTokens": ADMINS, "RevokeToken": ADMINS},
    "ServerReflection": {"ServerReflectionInfo": frozenset(Role)},
}
"""Service, method -> who may call it."""

# Of no app and no environment in particular: a token's limits do not matter.
UNLIMITED = frozenset({"GetEnvironment", "ListEnvironments", "FetchSnapshot", "ReportExecutions", "ServerReflectionInfo"})
ENVIRONMENT_FIELDS = ("environment", "from_environment", "to_environment")
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
        _, service, name = method.split("/")
        allowed = ROLES.get(service.rpartition(".")[2], {}).get(name, frozenset())
        if caller.role not in allowed:
            takes = " or ".join(role.name for role in Role if role in allowed) or "nothing that there is"
            message = f"{name} takes a token of the role {takes}; this one has {caller.role.name}."
            raise PermissionDenied(message, role=takes, has=caller.role.name, method=name)
        if name == "CreateRelease":
            return lambda request: _check_release(caller, request)
        if name in UNLIMITED or not (caller.apps or caller.environments):
            return None
        return lambda request: _check_limits(caller, name, request)


def _check_release(caller: Token, request: Any) -> None:
    if request.deploy_to and caller.role is not Role.ADMIN:
        raise PermissionDenied(
            "Creating a release and deploying it in one call takes a token of the role ADMIN; create it, then have a DEPLOYER deploy it.",
            role="ADMIN",
            has=caller.role.name,
            environment=request.deploy_to,
        )
    if request.deploy_to:
        _check_all("environment", [request.deploy_to], caller.environments)
    _check_limits(caller, "CreateRelease", request)


def _check_limits(caller: Token, method: str, request: Any) -> None:
    """Raises PermissionDenied when the request is not wholly within the token's apps and environments."""
    if method == "Sync":
        if request.WhichOneof("kind") == "hello":
            _check_all("apps", request.hello.apps, caller.apps)
            _check_all("environments", request.hello.environments, caller.environments)
        return
    parts = (request, *getattr(request, "targets", ()))
    _check_all("app", _named(parts, ("app",)), caller.apps)
    if any(field in part.DESCRIPTOR.fields_by_name for part in parts for field in ENVIRONMENT_FIELDS):
        _check_all("environment", _named(parts, ENVIRONMENT_FIELDS), caller.environments)


def _named(parts: Iterable[Any], fields: Iterable[str]) -> list[str]:
    """What a request, or its targets, name in these fields."""
    return [getattr(part, field) for part in parts for field in fields if field in part.DESCRIPTOR.fields_by_name]


def _check_all(what: str, given: Sequence[str], allowed: tuple[str, ...]) -> None:
    """A request that names none is one about all."""
    if not allowed:
        return
    told = ", ".join(allowed)
    for one in given or [""]:
        if one not in allowed:
            named = f"{what} {one!r}" if one else f"every {what.removesuffix('s')}: name one in {what}"
            metadata: dict[str, Any] = {what: one}
            raise PermissionDenied(f"This token is not for {named}; it is for {told}.", **metadata)
