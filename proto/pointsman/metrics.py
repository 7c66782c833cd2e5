"""What both servers count, in a form that costs a dictionary lookup to count and is made into Prometheus' text when it is asked for.

prometheus_client's own counters lock and look labels up anew for each step of a trigger; here its families are only filled when
somebody scrapes. Every label set takes memory for good, so there are at most MAX_SERIES; what is beyond is counted under "other".
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERIES = 2000
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of durations."""

Labels = tuple[str, ...]


class Counts:
    """A counter for each label set. The name ends in neither `_total` nor a unit: both are added where they belong."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._counts: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Counts so many."""
        counts = self._counts
        if labels in counts:
            counts[labels] += amount
            return
        if len(counts) >= MAX_SERIES:
            labels = (OTHER,) * len(labels)
        counts[labels] = counts.get(labels, 0) + amount

    def collect(self) -> Iterable[Metric]:
        """As Prometheus has it."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class Durations:
    """A histogram of seconds for each label set."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        # The sum, then how many fell into each bucket, the last one for what is longer than all.
        self._found: dict[Labels, list[float]] = {}

    def add(self, labels: Labels, seconds: float) -> None:
        """One took so long."""
        found = self._found.get(labels)
        if found is None:
            if len(self._found) >= MAX_SERIES:
                labels = (OTHER,) * len(labels)
            found = self._found.setdefault(labels, [0.0] * (len(SECONDS) + 2))
        found[0] += seconds
        found[1 + bisect.bisect_left(SECONDS, seconds)] += 1

    def collect(self) -> Iterable[Metric]:
        """As Prometheus has it: each bucket counts those below it too."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(str, SECONDS), "+Inf"]
        for labels, (total, *counts) in list(self._found.items()):
            family.add_metric(labels, list(zip(bounds, itertools.accumulate(counts), strict=True)), total)
        yield family


class Gauges:
    """Numbers that are asked for when somebody scrapes."""

    def __init__(self) -> None:
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def add(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """One that is what `value` says."""
        self._gauges.append((name, documentation, value))

    def collect(self) -> Iterable[Metric]:
        """As Prometheus has it."""
        for name, documentation, value in self._gauges:
            yield GaugeMetricFamily(name, documentation, value=value())


class Exposition:
    """The page of one server."""

    def __init__(self, *collectors: Counts | Durations | Gauges) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(_Collector(collector))

    def page(self) -> bytes:
        """Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, collector: Counts | Durations | Gauges) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        return self._collector.collect()
