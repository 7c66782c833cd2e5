"""Executions as a gateway would report them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from pointsman.ids import new_id
from pointsman.v1 import executions_pb2 as pb
from tests.clients import ControlPlane

GATEWAY = "east"
INSTANCE = str(uuid.uuid4())


def ran(
    app: str, release: str = "v1", *, ago: float = 0.0, seconds: float = 0.012, outcome: str = "SUCCEEDED", **more: Any
) -> pb.Execution:
    """One that began so many seconds ago, with one step."""
    known = {"execution_id": new_id(), "app": app, "environment": "production", "endpoint": "where", "release": release, "revision": 1}
    found = pb.Execution(**known | more, outcome=pb.Execution.Outcome.Value(outcome))
    found.start_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=ago))
    found.duration.FromTimedelta(timedelta(seconds=seconds))
    step = found.steps.add(stage="main", name="answer", kind="transform", outcome=pb.Execution.StepExecution.SUCCEEDED, attempts=1)
    step.start_time.CopyFrom(found.start_time)
    step.duration.CopyFrom(found.duration)
    return found


async def report(
    plane: ControlPlane, *executions: pb.Execution, gateway_id: str = GATEWAY, instance_id: str = INSTANCE, dropped: int = 0
) -> int:
    """How many were new."""
    request = pb.ReportExecutionsRequest(gateway_id=gateway_id, instance_id=instance_id, executions=executions, dropped=dropped)
    return int((await plane.gateways.ReportExecutions(request)).stored)
