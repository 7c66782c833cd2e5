"""W3C trace context: the trace that a trigger belongs to is put on record, named in logs, and passed on to what is called."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import msgspec

MAX_STATE_CHARS = 512
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Trace(msgspec.Struct, frozen=True):
    """A span in a trace: 32 and 16 hex digits, flags as in the header. `exported`: spans are made of what happens in it."""

    trace_id: str
    span_id: str
    flags: str
    state: str = ""
    exported: bool = False


CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""Where what happens now belongs: its caller's span, or the step's own where spans are exported."""
EXECUTION_ID: ContextVar[str] = ContextVar("execution_id", default="")
"""Of the trigger that runs."""


def trace_of(traceparent: str, tracestate: str = "") -> Trace | None:
    """The caller's span; None when the header is absent or is not one, as the standard asks."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return Trace(found[1], found[2], found[3], tracestate[:MAX_STATE_CHARS]) if found else None


def enter_step(trigger: Trace) -> str:
    """A span of its own for the step that begins, in this task, and what it calls; returns its id."""
    span_id = new_span_id()
    CURRENT.set(msgspec.structs.replace(trigger, span_id=span_id))
    return span_id


def new_span_id() -> str:
    """16 hex digits."""
    return secrets.token_hex(8)


def pass_on(headers: MutableMapping[str, str]) -> None:
    """Names the trace to what is called, if there is one."""
    trace = CURRENT.get()
    if trace is None:
        return
    # The caller's own id would make its span the parent of two that know nothing of each other.
    span_id = trace.span_id if trace.exported else new_span_id()
    headers["traceparent"] = f"00-{trace.trace_id}-{span_id}-{trace.flags}"
    if trace.state:
        headers["tracestate"] = trace.state


def name_execution(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For the log: which execution a line is about, and in which trace."""
    if execution_id := EXECUTION_ID.get():
        event.setdefault("execution_id", execution_id)
    if (trace := CURRENT.get()) is not None:
        event.setdefault("trace_id", trace.trace_id)
    return event
