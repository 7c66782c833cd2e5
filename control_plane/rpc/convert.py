"""From the model to messages, and from calls to what services want to know of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane import model
from control_plane.authority import actor_of
from control_plane.rpc.authorisation import CALLER
from control_plane.service.calls import ANONYMOUS, Call, attempt_of, fingerprint_of
from control_plane.service.deployments import Deployed
from control_plane.service.paging import PageRequest
from control_plane.service.releases import ReleaseInfo
from pointsman.errors import InvalidField, Violation
from pointsman.v1.apps_pb2 import App
from pointsman.v1.config_pb2 import AppConfig
from pointsman.v1.deployments_pb2 import Binding, Deployment, Rollout
from pointsman.v1.environments_pb2 import Environment
from pointsman.v1.environments_pb2 import StalenessPolicy as StalenessPolicyMessage
from pointsman.v1.gateways_pb2 import Gateway
from pointsman.v1.releases_pb2 import Release
from pointsman.v1.tokens_pb2 import RateLimit, Token, TokenVerifier

ACTOR_METADATA = "x-actor"
MAX_ACTOR_CHARS = 128


def timestamp(moment: datetime | None) -> Timestamp | None:
    """None stays absent."""
    if moment is None:
        return None
    found = Timestamp()
    found.FromDatetime(moment.astimezone(UTC))
    return found


def moment(request: Message, field: str) -> datetime | None:
    """A Timestamp of a request, None when it is absent. Raises InvalidField when it is no moment."""
    if not request.HasField(field):
        return None
    try:
        found: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidField([Violation(field, f"is no moment: {error}")]) from error
    return found


def duration(seconds: float) -> Duration:
    """Seconds as a Duration, to the microsecond."""
    found = Duration()
    found.FromTimedelta(timedelta(seconds=seconds))
    return found


def actor_of_call(context: Any) -> str:
    """Whose token was shown; while there are no tokens callers may name themselves, in the metadata `x-actor`."""
    caller = CALLER.get()
    if caller is not None:
        return actor_of(caller)
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get(ACTOR_METADATA, "")).strip()[:MAX_ACTOR_CHARS] or ANONYMOUS


def token_id_of_call() -> str:
    """Of the token that was shown; empty when none was."""
    caller = CALLER.get()
    return caller.token_id if caller is not None else ""


def peer_of(context: Any) -> str:
    """Address and port that the call came from."""
    return unquote(str(context.peer())).removeprefix("ipv4:").removeprefix("ipv6:")


def attempt_of_call(request: Message, context: Any) -> model.Attempt:
    """Who wants what, for the audit log."""
    return attempt_of(request, actor=actor_of_call(context), token_id=token_id_of_call(), peer=peer_of(context))


def call_of(request: Any, context: Any) -> Call:
    """Who asks and how, of a mutation."""
    return Call(
        actor=actor_of_call(context),
        request_id=request.request_id,
        fingerprint=fingerprint_of(request) if request.request_id else "",
        validate_only=request.validate_only,
        attempt=attempt_of_call(request, context),
    )


def page_of(request: Any) -> PageRequest:
    """Which page is asked for."""
    return PageRequest(size=request.page_size, token=request.page_token)


def optional(request: Message, field: str) -> Any:
    """The field's value, or None when it is absent."""
    return getattr(request, field) if request.HasField(field) else None


def app(found: model.App) -> App:
    """An app as a message."""
    return App(
        app=found.app,
        description=found.description,
        create_time=timestamp(found.create_time),
        created_by=found.created_by,
        draft_version=found.draft_version,
        draft_update_time=timestamp(found.draft_update_time),
    )


def environment(found: model.Environment) -> Environment:
    """An environment as a message."""
    return Environment(
        environment=found.environment,
        description=found.description,
        create_time=timestamp(found.create_time),
        created_by=found.created_by,
        max_staleness=_limit(found.max_staleness),
        stale_action=Environment.StaleAction.Value(found.stale_action.value),
    )


def staleness_policy(found: model.StalenessPolicy) -> StalenessPolicyMessage:
    """A policy as a message; without a limit where there is none, or none any more."""
    return StalenessPolicyMessage(
        environment=found.environment,
        max_staleness=_limit(found.max_staleness),
        stale_action=Environment.StaleAction.Value(found.stale_action.value),
    )


def _limit(found: timedelta | None) -> Duration | None:
    return None if found is None else duration(found.total_seconds())


