"""What a control plane tells Prometheus: its calls as they end, its own state when somebody asks."""

from __future__ import annotations

from control_plane.gateways import Gateways
from control_plane.hub import Hub
from pointsman.metrics import Counts, Durations, Exposition, Gauges
from pointsman.tls import ServerTls

# Streams last as long as their clients like: how long that was says nothing.
STREAMS = frozenset({"Sync", "WatchBindings", "TailExecutions"})


class Metrics:
    """Of one control-plane process."""

    def __init__(self) -> None:
        self._calls = Counts(
            "pointsman_calls", "gRPC calls that have ended, by outcome: OK, CANCELLED, or the reason.", ["method", "outcome"]
        )
        self._durations = Durations("pointsman_call_duration_seconds", "gRPC calls, but for streams.", ["method"])
        self._gauges = Gauges()
        self._exposition = Exposition(self._calls, self._durations, self._gauges)

    def watch(self, hub: Hub, gateways: Gateways, tls: ServerTls | None = None) -> None:
        """Tells their state too."""
        add = self._gauges.add
        add("pointsman_revision", "The newest revision that this process has read.", lambda: hub.revision)
        add("pointsman_bindings", "Bindings that are live.", lambda: hub.live_bindings)
        add("pointsman_watchers", "Streams of bindings, of gateways and of other watchers.", lambda: hub.watchers)
        add("pointsman_gateways_connected", "Gateways whose streams are open here.", lambda: gateways.connected_count)
        add(
            "pointsman_gateways_behind", "Those that have not applied the newest revision yet.", lambda: gateways.behind_count(hub.revision)
        )
        add("pointsman_gateways_rejecting", "Those that cannot run something that is bound.", lambda: gateways.rejecting_count)
        if tls is not None:
            add("pointsman_certificate_expiry_timestamp_seconds", "When the first of its certificates expires.", lambda: tls.first_end)

    def observe(self, method: str, outcome: str, seconds: float) -> None:
        """Counts one call; `method` is as on the wire, `/pointsman.v1.AppService/GetApp`."""
        name = method.rpartition("/")[2]
        self._calls.add((name, outcome))
        if name not in STREAMS:
            self._durations.add((name,), seconds)

    def page(self) -> bytes:
        """For `/metrics`."""
        return self._exposition.page()
