"""What this gateway holds and how its connection to the control plane is: for GetStatus and /v1/status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from data_plane.holder import Holder
from data_plane.staleness import Staleness
from data_plane.sync import Sync
from data_plane.sync_stream import Me
from data_plane.table import Active, Key, Policy, Rejected
from pointsman.v1.environments_pb2 import Environment
from pointsman.v1.trigger_pb2 import GetStatusResponse


class Status:
    """Describes one gateway process."""

    def __init__(self, holder: Holder, staleness: Staleness, sync: Sync, me: Me, *, control_plane: str, default_environment: str) -> None:
        self.staleness = staleness
        self._holder = holder
        self._sync = sync
        self._me = me
        self._control_plane = control_plane
        self._default_environment = default_environment
        self._started = datetime.now(UTC)

    def outage_end_time(self) -> Timestamp | None:
        """When the simulated outage ends; None when there is none."""
        left = self._sync.outage.seconds_left
        return _timestamp(datetime.now(UTC) + timedelta(seconds=left)) if left else None

    def describe(self) -> GetStatusResponse:
        """Everything, as it is now."""
        table = self._holder.table
        response = GetStatusResponse(
            gateway_id=self._me.gateway_id,
            instance_id=self._me.instance_id,
            version=self._me.version,
            revision=table.revision,
            ready=self.staleness.ready,
            connected=self._sync.connected,
            control_plane=self._control_plane,
            store_id=table.store_id,
            bindings=[_loaded(key, table.active.get(key), table.rejected.get(key)) for key in sorted({*table.active, *table.rejected})],
            start_time=_timestamp(self._started),
            default_environment=self._default_environment,
            connection_problem="" if self._sync.connected else self._sync.problem,
            outage_end_time=self.outage_end_time(),
            environments=[self._environment(policy) for _, policy in sorted(table.policies.items())],
        )
        staleness = self.staleness.seconds
        if staleness is not None:
            response.staleness.CopyFrom(_duration(staleness))
            response.last_heard_time.CopyFrom(_timestamp(datetime.now(UTC) - timedelta(seconds=staleness)))
        return response

    def _environment(self, policy: Policy) -> GetStatusResponse.EnvironmentStaleness:
        return GetStatusResponse.EnvironmentStaleness(
            environment=policy.environment,
            max_staleness=_duration(policy.max_staleness_seconds),
            stale_action=Environment.StaleAction.Value(policy.action.value),
            stale=policy.environment in self.staleness.stale,
        )


def _loaded(key: Key, active: Active | None, rejected: Rejected | None) -> GetStatusResponse.LoadedBinding:
    app, environment = key
    found = GetStatusResponse.LoadedBinding(app=app, environment=environment)
    if active is not None:
        found.release, found.digest, found.revision = active.bound.release, active.bound.digest, active.bound.revision
        found.load_time.CopyFrom(_timestamp(active.load_time))
        found.endpoints.extend(sorted(active.loaded.endpoints))
    if rejected is not None:
        found.rejected_release, found.rejection = rejected.bound.release, rejected.reason
    return found


def _timestamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def _duration(seconds: float) -> Duration:
    found = Duration()
    found.FromTimedelta(timedelta(seconds=seconds))
    return found
