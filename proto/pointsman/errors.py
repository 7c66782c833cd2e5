"""Every refusal that callers see: one class per reason of proto/pointsman/v1/errors.proto. Knows nothing of gRPC or HTTP.

PointsmanError
 ├─ InvalidField, InvalidInput
 ├─ Unauthenticated, PermissionDenied
 ├─ AppNotFound, ReleaseNotFound, EnvironmentNotFound, EndpointNotFound, ExecutionNotFound, TokenNotFound, NoReleaseDeployed
 ├─ ReleaseConflict, AppExists, EnvironmentExists
 ├─ RevisionConflict
 ├─ NothingToRollBack, NeverLiveHere, EnvironmentInUse, ReleaseRejected, ReleaseNotLoaded
 ├─ TooLarge, RateLimited
 ├─ Behind, NotSynced, StoreUnavailable, ShuttingDown
 ├─ StepFailed, StepTimeout
 └─ Internal

Messages name the thing, the value and the remedy. Metadata holds every value of the message, as strings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pointsman.v1.errors_pb2 import Error

Reason = Error.Reason
MAX_NEAR_IDS = 3


@dataclass(frozen=True)
class Violation:
    """One rule that one field breaks. `field` is the path as the author wrote it; `description` has the value and the remedy."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class PointsmanError(Exception):
    """A refusal. `reason`, `grpc_code` (name of the status) and `http_status` belong to the class; message and metadata to the case."""

    reason: ClassVar[Error.Reason.ValueType]
    grpc_code: ClassVar[str]
    http_status: ClassVar[int]
    resource_type: ClassVar[str | None] = None
    """What ResourceInfo names, for the errors that are about one resource."""

    def __init__(
        self, message: str, *, violations: Sequence[Violation] = (), retry_after_seconds: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds
        self.metadata = {key: _text(value) for key, value in metadata.items()}

    @property
    def reason_name(self) -> str:
        """E.g. `RELEASE_NOT_FOUND`."""
        return Reason.Name(self.reason)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(str(item) for item in value)
    return str(value)


def near(wanted: str, known: Iterable[str]) -> list[str]:
    """The known ids that look most like the wanted one, best first, at most three."""
    return difflib.get_close_matches(wanted, list(known), n=MAX_NEAR_IDS, cutoff=0.5)


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """` Did you mean a, b?`, or nothing when no known id looks like the wanted one."""
    ids = near(wanted, known)
    return f" Did you mean {', '.join(ids)}?" if ids else ""


class _Violations(PointsmanError):
    """Several violations, told together."""

    def __init__(self, violations: Sequence[Violation], **metadata: object) -> None:
        first = str(violations[0])
        more = f" (and {len(violations) - 1} more, see the details)" if len(violations) > 1 else ""
        super().__init__(first + more, violations=violations, retry_after_seconds=None, **metadata)
        self.metadata.setdefault("violations", str(len(violations)))
        self.metadata.setdefault("field", violations[0].field)


class InvalidField(_Violations):
    """Fields of a request break their rules."""

    reason, grpc_code, http_status = Reason.INVALID_FIELD, "INVALID_ARGUMENT", 400


class InvalidInput(_Violations):
    """A trigger's input does not satisfy the endpoint's schema, or is not JSON."""

    reason, grpc_code, http_status = Reason.INVALID_INPUT, "INVALID_ARGUMENT", 400


class Unauthenticated(PointsmanError):
    """No token, or one that does not count."""

    reason, grpc_code, http_status = Reason.UNAUTHENTICATED, "UNAUTHENTICATED", 401


class PermissionDenied(PointsmanError):
    """The token does not allow this."""

    reason, grpc_code, http_status = Reason.PERMISSION_DENIED, "PERMISSION_DENIED", 403


class _NotFound(PointsmanError):
    grpc_code, http_status = "NOT_FOUND", 404


class AppNotFound(_NotFound):
    """There is no such app."""

    reason, resource_type = Reason.APP_NOT_FOUND, "app"

    def __init__(self, app: str, known: Iterable[str] = ()) -> None:
        known = list(known)
        remedy = did_you_mean(app, known) or " Create it with `pointsman app push FILE` or AppService.CreateApp."
        super().__init__(f"There is no app {app!r}.{remedy}", app=app, near=near(app, known))


class ReleaseNotFound(_NotFound):
    """There is no such release, since `pruned` no more, or no snapshot with such a digest."""

    reason, resource_type = Reason.RELEASE_NOT_FOUND, "release"

    def __init__(self, app: str, release: str, known: Iterable[str] = (), *, pruned: str = "") -> None:
        known = list(known)
        if pruned:
            gone = f"Release {release!r} of app {app!r} was pruned at {pruned}; its tag is not given again."
            super().__init__(gone, app=app, release=release, pruned=pruned)
            return
        of_app = f"App {app!r} has no release {release!r}." if app else f"There is no release with digest {release}."
        remedy = did_you_mean(release, known) or " `pointsman release list` shows what there is."
        super().__init__(of_app + remedy, app=app, release=release, near=near(release, known))


class EnvironmentNotFound(_NotFound):
    """There is no such environment."""

    reason, resource_type = Reason.ENVIRONMENT_NOT_FOUND, "environment"

    def __init__(self, environment: str, known: Iterable[str] = ()) -> None:
        known = list(known)
        remedy = did_you_mean(environment, known) or (f" There are {', '.join(known)}." if known else "")
        super().__init__(f"There is no environment {environment!r}.{remedy}", environment=environment, near=near(environment, known))


class EndpointNotFound(_NotFound):
    """The active release has no such endpoint."""

    reason, resource_type = Reason.ENDPOINT_NOT_FOUND, "endpoint"


class ExecutionNotFound(_NotFound):
    """There is no such execution on record."""

    reason, resource_type = Reason.EXECUTION_NOT_FOUND, "execution"


class TokenNotFound(_NotFound):
    """There is no such token."""

    reason, resource_type = Reason.TOKEN_NOT_FOUND, "token"


class NoReleaseDeployed(_NotFound):
    """Nothing is bound there."""

    reason, resource_type = Reason.NO_RELEASE_DEPLOYED, "binding"

    def __init__(self, app: str, environment: str, *, bound: Iterable[tuple[str, str]] = (), moment: str = "") -> None:
        """`bound`: (app, environment) of what is bound, to name what looks alike. `moment`: in the past, when nothing was."""
        if moment:
            none = f"App {app!r} had no release deployed to {environment!r} at {moment}."
            super().__init__(none, app=app, environment=environment, moment=moment)
            return
        environments: dict[str, list[str]] = {}
        for known_app, known_environment in bound:
            environments.setdefault(known_app, []).append(known_environment)
        known = environments.get(app, environments)
        alike = near(environment if app in environments else app, known)
        remedy = did_you_mean(environment if app in environments else app, known)
        super().__init__(
            f"App {app!r} has no release deployed to {environment!r}.{remedy} "
            f"Deploy one: `pointsman deploy TAG --to {environment} --app {app}`.",
            app=app,
            environment=environment,
            near=alike,
        )


class _AlreadyExists(PointsmanError):
    grpc_code, http_status = "ALREADY_EXISTS", 409


class ReleaseConflict(_AlreadyExists):
    """The tag is taken by other content, or was that of a release that was pruned, whatever its content."""

    reason, resource_type = Reason.RELEASE_CONFLICT, "release"

    def __init__(self, app: str, tag: str, digest: str, existing_digest: str, *, pruned: bool = False) -> None:
        there = "was pruned" if pruned else "exists with other content"
        super().__init__(
            f"Release {tag!r} of app {app!r} {there}: it has {existing_digest}, this is {digest}. "
            "A release never changes; choose another tag.",
            app=app,
            tag=tag,
            digest=digest,
            existing_digest=existing_digest,
        )


class AppExists(_AlreadyExists):
    """The app id is taken."""

    reason, resource_type = Reason.APP_EXISTS, "app"

    def __init__(self, app: str) -> None:
        super().__init__(f"There is an app {app!r} already; choose another id.", app=app)


class EnvironmentExists(_AlreadyExists):
    """The environment id is taken."""

    reason, resource_type = Reason.ENVIRONMENT_EXISTS, "environment"

    def __init__(self, environment: str) -> None:
        super().__init__(f"There is an environment {environment!r} already; choose another id.", environment=environment)


class RevisionConflict(PointsmanError):
    """What was expected is not what is there."""

    reason, grpc_code, http_status = Reason.REVISION_CONFLICT, "ABORTED", 409


class _Precondition(PointsmanError):
    grpc_code, http_status = "FAILED_PRECONDITION", 412


class NothingToRollBack(_Precondition):
    """No earlier release is left to walk back to."""

    reason = Reason.NOTHING_TO_ROLL_BACK

    def __init__(self, app: str, environment: str, release: str) -> None:
        super().__init__(
            f"Nothing was live in {environment!r} before release {release!r} of app {app!r}. "
            "Deploy the release you want, or name one that was live there before (to_release, `--to`).",
            app=app,
            environment=environment,
            release=release,
        )


class NeverLiveHere(_Precondition):
    """The release to roll back to was never live there."""

    reason = Reason.NEVER_LIVE_HERE

    def __init__(self, app: str, environment: str, release: str) -> None:
        super().__init__(
            f"Release {release!r} of app {app!r} was never live in {environment!r}, so there is nothing to roll back to. "
            f"To make it live use Deploy: `pointsman deploy {release} --to {environment} --app {app}`.",
            app=app,
            environment=environment,
            release=release,
        )


class EnvironmentInUse(_Precondition):
    """The environment still has bindings."""

    reason = Reason.ENVIRONMENT_IN_USE

    def __init__(self, environment: str, apps: Sequence[str]) -> None:
        super().__init__(
            f"Environment {environment!r} still serves {', '.join(apps)}. Delete it with force to unbind them too.",
            environment=environment,
            apps=apps,
        )


class ReleaseRejected(_Precondition):
    """Connected gateways cannot run the release; nothing was flipped."""

    reason = Reason.RELEASE_REJECTED


class ReleaseNotLoaded(_Precondition):
    """The pinned release is not loaded on this gateway."""

    reason = Reason.RELEASE_NOT_LOADED


class TooLarge(PointsmanError):
    """Something is over its limit."""

    reason, grpc_code, http_status = Reason.TOO_LARGE, "RESOURCE_EXHAUSTED", 413

    def __init__(self, what: str, *, limit: int, given: int | str, unit: str = "bytes") -> None:
        super().__init__(f"{what} has {given} {unit}; at most {limit} are allowed.", what=what, limit=limit, given=given, unit=unit)


class RateLimited(PointsmanError):
    """Too much in too short a time."""

    reason, grpc_code, http_status = Reason.RATE_LIMITED, "RESOURCE_EXHAUSTED", 429


class _Unavailable(PointsmanError):
    """A repeat may succeed."""

    grpc_code, http_status = "UNAVAILABLE", 503
    default_retry_after_seconds: ClassVar[float] = 1.0

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, **metadata: object) -> None:
        after = self.default_retry_after_seconds if retry_after_seconds is None else retry_after_seconds
        super().__init__(message, violations=(), retry_after_seconds=after, **metadata)


