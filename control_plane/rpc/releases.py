"""ReleaseService."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import json_format

from control_plane.model import digest_of
from control_plane.rpc import convert
from control_plane.service.diff import Change, diff
from control_plane.service.releases import Releases
from control_plane.service.retention import Retention
from control_plane.service.snapshots import plain_of, snapshot_of
from pointsman.v1 import releases_pb2 as pb
from pointsman.v1 import releases_pb2_grpc


class ReleaseServicer(releases_pb2_grpc.ReleaseServiceServicer):
    """Converts between messages and service.releases and .retention."""

    def __init__(self, releases: Releases, retention: Retention) -> None:
        self._releases = releases
        self._retention = retention

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Any) -> pb.CreateReleaseResponse:
        """See releases.proto."""
        created, deployed = await self._releases.create(
            app=request.app,
            tag=request.tag,
            description=request.description,
            config=snapshot_of(request.config) if request.HasField("config") else None,
            deploy_to=request.deploy_to,
            call=convert.call_of(request, context),
        )
        response = pb.CreateReleaseResponse(release=convert.release(created))
        if deployed is not None and deployed.deployment is not None:
            response.deployment.CopyFrom(convert.deployment(deployed.deployment))
        if deployed is not None and deployed.rollout is not None:
            response.rollout.CopyFrom(convert.rollout(deployed.rollout))
        return response

    async def GetRelease(self, request: pb.GetReleaseRequest, _context: Any) -> pb.GetReleaseResponse:
        """See releases.proto."""
        full = request.view == pb.Release.FULL
        return pb.GetReleaseResponse(release=convert.release(await self._releases.get(request.app, request.tag, with_snapshot=full)))

    async def ListReleases(self, request: pb.ListReleasesRequest, _context: Any) -> pb.ListReleasesResponse:
        """See releases.proto."""
        page = await self._releases.list(request.app, convert.page_of(request))
        return pb.ListReleasesResponse(releases=map(convert.release, page.items), next_page_token=page.next_page_token)

    async def PruneReleases(self, request: pb.PruneReleasesRequest, context: Any) -> pb.PruneReleasesResponse:
        """See releases.proto."""
        found = await self._retention.prune(
            request.app, request.keep_newest, convert.optional(request, "keep_deployed"), convert.call_of(request, context)
        )
        return pb.PruneReleasesResponse(releases=map(convert.release, found.releases), freed_bytes=found.freed_bytes, more=found.more)

    async def DiffReleases(self, request: pb.DiffReleasesRequest, _context: Any) -> pb.DiffReleasesResponse:
        """See releases.proto."""
        old, new = await self._releases.configs(request.app, request.from_release, request.to_release)
        changes = await asyncio.to_thread(lambda: list(map(_change, diff(plain_of(old), plain_of(new)))))
        return pb.DiffReleasesResponse(changes=changes, from_digest=digest_of(old), to_digest=digest_of(new))


def _change(found: Change) -> pb.DiffReleasesResponse.Change:
    message = pb.DiffReleasesResponse.Change(
        kind=pb.DiffReleasesResponse.Change.Kind.Value(found.kind.value),
        path=found.path,
        breaking=bool(found.breaking),
        breaking_reason=found.breaking,
    )
    if found.old is not None:
        json_format.ParseDict(found.old, message.old_value)
    if found.new is not None:
        json_format.ParseDict(found.new, message.new_value)
    return message
