"""AppService."""

from __future__ import annotations

from typing import Any

from control_plane.rpc import convert
from control_plane.service.apps import Apps
from control_plane.service.snapshots import snapshot_of
from pointsman.errors import InvalidField, Violation
from pointsman.v1 import apps_pb2, apps_pb2_grpc
from pointsman.v1.config_pb2 import AppConfig


class AppServicer(apps_pb2_grpc.AppServiceServicer):
    """Converts between messages and service.apps."""

    def __init__(self, apps: Apps) -> None:
        self._apps = apps

    async def CreateApp(self, request: apps_pb2.CreateAppRequest, context: Any) -> apps_pb2.CreateAppResponse:
        """See apps.proto."""
        created = await self._apps.create(request.app, request.description, convert.call_of(request, context))
        return apps_pb2.CreateAppResponse(app=convert.app(created))

    async def GetApp(self, request: apps_pb2.GetAppRequest, _context: Any) -> apps_pb2.GetAppResponse:
        """See apps.proto."""
        return apps_pb2.GetAppResponse(app=convert.app(await self._apps.get(request.app)))

    async def ListApps(self, request: apps_pb2.ListAppsRequest, _context: Any) -> apps_pb2.ListAppsResponse:
        """See apps.proto."""
        page = await self._apps.list(convert.page_of(request))
        return apps_pb2.ListAppsResponse(apps=map(convert.app, page.items), next_page_token=page.next_page_token)

    async def UpdateDraft(self, request: apps_pb2.UpdateDraftRequest, context: Any) -> apps_pb2.UpdateDraftResponse:
        """See apps.proto."""
        if not request.HasField("config"):
            raise InvalidField([Violation("config", "absent; give the whole new draft")])
        updated = await self._apps.update_draft(
            request.app,
            snapshot_of(request.config),
            convert.optional(request, "expected_draft_version"),
            convert.call_of(request, context),
        )
        return apps_pb2.UpdateDraftResponse(app=convert.app(updated))

    async def GetDraft(self, request: apps_pb2.GetDraftRequest, _context: Any) -> apps_pb2.GetDraftResponse:
        """See apps.proto."""
        draft = await self._apps.draft(request.app)
        return apps_pb2.GetDraftResponse(
            config=AppConfig.FromString(draft.config),
            draft_version=draft.version,
            digest=draft.digest,
            update_time=convert.timestamp(draft.update_time),
            draft_has_changes=draft.has_changes,
        )
