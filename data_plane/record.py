"""What is known of one trigger, from its arrival to its end, whatever its end."""

from __future__ import annotations

from typing import Any

import msgspec

from data_plane.lookup import Asked
from data_plane.pipeline import Run
from data_plane.table import Active
from data_plane.tracing import Trace
from pointsman.errors import PointsmanError
from pointsman.v1.executions_pb2 import Execution

Outcome = Execution.Outcome
"""How a trigger ended."""
# Looked up once: the wrappers of protobuf's enums are slow.
SUCCEEDED, FAILED, CANCELLED, REFUSED = Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED, Outcome.REFUSED


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What ran, and what it gave.

    `replayed`: for an earlier request with the same Idempotency-Key. `stale_seconds`: how long ago the control plane was last heard,
    where that is to be told.
    """

    execution_id: str
    active: Active
    output: Any
    replayed: bool = False
    stale_seconds: int | None = None


class Record(msgspec.Struct):
    """One trigger. Nothing that it refers to changes after the end. `start_time` is a time.time()."""

    execution_id: str
    asked: Asked
    start_time: float
    seconds: float = 0.0
    outcome: Execution.Outcome.ValueType = CANCELLED
    """Until it has another end; a caller who goes away leaves it so."""
    error: PointsmanError | None = None
    active: Active | None = None
    """What it runs on, once that was found."""
    running: Run | None = None
    """Once nothing stood in the way of a start."""
    output: object = None
    stale_seconds: int | None = None
    """As in the answer."""
    trace: Trace | None = None
    """Where it belongs: its own span where spans are exported, else its caller's."""

    def ended(self, error: PointsmanError) -> None:
        """It was refused, or failed if it had been begun."""
        self.error = error
        self.outcome = REFUSED if self.running is None else FAILED
