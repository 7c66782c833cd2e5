"""One execution for each trigger, for the control plane's record: sealed beside the answer path, then handed to the spool in batches.

On the answer path a record costs one append. Sealing (what may be captured is redacted and capped, and all of it put into the message that
will be delivered) follows a few at a time, so that no trigger waits behind a burst of it: as soon as there are a few, since what is kept
for longer the garbage collector looks at again and again, else within FLUSH_SECONDS.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections.abc import Callable
from typing import Any

import msgspec

from data_plane import wire
from data_plane.pipeline import FAILED, StepRecord
from data_plane.record import SUCCEEDED, Outcome, Record
from data_plane.spool import Spool
from pointsman.v1.executions_pb2 import Execution

FLUSH_SECONDS = 0.25
SEAL_AT_ONCE = 32
# What one call delivers.
BATCH_RECORDS = 1000
BATCH_BYTES = 2 * 1024 * 1024
MAX_CAPTURED_BYTES = 8 * 1024
# Of one execution: the steps after that are on record without what they were given and gave.
MAX_CAPTURED_IN_ALL_BYTES = 512 * 1024
# Room for what says how much was cut off.
MAX_MARK_BYTES = 64
MAX_MESSAGE_CHARS = 2048
_STEP_OUTCOMES = {name: Execution.StepExecution.Outcome.Value(name) for name in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELLED")}

# Looked up once: the wrappers of protobuf's enums are slow.
_WENT_WRONG = (Outcome.FAILED, Outcome.CANCELLED)

_encode = msgspec.json.Encoder().encode


class Capture(enum.Enum):
    """Of which executions inputs and outputs are kept."""

    NONE = "none"
    ERRORS = "errors"
    ALL = "all"


class Recorder:
    """Takes records as triggers end. `redact` takes the values of secrets out of a text; `observe` is shown each record."""

    def __init__(
        self,
        spool: Spool,
        gateway_id: str,
        capture: Capture,
        redact: Callable[[str], str],
        observe: Callable[[Record], None] = lambda _record: None,
    ) -> None:
        self._spool = spool
        self._gateway_id = gateway_id
        self._sealer = Sealer(gateway_id, capture, redact)
        self._observe = observe
        self._ended: list[Record] = []
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._batches: list[tuple[int, bytes]] = []

    def add(self, record: Record) -> None:
        """A trigger has ended."""
        self._ended.append(record)
        if len(self._ended) == SEAL_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._seal)

    async def run(self) -> None:
        """Hands records to the spool until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._spool.keep()
            self.flush()

    def flush(self) -> None:
        """Everything that has ended so far is in the spool afterwards."""
        self._seal()
        self._close_batch()
        batches, self._batches = self._batches, []
        for count, data in batches:
            self._spool.append(count, data)

    def _seal(self) -> None:
        ended, self._ended = self._ended, []
        for record in ended:
            self._observe(record)
            sealed = self._sealer.seal(record)
            self._batch.append(wire.entry(sealed))
            self._batch_bytes += len(sealed)
            if len(self._batch) >= BATCH_RECORDS or self._batch_bytes >= BATCH_BYTES:
                self._close_batch()

    def _close_batch(self) -> None:
        if self._batch:
            self._batches.append((len(self._batch), b"".join(self._batch)))
            self._batch, self._batch_bytes = [], 0


