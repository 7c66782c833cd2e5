"""ExecutionService, and executions as gateways report them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane import execution_model as model
from control_plane.execution_model import Figures, Report, Wanted
from control_plane.rpc import convert
from control_plane.service.executions import Executions, RollbackReport, Summary
from control_plane.tail import Tail
from pointsman.errors import InvalidField, ShuttingDown, TooLarge, Violation
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1 import executions_pb2_grpc

MIB = 1024 * 1024
# Less than gRPC takes, so that whoever sends too much is told by how much.
MAX_REPORT_BYTES = 12 * MIB
# The contract promises one at least every 10 s; a little less, since timers and networks are late.
SIGN_OF_LIFE_SECONDS = 8.0
# Converted without a pause; other calls have their turn after them.
CONVERT_AT_ONCE = 50
MAX_TOLD_VIOLATIONS = 10
MICROS = 1_000_000
# 0001-01-01 and 9999-12-31, as the JSON mapping of Timestamp has it.
TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)
MAX_DURATION_SECONDS = 315_576_000_000
# Each has a column, or says by whom it was reported, which a column has.
_IN_COLUMNS: tuple[Any, ...] = tuple(name for name in pb.Execution.DESCRIPTOR.fields_by_name if name not in ("steps", "input", "output"))
_OUTCOMES = {int(outcome) for outcome in model.Outcome}


class ExecutionServicer(executions_pb2_grpc.ExecutionServiceServicer):
    """Converts between messages and service.executions; streams what the tail has."""

    def __init__(self, executions: Executions, tail: Tail) -> None:
        self._executions = executions
        self._tail = tail

    async def ListExecutions(self, request: pb.ListExecutionsRequest, _context: Any) -> pb.ListExecutionsResponse:
        """See executions.proto."""
        page = await self._executions.list(_wanted(request), convert.page_of(request))
        return pb.ListExecutionsResponse(executions=map(execution, page.items), next_page_token=page.next_page_token)

    async def GetExecution(self, request: pb.GetExecutionRequest, _context: Any) -> pb.GetExecutionResponse:
        """See executions.proto."""
        return pb.GetExecutionResponse(execution=execution(await self._executions.get(request.execution_id, request.app)))

    async def TailExecutions(self, request: pb.TailExecutionsRequest, context: Any) -> AsyncIterator[pb.TailExecutionsResponse]:
        """See executions.proto."""
        async with self._tail.reader(_wanted(request)) as reader:
            # Whoever has these has missed nothing from then on.
            await context.send_initial_metadata(())
            while not self._tail.closing:
                found, missed = await reader.next(SIGN_OF_LIFE_SECONDS)
                if missed or not (found or self._tail.closing):
                    yield pb.TailExecutionsResponse(missed=missed)
                for one in found:
                    yield pb.TailExecutionsResponse(execution=execution(one))
        raise ShuttingDown("This control plane is shutting down; follow again, at another or a little later.")

    async def SummarizeExecutions(self, request: pb.SummarizeExecutionsRequest, _context: Any) -> pb.SummarizeExecutionsResponse:
        """See executions.proto."""
        found = await self._executions.summarize(_wanted(request))
        return pb.SummarizeExecutionsResponse(
            summaries=map(_summary, found.summaries),
            start_time=_timestamp(found.since),
            end_time=_timestamp(found.until),
            dropped=found.dropped,
        )

    async def GetRollbackReport(self, request: pb.GetRollbackReportRequest, _context: Any) -> pb.GetRollbackReportResponse:
        """See executions.proto."""
        return _rollback_report(await self._executions.rollback_report(request.deployment_id))


async def report_of(request: pb.ReportExecutionsRequest) -> Report:
    """What a gateway reports, in the terms of the model; converted a few at a time, so that nobody waits for thousands.

    Raises:
        InvalidField: for what no gateway of ours sends, the first few of them.
        TooLarge: for more than gateways send at once.
    """
    size = request.ByteSize()
    if size > MAX_REPORT_BYTES:
        raise TooLarge("The report", limit=MAX_REPORT_BYTES, given=size)
    found: list[model.Execution] = []
    violations: list[Violation] = []
    for start in range(0, len(request.executions), CONVERT_AT_ONCE):
        for index, message in enumerate(request.executions[start : start + CONVERT_AT_ONCE], start):
            wrong = list(_violations(message))
            violations += [Violation(f"executions[{index}].{field}", why) for field, why in wrong]
            if not wrong:
                found.append(_reported(message, request.gateway_id))
        if len(violations) >= MAX_TOLD_VIOLATIONS:
            break
        await asyncio.sleep(0)
    if violations:
        raise InvalidField(violations[:MAX_TOLD_VIOLATIONS])
    return Report(gateway_id=request.gateway_id, instance_id=request.instance_id, executions=found, dropped=request.dropped)


def _violations(message: pb.Execution) -> Iterator[tuple[str, str]]:
    """What would make it impossible to store or to show."""
    if _id_of(message.execution_id) is None:
        yield "execution_id", f"{message.execution_id[:64]!r} is not a UUID"
    if message.outcome not in _OUTCOMES:
        yield "outcome", f"{message.outcome} is none of {', '.join(model.Outcome.__members__)}"
    if not message.HasField("start_time") or message.start_time.seconds not in TIMESTAMP_SECONDS:
        yield "start_time", "is absent, or no moment"
    if not 0 <= message.duration.seconds <= MAX_DURATION_SECONDS or message.duration.nanos < 0:
        yield "duration", "is negative, or beyond all bounds"


def _id_of(text: str) -> bytes | None:
    """A UUID's bytes; uuid.UUID takes ten times as long."""
    try:
        found = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return found if len(found) == 16 else None


