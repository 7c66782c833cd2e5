"""The messages of the Sync stream as what a gateway works with, and the reverse."""

from __future__ import annotations

from data_plane.table import Bound, Policy, RateLimit, Rejected, Role, StaleAction, Verifier
from pointsman.v1 import deployments_pb2, environments_pb2, tokens_pb2
from pointsman.v1 import gateways_pb2 as pb
from pointsman.values import seconds_of

_ACTIONS = {environments_pb2.Environment.StaleAction.Value(action.value): action for action in StaleAction}
_ROLES = {tokens_pb2.Token.Role.Value(role.value): role for role in Role if role is not Role.NONE}


def to_bound(binding: deployments_pb2.Binding) -> Bound:
    """A binding."""
    return Bound(
        app=binding.app, environment=binding.environment, release=binding.release, digest=binding.digest, revision=binding.revision
    )


def to_policy(policy: environments_pb2.StalenessPolicy) -> Policy | None:
    """None when there is no limit. An action that is not known here, of a newer control plane, is to serve on."""
    seconds = seconds_of(policy.max_staleness)
    return Policy(policy.environment, seconds, _ACTIONS.get(policy.stale_action, StaleAction.SERVE)) if seconds > 0 else None


def to_verifier(message: tokens_pb2.TokenVerifier) -> Verifier:
    """A token. A role that is not known here allows nothing."""
    limit = message.rate_limit
    return Verifier(
        token_id=message.token_id,
        secret_hash=message.secret_hash,
        role=_ROLES.get(message.role, Role.NONE),
        apps=frozenset(message.apps),
        environments=frozenset(message.environments),
        endpoints=frozenset(path.removeprefix("/") for path in message.endpoints),
        rate_limit=RateLimit(limit.requests_per_second, limit.burst or max(1, round(limit.requests_per_second)))
        if message.HasField("rate_limit")
        else None,
        expire_time=message.expire_time.seconds + message.expire_time.nanos / 1e9 if message.HasField("expire_time") else None,
    )


def from_rejected(rejected: Rejected) -> pb.SyncRequest.Rejection:
    """What cannot be served."""
    bound = rejected.bound
    return pb.SyncRequest.Rejection(app=bound.app, environment=bound.environment, digest=bound.digest, reason=rejected.reason)
