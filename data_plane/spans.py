"""OpenTelemetry spans of each trigger, its stages and its steps, over OTLP/HTTP: the only file that knows that library, an extra.

Where to, how often and how much is sampled say the standard OTEL_... variables. On the answer path ids are drawn; the spans are made of the
record when it is sealed. So they end as the record does: a failure is an error here, which OpenTelemetry's own interceptor for
grpc.aio takes for a success.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState, set_span_in_context
from opentelemetry.util.types import AttributeValue

import pointsman
from data_plane.executions import MAX_MESSAGE_CHARS
from data_plane.lookup import Asked
from data_plane.pipeline import FAILED, StepRecord
from data_plane.record import Outcome, Record
from data_plane.tracing import Trace, new_span_id

SERVICE = "pointsman-gateway"
# For a collector that takes its time, at the end.
LAST_EXPORT_SECONDS = 3.0

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("pointsman", pointsman.__version__)
_OK = Status(StatusCode.UNSET)

Attributes = dict[str, AttributeValue]


class CannotExportError(Exception):
    """The variables ask for what is not spoken here; the message says what to do."""


class Spans:
    """Of one gateway process. `redact` takes the values of secrets out of a text."""

    def __init__(self, gateway_id: str, redact: Callable[[str], str]) -> None:
        """Raises CannotExportError."""
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        if protocol != "http/protobuf":
            spoken = "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, and as the endpoint the collector's port for HTTP, by default 4318"
            raise CannotExportError(f"spans are exported as http/protobuf alone, not as {protocol}: {spoken}")
        # Read by the provider, beside OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER.
        if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE)
        provider = TracerProvider(shutdown_on_exit=False)
        self._resource = provider.resource
        # Some of their methods have no types.
        self._sampler: Any = provider.sampler
        self._ids = RandomIdGenerator()
        self._gateway_id = gateway_id
        self._redact = redact
        self._exporter: Any = OTLPSpanExporter()
        self._processor: Any = BatchSpanProcessor(self._exporter)

    def begin(self, asked: Asked) -> Trace:
        """The span of a trigger: in its caller's trace, or in a new one."""
        caller = asked.trace
        trace_id = int(caller.trace_id, 16) if caller is not None else self._ids.generate_trace_id()
        context = Context() if caller is None else set_span_in_context(NonRecordingSpan(_remote(caller)), Context())
        sampled = self._sampler.should_sample(context, trace_id, "trigger", SpanKind.SERVER).decision.is_sampled()
        state = caller.state if caller is not None else ""
        return Trace(f"{trace_id:032x}", new_span_id(), "01" if sampled else "00", state, exported=sampled)

    def observe(self, record: Record) -> None:
        """Exports what the record says, if its trace is sampled. Steps that did not run have no span."""
        trace = record.trace
        if trace is None or not trace.exported:
            return
        caller, context = record.asked.trace, _context(trace, trace.span_id)
        ran = [step for step in record.running.steps if step.attempts] if record.running is not None else []
        for stage, steps in itertools.groupby(ran, lambda step: step.stage):
            self._stage(stage, list(steps), trace, context)
        error = record.error
        attributes: Attributes = {**self._where(record), "pointsman.outcome": Outcome.Name(record.outcome).lower()}
        status = _OK
        if error is not None:
            attributes["error.type"] = error.reason_name
            if record.outcome == Outcome.FAILED or error.http_status >= 500:
                status = self._error(error.message)
        endpoint = attributes.get("pointsman.endpoint")
        name = f"trigger {endpoint}" if endpoint else "trigger"
        parent = _remote(caller) if caller is not None else None
        self._end(name, context, parent, SpanKind.SERVER, attributes, status, record.start_time, record.seconds)

    async def close(self) -> None:
        """Exports what is left, if the collector takes it soon."""
        ending = asyncio.create_task(asyncio.to_thread(self._processor.shutdown))
        done, _ = await asyncio.wait({ending}, timeout=LAST_EXPORT_SECONDS)
        if not done:
            # Ends its waits between tries.
            self._exporter.shutdown()
        await ending

    def _where(self, record: Record) -> Attributes:
        found: Attributes = {"pointsman.execution_id": record.execution_id, "pointsman.gateway_id": self._gateway_id}
        active = record.active
        if active is not None:
            bound, path = active.bound, record.asked.endpoint.removeprefix("/")
            found |= {
                "pointsman.app": bound.app,
                "pointsman.environment": bound.environment,
                "pointsman.release": bound.release,
                "pointsman.digest": bound.digest,
                "pointsman.revision": bound.revision,
            }
            if path in active.loaded.endpoints:
                found["pointsman.endpoint"] = path
        return found

    def _stage(self, name: str, steps: list[StepRecord], trace: Trace, parent: SpanContext) -> None:
        context = _context(trace, new_span_id())
        for step in steps:
            self._step(step, _context(trace, step.span_id), context)
        began = min(step.start_time for step in steps)
        took = max(step.start_time + step.seconds for step in steps) - began
        failed = [step for step in steps if step.outcome == FAILED]
        status = self._error(failed[-1].error) if failed else _OK
        self._end(f"stage {name}", context, parent, SpanKind.INTERNAL, {"pointsman.stage": name}, status, began, took)

    def _step(self, step: StepRecord, context: SpanContext, parent: SpanContext) -> None:
        attributes: Attributes = {
            "pointsman.step": step.name,
            "pointsman.kind": step.kind,
            "pointsman.attempts": step.attempts,
            "pointsman.outcome": step.outcome.lower(),
        }
        usage = step.usage
        if usage is not None and usage.model:
            attributes |= {
                "gen_ai.response.model": usage.model,
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
            }
        kind = SpanKind.INTERNAL if step.kind == "transform" else SpanKind.CLIENT
        status = self._error(step.error) if step.outcome == FAILED else _OK
        self._end(f"step {step.name}", context, parent, kind, attributes, status, step.start_time, step.seconds)

    def _error(self, message: str) -> Status:
        return Status(StatusCode.ERROR, self._redact(message)[:MAX_MESSAGE_CHARS])

    def _end(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        status: Status,
        began: float,
        took: float,
    ) -> None:
        # Made here and not by a tracer, which would draw other ids than those that were passed on, and sample anew.
        self._processor.on_end(
            ReadableSpan(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=kind,
                status=status,
                start_time=int(began * 1e9),
                end_time=int((began + took) * 1e9),
                instrumentation_scope=_SCOPE,
            )
        )


def _context(trace: Trace, span_id: str) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED, trace_state=_state(trace))


def _remote(caller: Trace) -> SpanContext:
    flags = TraceFlags(int(caller.flags, 16))
    return SpanContext(int(caller.trace_id, 16), int(caller.span_id, 16), is_remote=True, trace_flags=flags, trace_state=_state(caller))


def _state(trace: Trace) -> TraceState | None:
    return TraceState.from_header([trace.state]) if trace.state else None
