"""The gRPC door of the gateway."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from google.protobuf import json_format

from data_plane.access import CALLER, Access, only_app
from data_plane.gateway import Gateway
from data_plane.http import MAX_BODY_BYTES
from data_plane.lookup import Asked
from data_plane.record import Answer
from data_plane.status import Status
from data_plane.streaming import told
from data_plane.tracing import trace_of
from pointsman.errors import InvalidInput, PointsmanError, TooLarge, Violation
from pointsman.serving_calls import METADATA
from pointsman.v1 import trigger_pb2 as pb
from pointsman.v1 import trigger_pb2_grpc
from pointsman.values import fill_value, from_struct, refusal

Context = grpc.aio.ServicerContext[Any, Any]


class TriggerServicer(trigger_pb2_grpc.TriggerServiceServicer):
    """Converts between messages and Gateway.trigger."""

    def __init__(self, gateway: Gateway, access: Access) -> None:
        self._gateway = gateway
        self._access = access

    async def Trigger(self, request: pb.TriggerRequest, context: Context) -> bytes:  # type: ignore[override]  # serialised already
        """See trigger.proto."""
        answer = await self._gateway.trigger(self._asked(request, context))
        if answer.replayed or answer.stale_seconds is not None:
            await context.send_initial_metadata(_said_of(answer))
        bound = answer.active.bound
        ran = _ran(self._gateway.gateway_id, bound.app, bound.environment, bound.release, bound.digest, bound.revision)
        response = pb.TriggerResponse(execution_id=answer.execution_id)
        fill_value(response.output, answer.output)
        return ran + response.SerializeToString()

    async def TriggerStream(self, request: pb.TriggerStreamRequest, context: Context) -> AsyncIterator[pb.TriggerStreamResponse]:
        """See trigger.proto."""
        async with told(self._gateway, self._asked(request, context)) as told_so_far:
            sequence = 0
            async for events in told_so_far:
                if sequence == 0 and events[0].stale_seconds is not None:
                    await context.send_initial_metadata((("x-stale", str(events[0].stale_seconds)),))
                for event in events:
                    sequence += 1
                    yield json_format.ParseDict({"sequence": sequence, event.name: event.data}, pb.TriggerStreamResponse())

    def _asked(self, request: pb.TriggerRequest | pb.TriggerStreamRequest, context: Context) -> Asked:
        """What is asked for. Raises PermissionDenied, RateLimited, TooLarge, InvalidInput."""
        metadata = METADATA.get()
        caller = CALLER.get()
        app = request.app or only_app(caller)
        given: Any = None

        def asked() -> Asked:
            return Asked(
                endpoint=request.endpoint,
                input=given,
                app=app,
                environment=request.environment,
                release=request.release,
                min_revision=request.min_revision,
                seconds_left=context.time_remaining(),
                idempotency_key=metadata.get("idempotency-key", ""),
                token_id=caller.token_id if caller is not None else "",
                trace=trace_of(metadata.get("traceparent", ""), metadata.get("tracestate", "")),
            )

        try:
            self._access.admit(caller, app, request.environment or self._gateway.here.default_environment, request.endpoint)
            given = _input(request)
        except PointsmanError as error:
            self._gateway.refuse(asked(), error)
            raise
        return asked()


@functools.lru_cache(maxsize=1024)
def _ran(gateway_id: str, app: str, environment: str, release: str, digest: str, revision: int) -> bytes:
    """What all answers have in common that one release gives, serialised: messages that stand one after the other are one."""
    return pb.TriggerResponse(
        app=app, environment=environment, release=release, digest=digest, revision=revision, gateway_id=gateway_id
    ).SerializeToString()


def _said_of(answer: Answer) -> tuple[tuple[str, str], ...]:
    """What HTTP says in headers, where there is something to say."""
    replayed = (("x-replayed", "true"),) if answer.replayed else ()
    stale = (("x-stale", str(answer.stale_seconds)),) if answer.stale_seconds is not None else ()
    return (*replayed, *stale)


def _input(request: pb.TriggerRequest | pb.TriggerStreamRequest) -> dict[str, Any]:
    size = request.ByteSize()
    if size > MAX_BODY_BYTES:
        raise TooLarge("The request", limit=MAX_BODY_BYTES, given=size)
    given = from_struct(request.input)
    if refused := refusal(given):
        raise InvalidInput([Violation("", f"the input {refused}")])
    return given


class GatewayStatusServicer(trigger_pb2_grpc.GatewayStatusServiceServicer):
    """Tells the status, and takes part in drills."""

    def __init__(self, status: Status, simulate_outage: Callable[[float], None], gateway_id: str) -> None:
        self._status = status
        self._simulate_outage = simulate_outage
        self._gateway_id = gateway_id

    async def GetStatus(self, _request: pb.GetStatusRequest, _context: object) -> pb.GetStatusResponse:
        """See trigger.proto."""
        return self._status.describe()

    async def SimulateOutage(self, request: pb.SimulateOutageRequest, _context: object) -> pb.SimulateOutageResponse:
        """See trigger.proto."""
        self._simulate_outage(request.duration.ToTimedelta().total_seconds())
        return pb.SimulateOutageResponse(gateway_id=self._gateway_id, end_time=self._status.outage_end_time())
