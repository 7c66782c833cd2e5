"""Attributable: every answer names its execution, release, digest, revision and gateway, over both doors."""

from __future__ import annotations

import uuid

from pointsman.v1 import deployments_pb2
from tests.sample_apps import marked


async def test_both_doors_name_what_answered(stack):
    app = await stack.plane.create_app(v1=marked("v1"))
    binding = (await stack.plane.deploy(app, "v1", "staging")).binding
    for gate, name in zip(stack.gates, ("east", "west"), strict=True):
        over_grpc = await gate.trigger(app, environment="staging")
        over_http = await gate.post(app, X_Environment="staging")
        told = [over_http.headers[f"X-{header}"] for header in ("App", "Environment", "Release", "Release-Digest", "Revision", "Gateway")]
        assert told == [app, "staging", "v1", binding.digest, str(binding.revision), name]
        grpc_told = [over_grpc.app, over_grpc.environment, over_grpc.release, over_grpc.digest, over_grpc.revision, over_grpc.gateway_id]
        assert grpc_told == [app, "staging", "v1", binding.digest, binding.revision, name]
        executions = {uuid.UUID(over_grpc.execution_id), uuid.UUID(over_http.headers["X-Execution-Id"])}
        assert len(executions) == 2


async def test_the_history_names_who_did_what_and_why(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1", reason="first")
    await stack.plane.deploy(app, "v2", reason="ticket 7")
    history = await stack.plane.deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(app=app))
    assert [(entry.release, entry.previous_release, entry.reason) for entry in history.deployments] == [
        ("v2", "v1", "ticket 7"),
        ("v1", "", "first"),
    ]
    assert all(entry.actor and entry.deployment_id and entry.revision and entry.create_time.seconds for entry in history.deployments)
