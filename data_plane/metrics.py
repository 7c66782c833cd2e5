"""What a gateway tells Prometheus: triggers, steps and models as they are sealed for the record; its own state when somebody asks.

Labels are only what a release or a binding names, never what a caller sent: a trigger that was refused before its release was found
counts under empty labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_plane.gateway import Gateway
from data_plane.holder import Holder
from data_plane.record import Outcome, Record
from data_plane.spool import Spool
from data_plane.staleness import Staleness
from data_plane.sync import Sync
from pointsman.metrics import Counts, Durations, Exposition, Gauges
from pointsman.tls import ClientTls, ServerTls

_OUTCOMES = {number: name.lower() for name, number in Outcome.items()}


class Metrics:
    """Of one gateway process. `worker` tells the processes of --workers apart, which answer on the same port in turn."""

    def __init__(self, worker: str = "") -> None:
        place = ("app", "environment", "endpoint")
        self._worker = worker
        self._triggers = Counts("pointsman_triggers", "Triggers by how they ended.", [*place, "release", "outcome", "reason", "worker"])
        self._durations = Durations("pointsman_trigger_duration_seconds", "From arrival to answer.", [*place, "worker"])
        self._steps = Durations("pointsman_step_duration_seconds", "Steps, with their retries.", ["app", "step", "kind", "worker"])
        self._models = Durations("pointsman_model_duration_seconds", "Steps that asked a model.", ["model", "worker"])
        self._tokens = Counts("pointsman_model_tokens", "Tokens that models read and wrote.", ["model", "direction", "worker"])
        self._gauges = Gauges()
        self._exposition = Exposition(self._triggers, self._durations, self._steps, self._models, self._tokens, self._gauges)

    def watch(
        self, gateway: Gateway, holder: Holder, sync: Sync, staleness: Staleness, spool: Spool, tls: Sequence[ServerTls | ClientTls] = ()
    ) -> None:
        """Tells their state too."""
        add = self._gauges.add
        add("pointsman_gateway_ready", "1 when it serves something for everything that is bound.", lambda: staleness.ready)
        add("pointsman_gateway_connected", "1 while the stream to a control plane is open.", lambda: sync.connected)
        add("pointsman_gateway_revision", "Up to which everything is applied.", lambda: holder.table.revision)
        add(
            "pointsman_gateway_staleness_seconds",
            "How long ago the control plane was last heard; -1 when never.",
            lambda: -1.0 if (seconds := staleness.seconds) is None else seconds,
        )
        add("pointsman_gateway_bindings", "Bindings that it serves.", lambda: len(holder.table.active))
        add("pointsman_gateway_rejected_bindings", "Bindings that it cannot serve.", lambda: len(holder.table.rejected))
        add("pointsman_gateway_releases", "Releases that it holds compiled.", lambda: len(holder.held))
        add("pointsman_gateway_triggers_running", "Triggers that run now.", lambda: gateway.in_flight)
        add("pointsman_gateway_triggers_waiting", "Those of them that wait for their turn, by max_concurrency.", lambda: gateway.waiting)
        add("pointsman_gateway_executions_waiting", "Executions that were not delivered yet.", lambda: spool.depth)
        add("pointsman_gateway_executions_waiting_bytes", "Their size.", lambda: spool.size_bytes)
        add("pointsman_gateway_executions_dropped", "Executions that had to be given up since the start.", lambda: spool.dropped)
        if tls:
            name = "pointsman_gateway_certificate_expiry_timestamp_seconds"
            add(name, "When the first of its certificates expires.", lambda: min(one.first_end for one in tls))

    def observe(self, record: Record) -> None:
        """Counts one trigger."""
        worker, active = self._worker, record.active
        reason = record.error.reason_name if record.error is not None else ""
        if active is None:
            self._triggers.add(("", "", "", "", _OUTCOMES[record.outcome], reason, worker))
            return
        bound = active.bound
        path = record.asked.endpoint.removeprefix("/")
        place = (bound.app, bound.environment, path if path in active.loaded.endpoints else "")
        self._triggers.add((*place, bound.release, _OUTCOMES[record.outcome], reason, worker))
        if record.running is None:
            return
        self._durations.add((*place, worker), record.seconds)
        for step in record.running.steps:
            if step.attempts:
                self._steps.add((bound.app, step.name, step.kind, worker), step.seconds)
            usage = step.usage
            if usage is not None and usage.model:
                self._models.add((usage.model, worker), step.seconds)
                self._tokens.add((usage.model, "input", worker), usage.input_tokens)
                self._tokens.add((usage.model, "output", worker), usage.output_tokens)

    def page(self) -> bytes:
        """For `/metrics`."""
        return self._exposition.page()