def _reported(message: pb.Execution, gateway_id: str) -> model.Execution:
    """For whom a gateway speaks is not its own choice. Takes the message apart: what is left of it is the detail."""
    start, took = message.start_time, message.duration
    found = model.Execution(
        execution_id=_id_of(message.execution_id) or b"",
        app=_text(message.app),
        environment=_text(message.environment),
        endpoint=_text(message.endpoint),
        release=_text(message.release),
        digest=_text(message.digest),
        revision=message.revision,
        gateway_id=gateway_id,
        start_time=start.seconds * MICROS + start.nanos // 1000,
        duration=took.seconds * MICROS + took.nanos // 1000,
        outcome=message.outcome,
        error_reason=_text(message.error_reason),
        error_message=_text(message.error_message),
        token_id=_text(message.token_id),
        trace_id=_text(message.trace_id),
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
    )
    for name in _IN_COLUMNS:
        message.ClearField(name)
    return msgspec.structs.replace(found, detail=message.SerializeToString())


def _text(text: str) -> str:
    """PostgreSQL takes every character but this one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def execution(found: model.Execution) -> pb.Execution:
    """An execution as a message; with steps, input and output when they are there."""
    message = pb.Execution.FromString(found.detail)
    message.execution_id = str(uuid.UUID(bytes=found.execution_id))
    message.app, message.environment, message.endpoint = found.app, found.environment, found.endpoint
    message.release, message.digest, message.revision = found.release, found.digest, found.revision
    message.gateway_id = found.gateway_id
    message.start_time.FromMicroseconds(found.start_time)
    message.duration.FromMicroseconds(found.duration)
    message.outcome = pb.Execution.Outcome.ValueType(found.outcome)
    message.error_reason, message.error_message = found.error_reason, found.error_message
    message.token_id, message.trace_id = found.token_id, found.trace_id
    message.input_tokens, message.output_tokens = found.input_tokens, found.output_tokens
    return message


def _wanted(request: pb.ListExecutionsRequest | pb.TailExecutionsRequest | pb.SummarizeExecutionsRequest) -> Wanted:
    """The filters of a request, whichever of them it has. Raises InvalidField."""
    known = {field.name for field in request.DESCRIPTOR.fields}
    same = ("app", "environment", "release", "endpoint", "gateway_id", "error_reason", "outcome")
    given: dict[str, Any] = {name: getattr(request, name) for name in same if name in known}
    # Gateways report it without the slash that a person may write.
    given["endpoint"] = given["endpoint"].removeprefix("/")
    for name, moment in (("since", "start_time"), ("until", "end_time")):
        if moment in known and (found := convert.moment(request, moment)) is not None:
            given[name] = _micros(found)
    if "min_duration" in known and request.HasField("min_duration"):  # type: ignore[arg-type]  # not every request has it
        least = request.min_duration.ToTimedelta()  # type: ignore[union-attr]  # looked up above
        if least < timedelta():
            raise InvalidField([Violation("min_duration", "is negative; leave it out, or give how long they took at least")])
        given["min_duration"] = least // timedelta(microseconds=1)
    return Wanted(**given)


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _timestamp(micros: int) -> Timestamp:
    found = Timestamp()
    found.FromMicroseconds(micros)
    return found


def _duration(micros: int) -> Duration:
    found = Duration()
    found.FromMicroseconds(micros)
    return found


def _summary(found: Summary) -> pb.ExecutionSummary:
    figures = found.figures
    ran = figures.succeeded + figures.failed
    p50, p95, p99 = map(_duration, figures.durations)
    return pb.ExecutionSummary(
        app=figures.app,
        environment=figures.environment,
        release=figures.release,
        executions=_all(figures),
        failed=figures.failed,
        refused=figures.refused,
        cancelled=figures.cancelled,
        error_rate=figures.failed / ran if ran else 0.0,
        p50_duration=p50,
        p95_duration=p95,
        p99_duration=p99,
        input_tokens=figures.input_tokens,
        output_tokens=figures.output_tokens,
        first_time=_timestamp(figures.first_time),
        last_time=_timestamp(figures.last_time),
        live=found.live,
        previous_release=found.previous_release,
    )


def _all(figures: Figures) -> int:
    return figures.succeeded + figures.failed + figures.cancelled + figures.refused


def _rollback_report(found: RollbackReport) -> pb.GetRollbackReportResponse:
    deployment, replaced, unbound, uses = found.deployment, found.replaced, found.unbound, found.uses
    ended = (replaced.create_time, replaced.revision) if replaced else (unbound.unbind_time, unbound.revision) if unbound else None
    return pb.GetRollbackReportResponse(
        app=deployment.app,
        environment=deployment.environment,
        release=deployment.release,
        deployment_id=deployment.deployment_id,
        live_time=convert.timestamp(deployment.create_time),
        revision=deployment.revision,
        replaced_by=replaced.deployment_id if replaced else "",
        replace_time=convert.timestamp(ended[0]) if ended else None,
        replace_revision=ended[1] if ended else 0,
        gateways=_uses(uses),
        executions=sum(use.executions for use in uses),
        failed=sum(use.failed for use in uses),
        begun_after_replacement=sum(use.late for use in uses),
        failed_executions=map(execution, found.failed),
    )


def _uses(uses: Sequence[model.Use]) -> Iterator[pb.GetRollbackReportResponse.GatewayUse]:
    for use in uses:
        yield pb.GetRollbackReportResponse.GatewayUse(
            gateway_id=use.gateway_id, executions=use.executions, failed=use.failed, last_time=_timestamp(use.last_time)
        )