class Behind(_Unavailable):
    """This gateway has not reached the revision that was asked for."""

    reason = Reason.BEHIND


class NotSynced(_Unavailable):
    """This gateway has never heard what it shall serve."""

    reason = Reason.NOT_SYNCED


class StoreUnavailable(_Unavailable):
    """The store cannot be reached or written; nothing was changed, unless the message says that this is not known."""

    reason = Reason.STORE_UNAVAILABLE


class ShuttingDown(_Unavailable):
    """This process is draining."""

    reason = Reason.SHUTTING_DOWN


class StepFailed(PointsmanError):
    """A step failed."""

    reason, grpc_code, http_status = Reason.STEP_FAILED, "ABORTED", 502


class StepTimeout(PointsmanError):
    """A step, or the whole trigger, ran out of time."""

    reason, grpc_code, http_status = Reason.STEP_TIMEOUT, "DEADLINE_EXCEEDED", 504


class Internal(PointsmanError):
    """A defect of ours; says no more than the id under which the log has the cause."""

    reason, grpc_code, http_status = Reason.INTERNAL, "INTERNAL", 500

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"Something went wrong on our side. Report request id {request_id}; the server's log has the cause under it.",
            request_id=request_id,
        )


def all_errors() -> list[type[PointsmanError]]:
    """Every class that has a reason, in the order of the reasons."""
    found, stack = [], list(PointsmanError.__subclasses__())
    while stack:
        cls = stack.pop()
        stack.extend(cls.__subclasses__())
        if "reason" in vars(cls):
            found.append(cls)
    return sorted(found, key=lambda cls: cls.reason)
