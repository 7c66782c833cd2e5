"""Which role may call what: one table, and what is not in it nobody may call. For both doors of the control plane.

A token's limits to apps and environments are compared with the fields of the request that name them; the console makes the same
requests, and asks the same questions of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from control_plane.model import Role, Token
from pointsman.errors import PermissionDenied

READERS = frozenset({Role.VIEWER, Role.DEVELOPER, Role.DEPLOYER, Role.ADMIN})
DEVELOPERS = frozenset({Role.DEVELOPER, Role.ADMIN})
DEPLOYERS = frozenset({Role.DEPLOYER, Role.ADMIN})
GATEWAYS = frozenset({Role.GATEWAY, Role.ADMIN})
ADMINS = frozenset({Role.ADMIN})
TRIGGERERS = frozenset({Role.TRIGGER, Role.ADMIN})
"""Whom gateways let in with a trigger, as far as the role goes."""

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
    "GatewayService": {
        "Sync": GATEWAYS,
        "FetchSnapshot": GATEWAYS,
        "ReportExecutions": GATEWAYS,
        "ListGateways": READERS,
        "RebalanceGateways": ADMINS,
    },
    "ExecutionService": {
        "ListExecutions": READERS,
        "GetExecution": READERS,
        "TailExecutions": READERS,
        "SummarizeExecutions": READERS,
        "GetRollbackReport": READERS,
    },
    "TokenService": {"CreateToken": ADMINS, "ListTokens": ADMINS, "RevokeToken": ADMINS},
    "AuditService": {"ListAuditEntries": ADMINS},
    "ServerReflection": {"ServerReflectionInfo": frozenset(Role)},
}
"""Service, method -> who may call it."""

# Of no app and no environment in particular: a token's limits do not matter.
UNLIMITED = frozenset({"GetEnvironment", "ListEnvironments", "FetchSnapshot", "ReportExecutions", "ServerReflectionInfo"})
ENVIRONMENT_FIELDS = ("environment", "from_environment", "to_environment")
_ROLES_OF = {method: roles for found in ROLES.values() for method, roles in found.items()}


def check_method(caller: Token, method: str) -> None:
    """Raises PermissionDenied when the caller's role may not call it. Names of methods are unique over all services."""
    allowed = _ROLES_OF.get(method, frozenset())
    if caller.role not in allowed:
        takes = " or ".join(role.name for role in Role if role in allowed) or "nothing that there is"
        message = f"{method} takes a token of the role {takes}; this one has {caller.role.name}."
        raise PermissionDenied(message, role=takes, has=caller.role.name, method=method)


def check_place(caller: Token, app: str, environment: str = "") -> None:
    """Raises PermissionDenied when the caller may not look there; an empty app is every app, an empty environment is not asked about."""
    _check_all("app", [app], caller.apps)
    if environment:
        _check_all("environment", [environment], caller.environments)


def has_limits(caller: Token, method: str) -> bool:
    """Whether check_request has something to say of such a call."""
    return method == "CreateRelease" or (method not in UNLIMITED and bool(caller.apps or caller.environments))


def check_request(caller: Token, method: str, request: Any) -> None:
    """Raises PermissionDenied when the request is not wholly within the token's apps and environments."""
    if method == "Sync":
        if request.WhichOneof("kind") == "hello":
            _check_all("apps", request.hello.apps, caller.apps)
            _check_all("environments", request.hello.environments, caller.environments)
        return
    if method == "CreateRelease":
        _check_deploy_to(caller, request.deploy_to)
    if not has_limits(caller, method):
        return
    parts = (request, *getattr(request, "targets", ()))
    _check_all("app", _named(parts, ("app",)), caller.apps)
    if any(field in part.DESCRIPTOR.fields_by_name for part in parts for field in ENVIRONMENT_FIELDS):
        _check_all("environment", _named(parts, ENVIRONMENT_FIELDS), caller.environments)


def _check_deploy_to(caller: Token, environment: str) -> None:
    if not environment:
        return
    if caller.role is not Role.ADMIN:
        raise PermissionDenied(
            "Creating a release and deploying it in one call takes a token of the role ADMIN; create it, then have a DEPLOYER deploy it.",
            role="ADMIN",
            has=caller.role.name,
            environment=environment,
        )
    _check_all("environment", [environment], caller.environments)


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
