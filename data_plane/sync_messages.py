"""The messages of the Sync stream as what a gateway works with, and the reverse."""

from __future__ import annotations

import math

from data_plane.table import EVERY, Bound, Policy, RateLimit, Rejected, Role, StaleAction, Verifier
from pointsman.v1 import deployments_pb2, environments_pb2, tokens_pb2
from pointsman.v1 import gateways_pb2 as pb
from pointsman.values import seconds_of

# Triggers a second: from one a day to more than any gateway runs.
RATES = (1e-5, 1e6)
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
    return Verifier(
        token_id=message.token_id,
        secret_hash=message.secret_hash,
        role=_ROLES.get(message.role, Role.NONE),
        apps=frozenset(message.apps) or EVERY,
        environments=frozenset(message.environments) or EVERY,
        endpoints=frozenset(path.removeprefix("/") for path in message.endpoints) or EVERY,
        rate_limit=_to_limit(message.rate_limit) if message.HasField("rate_limit") else None,
        expire_time=message.expire_time.seconds + message.expire_time.nanos / 1e9 if message.HasField("expire_time") else None,
    )


def _to_limit(limit: tokens_pb2.RateLimit) -> RateLimit:
    """Also of one that no rule was applied to: nothing is divided by zero for it, or rounded that cannot be."""
    asked = limit.requests_per_second
    least, most = RATES
    rate = min(max(asked, least), most) if not math.isnan(asked) else least
    return RateLimit(rate, max(1, limit.burst or round(rate)))


def from_rejected(rejected: Rejected) -> pb.SyncRequest.Rejection:
    """What cannot be served."""
    bound = rejected.bound
    return pb.SyncRequest.Rejection(app=bound.app, environment=bound.environment, digest=bound.digest, reason=rejected.reason)
