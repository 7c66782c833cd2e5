"""DeploymentService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from control_plane.hub import Hub
from control_plane.model import Binding
from control_plane.rpc import convert
from control_plane.service.deployments import Deployments, Options, Wanted
from control_plane.service.past import Past
from pointsman.errors import RevisionConflict, ShuttingDown
from pointsman.v1 import deployments_pb2 as pb
from pointsman.v1 import deployments_pb2_grpc

# The contract promises one at least every 10 s; a little less, since timers and networks are late.
BOOKMARK_INTERVAL_SECONDS = 8.0


def _options(request: pb.DeployRequest | pb.DeployManyRequest | pb.PromoteRequest | pb.RollbackRequest) -> Options:
    return Options(
        expected_revision=None if isinstance(request, pb.DeployManyRequest) else convert.optional(request, "expected_revision"),
        reason=request.reason,
        wait_seconds=request.wait.ToTimedelta().total_seconds() if request.HasField("wait") else None,
        force=request.force,
    )


class DeploymentServicer(deployments_pb2_grpc.DeploymentServiceServicer):
    """Converts between messages and service.deployments and .past; streams what the hub has."""

    def __init__(self, deployments: Deployments, past: Past, hub: Hub) -> None:
        self._deployments = deployments
        self._past = past
        self._hub = hub
        self._frames = _Frames()

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.DeployResponse:
        """See deployments.proto."""
        found = await self._deployments.deploy(
            request.app, request.environment, request.release, _options(request), convert.call_of(request, context)
        )
        return pb.DeployResponse(**convert.deployed(found))

    async def DeployMany(self, request: pb.DeployManyRequest, context: Any) -> pb.DeployManyResponse:
        """See deployments.proto."""
        wanted = [
            Wanted(
                app=target.app,
                environment=target.environment,
                release=target.release,
                expected_revision=convert.optional(target, "expected_revision"),
            )
            for target in request.targets
        ]
        found = await self._deployments.deploy_many(wanted, _options(request), convert.call_of(request, context))
        return pb.DeployManyResponse(
            deployments=map(convert.deployment, found.deployments),
            bindings=map(convert.binding, found.bindings),
            rollout=None if found.rollout is None else convert.rollout(found.rollout),
        )

    async def Promote(self, request: pb.PromoteRequest, context: Any) -> pb.PromoteResponse:
        """See deployments.proto."""
        found = await self._deployments.promote(
            request.app, request.from_environment, request.to_environment, _options(request), convert.call_of(request, context)
        )
        return pb.PromoteResponse(**convert.deployed(found))

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        """See deployments.proto."""
        found = await self._deployments.rollback(
            request.app, request.environment, request.to_release, _options(request), convert.call_of(request, context)
        )
        return pb.RollbackResponse(**convert.deployed(found))

    async def GetBinding(self, request: pb.GetBindingRequest, _context: Any) -> pb.GetBindingResponse:
        """See deployments.proto."""
        moment = convert.moment(request, "as_of_time")
        if moment is None:
            found = await self._deployments.binding(request.app, request.environment)
        else:
            found = await self._past.binding(request.app, request.environment, moment)
        return pb.GetBindingResponse(binding=convert.binding(found))

    async def ListBindings(self, request: pb.ListBindingsRequest, _context: Any) -> pb.ListBindingsResponse:
        """See deployments.proto."""
        moment = convert.moment(request, "as_of_time")
        if moment is None:
            page = await self._deployments.bindings(request.app, request.environment, convert.page_of(request))
        else:
            page = await self._past.bindings(request.app, request.environment, moment, convert.page_of(request))
        return pb.ListBindingsResponse(bindings=map(convert.binding, page.items), next_page_token=page.next_page_token)

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, _context: Any) -> pb.ListDeploymentsResponse:
        """See deployments.proto."""
        page = await self._deployments.history(request.app, request.environment, convert.page_of(request))
        return pb.ListDeploymentsResponse(deployments=map(convert.deployment, page.items), next_page_token=page.next_page_token)

    async def WatchBindings(  # type: ignore[override]  # GrpcServer lets serialised messages through
        self, request: pb.WatchBindingsRequest, _context: Any
    ) -> AsyncIterator[bytes]:
        """See deployments.proto. Yields serialised messages: one serialisation serves every watcher."""
        await self._deployments.check_filters(request.app, request.environment)
        resuming = request.HasField("after_revision")
        told = request.after_revision
        apps, environments = (request.app,) if request.app else (), (request.environment,) if request.environment else ()
        async with self._hub.watcher(BOOKMARK_INTERVAL_SECONDS) as watcher:
            if told > self._hub.revision:
                raise _from_the_future(told, self._hub.revision)
            synced = False
            while not self._hub.closing:
                seen = self._hub.revision
                for binding in self._hub.newer_than(told, apps=apps, environments=environments):
                    if synced or resuming or binding.deployment is not None:
                        yield self._frames.of(binding)
                told = seen
                if not synced:
                    synced = True
                    yield _bookmark(told, synced=True)
                elif not await watcher.wait():
                    yield _bookmark(told, synced=False)
        raise ShuttingDown("This control plane is shutting down; watch again, from the last revision, at another or a little later.")


def _from_the_future(asked: int, has: int) -> RevisionConflict:
    """Going on from there would hide every change up to it, so it is refused."""
    return RevisionConflict(
        f"after_revision {asked} is not one of this store's, whose newest is {has}: it comes from another store, or from one that was "
        "restored since. Watch without after_revision.",
        expected=asked,
        current=has,
    )


def _bookmark(revision: int, *, synced: bool) -> bytes:
    bookmark = pb.WatchBindingsResponse.Bookmark(synced=synced)
    return pb.WatchBindingsResponse(bookmark=bookmark, revision=revision).SerializeToString()


class _Frames:
    """The newest serialised message of each binding."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, str], tuple[int, bytes]] = {}

    def of(self, binding: Binding) -> bytes:
        key = (binding.app, binding.environment)
        revision, frame = self._frames.get(key, (0, b""))
        if revision != binding.revision:
            message = pb.WatchBindingsResponse(binding=convert.binding(binding), revision=binding.revision)
            frame = message.SerializeToString()
            self._frames[key] = binding.revision, frame
        return frame
