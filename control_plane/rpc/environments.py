"""EnvironmentService."""

from __future__ import annotations

from typing import Any

from control_plane.model import StaleAction
from control_plane.rpc import convert
from control_plane.service.environments import EnvironmentChange, Environments
from pointsman.v1 import environments_pb2 as pb
from pointsman.v1 import environments_pb2_grpc


class EnvironmentServicer(environments_pb2_grpc.EnvironmentServiceServicer):
    """Converts between messages and service.environments."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    async def CreateEnvironment(self, request: pb.CreateEnvironmentRequest, context: Any) -> pb.CreateEnvironmentResponse:
        """See environments.proto."""
        created = await self._environments.create(request.environment, _change(request), convert.call_of(request, context))
        return pb.CreateEnvironmentResponse(environment=convert.environment(created))

    async def GetEnvironment(self, request: pb.GetEnvironmentRequest, _context: Any) -> pb.GetEnvironmentResponse:
        """See environments.proto."""
        return pb.GetEnvironmentResponse(environment=convert.environment(await self._environments.get(request.environment)))

    async def ListEnvironments(self, request: pb.ListEnvironmentsRequest, _context: Any) -> pb.ListEnvironmentsResponse:
        """See environments.proto."""
        page = await self._environments.list(convert.page_of(request))
        return pb.ListEnvironmentsResponse(environments=map(convert.environment, page.items), next_page_token=page.next_page_token)

    async def UpdateEnvironment(self, request: pb.UpdateEnvironmentRequest, context: Any) -> pb.UpdateEnvironmentResponse:
        """See environments.proto."""
        changed = await self._environments.update(request.environment, _change(request), convert.call_of(request, context))
        return pb.UpdateEnvironmentResponse(environment=convert.environment(changed))

    async def DeleteEnvironment(self, request: pb.DeleteEnvironmentRequest, context: Any) -> pb.DeleteEnvironmentResponse:
        """See environments.proto."""
        deleted = await self._environments.delete(request.environment, convert.call_of(request, context), force=request.force)
        return pb.DeleteEnvironmentResponse(environment=convert.environment(deleted.environment), revision=deleted.revision)


def _change(request: pb.CreateEnvironmentRequest | pb.UpdateEnvironmentRequest) -> EnvironmentChange:
    is_new = isinstance(request, pb.CreateEnvironmentRequest)
    return EnvironmentChange(
        description=request.description if is_new else convert.optional(request, "description"),
        max_staleness=request.max_staleness.ToTimedelta() if request.HasField("max_staleness") else None,
        stale_action=StaleAction(pb.Environment.StaleAction.Name(request.stale_action)) if request.stale_action else None,
    )