def release(info: ReleaseInfo) -> Release:
    """A release as a message, with its config when its bytes are there."""
    found = info.release
    return Release(
        app=found.app,
        tag=found.tag,
        description=found.description,
        digest=found.digest,
        size_bytes=found.size_bytes,
        state=Release.State.Value(info.state.value),
        create_time=timestamp(found.create_time),
        created_by=found.created_by,
        environments=info.environments,
        config=None if info.snapshot is None else AppConfig.FromString(info.snapshot),
    )


def binding(found: model.Binding) -> Binding:
    """A binding as a message; with an empty release when it is gone."""
    live = found.deployment
    if live is None:
        return Binding(app=found.app, environment=found.environment, revision=found.revision)
    return Binding(
        app=found.app,
        environment=found.environment,
        release=live.release,
        digest=live.digest,
        revision=found.revision,
        previous_release=live.previous_release,
        deployed_by=live.actor,
        deploy_time=timestamp(live.create_time),
        reason=live.reason,
    )


def deployment(found: model.Deployment) -> Deployment:
    """An entry of the history as a message."""
    return Deployment(
        deployment_id=found.deployment_id,
        app=found.app,
        environment=found.environment,
        action=Deployment.Action.Value(found.action.value),
        release=found.release,
        digest=found.digest,
        previous_release=found.previous_release,
        revision=found.revision,
        actor=found.actor,
        reason=found.reason,
        create_time=timestamp(found.create_time),
        forced=found.forced,
    )


def rollout(found: model.Rollout) -> Rollout:
    """A rollout as a message."""
    return Rollout(
        revision=found.revision,
        gateways_total=found.total,
        gateways_applied=found.applied,
        gateways_pending=found.pending,
        gateways_rejected=[Rollout.Rejection(gateway_id=gateway_id, reason=reason) for gateway_id, reason in found.rejected],
        duration=duration(found.seconds),
    )


def deployed(found: Deployed) -> dict[str, Any]:
    """The fields that DeployResponse, PromoteResponse and RollbackResponse share."""
    return {
        "deployment": None if found.deployment is None else deployment(found.deployment),
        "binding": binding(found.binding),
        "rollout": None if found.rollout is None else rollout(found.rollout),
    }


def gateway(info: model.GatewayInfo, bindings: list[model.Binding]) -> Gateway:
    """A gateway as a message; `bindings` are those that it subscribes to."""
    known = info.identity
    return Gateway(
        gateway_id=known.gateway_id,
        instance_id=known.instance_id,
        version=known.version,
        peer=known.peer,
        connected=info.connected,
        revision=info.revision,
        last_heard_time=timestamp(info.last_heard_time),
        connect_time=timestamp(info.connect_time),
        start_time=None if info.start_time is None else timestamp(info.start_time),
        apps=sorted(known.apps),
        environments=sorted(known.environments),
        bindings=[
            Gateway.LoadedBinding(
                app=found.app,
                environment=found.environment,
                release=found.deployment.release,
                revision=found.revision,
                rejection=info.rejection_of(found) or "",
            )
            for found in bindings
            if found.deployment is not None
        ],
    )


def token(found: model.Token) -> Token:
    """A token as a message, without its hash."""
    return Token(
        token_id=found.token_id,
        name=found.name,
        role=Token.Role.Value(found.role.value),
        apps=found.apps,
        environments=found.environments,
        endpoints=found.endpoints,
        rate_limit=_rate_limit(found),
        expire_time=timestamp(found.expire_time),
        create_time=timestamp(found.create_time),
        created_by=found.created_by,
        revoke_time=timestamp(found.revoke_time),
        last_used_time=timestamp(found.last_used_time),
    )


def verifier(found: model.Token) -> TokenVerifier:
    """What gateways are told of a token; of one that was revoked, only that."""
    if not found.secret_hash:
        return TokenVerifier(token_id=found.token_id, revision=found.revision)
    return TokenVerifier(
        token_id=found.token_id,
        secret_hash=found.secret_hash,
        role=Token.Role.Value(found.role.value),
        apps=found.apps,
        environments=found.environments,
        endpoints=found.endpoints,
        rate_limit=_rate_limit(found),
        expire_time=timestamp(found.expire_time),
        revision=found.revision,
    )


def _rate_limit(found: model.Token) -> RateLimit | None:
    limit = found.rate_limit
    return RateLimit(requests_per_second=limit.requests_per_second, burst=limit.burst) if limit is not None else None