class Sealer:
    """Makes executions of records."""

    def __init__(self, gateway_id: str, capture: Capture, redact: Callable[[str], str]) -> None:
        self._gateway_id = gateway_id
        self._capture = capture
        self._redact = redact

    def seal(self, record: Record) -> bytes:
        """An Execution, serialised."""
        plain = self._plain(record) if record.outcome == SUCCEEDED and self._capture is not Capture.ALL else None
        return self.whole(record).SerializeToString() if plain is None else plain

    def _plain(self, record: Record) -> bytes | None:
        """The quick way; None for what has more to it than names and times."""
        active, running = record.active, record.running
        if active is None or running is None:
            return None
        steps = []
        for step in running.steps:
            if step.usage is not None or step.outcome == FAILED:
                return None
            head = _wire_head(step.stage, step.name, step.kind, step.outcome, step.attempts)
            steps.append(wire.step(head, step.start_time, step.seconds) if step.attempts else head)
        bound, asked = active.bound, record.asked
        place = (bound.app, bound.environment, bound.release, bound.digest, bound.revision)
        head = _head(self._gateway_id, *place, asked.endpoint, asked.token_id)
        if record.trace is not None:
            head += Execution(trace_id=record.trace.trace_id).SerializeToString()
        return wire.execution(record.execution_id, head, record.start_time, record.seconds, steps)

    def whole(self, record: Record) -> Execution:
        """The same with everything that there is to it, field by field."""
        sealed = Execution()
        asked, active, running = record.asked, record.active, record.running
        sealed.execution_id, sealed.gateway_id, sealed.outcome = record.execution_id, self._gateway_id, record.outcome
        _set_time(sealed.start_time, record.start_time)
        _set_duration(sealed.duration, record.seconds)
        sealed.endpoint = asked.endpoint.removeprefix("/")[:MAX_MESSAGE_CHARS]
        if record.trace is not None:
            sealed.trace_id = record.trace.trace_id
        if asked.token_id:
            sealed.token_id = asked.token_id
        if active is None:
            sealed.app, sealed.environment = asked.app[:MAX_MESSAGE_CHARS], asked.environment[:MAX_MESSAGE_CHARS]
        else:
            bound = active.bound
            sealed.app, sealed.environment, sealed.release = bound.app, bound.environment, bound.release
            sealed.digest, sealed.revision = bound.digest, bound.revision
        if record.error is not None:
            sealed.error_reason = record.error.reason_name
            sealed.error_message = self._redact(record.error.message)[:MAX_MESSAGE_CHARS]
        if running is not None:
            for step in running.steps:
                self._add_step(sealed, step)
        failed = record.outcome in _WENT_WRONG
        if self._capture is Capture.ALL or (self._capture is Capture.ERRORS and failed):
            self._capture_all(record, sealed)
        return sealed

    def _add_step(self, sealed: Execution, step: StepRecord) -> None:
        added = sealed.steps.add()
        added.MergeFromString(_step_head(step.stage, step.name, step.kind, step.outcome, step.attempts))
        if step.attempts:
            _set_time(added.start_time, step.start_time)
            _set_duration(added.duration, step.seconds)
        if step.outcome == FAILED:
            added.error = self._redact(step.error)[:MAX_MESSAGE_CHARS]
        usage = step.usage
        if usage is not None:
            added.model, added.input_tokens, added.output_tokens = usage.model, usage.input_tokens, usage.output_tokens
            sealed.input_tokens += usage.input_tokens
            sealed.output_tokens += usage.output_tokens

    def _capture_all(self, record: Record, sealed: Execution) -> None:
        """What went in and what came out, of the whole and of each step."""
        sealed.input = self._captured(record.asked.input)
        if record.outcome == Outcome.SUCCEEDED:
            sealed.output = self._captured(record.output)
        size = len(sealed.input) + len(sealed.output)
        if record.running is None:
            return
        outputs = record.running.variables["steps"]
        for step, added in zip(record.running.steps, sealed.steps, strict=True):
            if size > MAX_CAPTURED_IN_ALL_BYTES:
                break
            if step.given is not None:
                added.input = self._captured(step.given)
            if step.attempts and step.name in outputs:
                added.output = self._captured(outputs[step.name])
            size += len(added.input) + len(added.output)

    def _captured(self, value: object) -> str:
        """As JSON without secrets, and not too long. Redacted before it is cut, so that no half of a secret is left."""
        text = self._redact(_encode(value).decode())
        if len(text) <= MAX_CAPTURED_BYTES // 4:
            return text
        kept = text.encode()[: MAX_CAPTURED_BYTES - MAX_MARK_BYTES].decode(errors="ignore")
        left = len(text) - len(kept)
        return f"{kept}… ({left} characters more)" if left else kept


@functools.lru_cache(maxsize=4096)
def _step_head(stage: str, name: str, kind: str, outcome: str, attempts: int) -> bytes:
    """What is the same each time, serialised: to merge it takes a third of what setting its fields does."""
    head = Execution.StepExecution(stage=stage, name=name, kind=kind, outcome=_STEP_OUTCOMES[outcome], attempts=attempts)
    return head.SerializeToString()


@functools.lru_cache(maxsize=4096)
def _wire_head(stage: str, name: str, kind: str, outcome: str, attempts: int) -> bytes:
    return wire.step_head(_step_head(stage, name, kind, outcome, attempts), times=attempts > 0)


@functools.lru_cache(maxsize=4096)
def _head(gateway_id: str, app: str, environment: str, release: str, digest: str, revision: int, endpoint: str, token_id: str) -> bytes:
    """What is the same for all that one caller had run of one release, serialised."""
    return Execution(
        gateway_id=gateway_id,
        app=app,
        environment=environment,
        release=release,
        digest=digest,
        revision=revision,
        endpoint=endpoint.removeprefix("/")[:MAX_MESSAGE_CHARS],
        token_id=token_id,
        outcome=SUCCEEDED,
    ).SerializeToString()


def _set_time(field: Any, moment: float) -> None:
    field.seconds = whole = int(moment)
    field.nanos = int((moment - whole) * 1e9)


def _set_duration(field: Any, seconds: float) -> None:
    whole, rest = divmod(wire.microseconds(seconds), wire.MICROS)
    field.nanos = rest * (wire.NANOS // wire.MICROS)
    if whole:
        field.seconds = whole
