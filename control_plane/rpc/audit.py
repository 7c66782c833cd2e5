"""AuditService, and refusals as the gRPC door meets them."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from control_plane.model import Attempt, AuditEntry, AuditFilter
from control_plane.roles import ROLES
from control_plane.rpc import convert
from control_plane.service.audit import Audit
from pointsman.errors import PermissionDenied, PointsmanError, Unauthenticated
from pointsman.v1 import audit_pb2 as pb
from pointsman.v1 import audit_pb2_grpc


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Converts between messages and service.audit."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, _context: Any) -> pb.ListAuditEntriesResponse:
        """See audit.proto."""
        wanted = AuditFilter(
            app=request.app,
            environment=request.environment,
            actor=request.actor,
            method=request.method,
            outcome=request.outcome,
            since=convert.moment(request, "since_time"),
            until=convert.moment(request, "until_time"),
        )
        page = await self._audit.list(wanted, convert.page_of(request), oldest_first=request.oldest_first)
        return pb.ListAuditEntriesResponse(entries=map(_entry, page.items), next_page_token=page.next_page_token)


# Changes where gateways are connected, and nothing in the store.
REBALANCE = "/pointsman.v1.GatewayService/RebalanceGateways"


class Refusals:
    """For GrpcServer: has the audit log record who was refused a change."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        pool = descriptor_pool.Default()
        services = (pool.FindServiceByName(f"pointsman.v1.{service}") for service in ROLES if service != "ServerReflection")
        methods = (method for service in services for method in service.methods)
        # What changes something in the store takes a request_id, and nothing else does.
        self._changes = {REBALANCE} | {
            f"/{m.containing_service.full_name}/{m.name}" for m in methods if "request_id" in m.input_type.fields_by_name
        }

    def __call__(self, method: str, request: Message | None, context: Any, error: Exception) -> None:
        """Notes it, if it was for a change; a request is absent when its caller, or its bytes, were refused before."""
        if method not in self._changes or (request is not None and getattr(request, "validate_only", False)):
            return
        if request is not None:
            self._audit.refused(convert.attempt_of_call(request, context), error)
            return
        where = error.metadata if isinstance(error, PointsmanError) and isinstance(error, PermissionDenied) else {}
        known = not isinstance(error, Unauthenticated)
        attempt = Attempt(
            actor=convert.actor_of_call(context) if known else "",
            token_id=convert.token_id_of_call() if known else "",
            peer=convert.peer_of(context),
            method=method.rpartition("/")[2],
            app=str(where.get("app", "")),
            environment=str(where.get("environment", "")),
        )
        self._audit.refused(attempt, error)


def _entry(found: AuditEntry) -> pb.AuditEntry:
    entry = pb.AuditEntry(
        position=found.position,
        actor=found.actor,
        token_id=found.token_id,
        peer=found.peer,
        method=found.method,
        app=found.app,
        environment=found.environment,
        detail=found.detail,
        reason=found.reason,
        before_revision=found.before_revision,
        revision=found.revision,
        outcome=found.outcome,
        message=found.message,
        count=found.count,
        hash=found.hash.hex(),
    )
    entry.entry_time.FromDatetime(found.entry_time)
    return entry
