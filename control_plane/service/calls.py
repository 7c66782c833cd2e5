"""What every mutation is told besides its own arguments, and the promise that a repeated request is answered as the first was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from control_plane.model import Attempt, AuditEntry, RememberedRequest
from control_plane.storage.base import ReadTransaction, Transaction
from pointsman.errors import InvalidField, Violation

T = TypeVar("T")
Clock = Callable[[], datetime]
# For at least so long; what is older goes when the next request is remembered.
REQUEST_MEMORY = timedelta(hours=24)
# The caller, where nobody had to show a token and none was named.
ANONYMOUS = "anonymous"
MAX_DETAIL_CHARS = 200
MAX_DETAIL_ITEMS = 20
_NO_DETAIL = ("request_id", "validate_only", "config", "yaml")


def utc_now() -> datetime:
    """The clock of a running server."""
    return datetime.now(UTC)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and how. `fingerprint` tells one request body from another; it matters only with a request_id."""

    actor: str
    request_id: str = ""
    fingerprint: str = ""
    validate_only: bool = False
    attempt: Attempt | None = None
    """For the audit log; None: what is done leaves no entry."""


def fingerprint_of(request: Message) -> str:
    """The same for the same request, whichever door it came through."""
    body = request.DESCRIPTOR.full_name.encode() + b"\n" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(body).hexdigest()


def attempt_of(request: Message, *, actor: str, token_id: str = "", peer: str = "") -> Attempt:
    """What a request asks for, in short."""
    fields = {field.name: value for field, value in request.ListFields()}
    named = {name: str(fields.pop(name, ""))[:MAX_DETAIL_CHARS] for name in ("app", "environment", "reason")}
    if not named["environment"]:
        named["environment"] = str(fields.pop("to_environment", fields.pop("deploy_to", "")))[:MAX_DETAIL_CHARS]
    detail = {name: _in_short(value) for name, value in fields.items() if name not in _NO_DETAIL}
    method = request.DESCRIPTOR.name.removesuffix("Request")
    told = json.dumps(detail, ensure_ascii=False) if detail else ""
    return Attempt(actor=actor, token_id=token_id, peer=peer, method=method, detail=told, **named)


def _in_short(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_DETAIL_CHARS else f"{value[:MAX_DETAIL_CHARS]}..."
    if isinstance(value, Message):
        small = value.ByteSize() <= MAX_DETAIL_CHARS
        return json_format.MessageToDict(value, preserving_proto_field_name=True) if small else f"{value.ByteSize()} bytes"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return [_in_short(one) for one in value[:MAX_DETAIL_ITEMS]] + (["..."] if len(value) > MAX_DETAIL_ITEMS else [])


def entry_of(attempt: Attempt, *, now: datetime, outcome: str = "OK", message: str = "", grown: tuple[int, int] = (0, 0)) -> AuditEntry:
    """What became of an attempt. `grown`: the store's revision before and after."""
    known = {name: getattr(attempt, name).replace("\0", "") for name in Attempt.__struct_fields__}
    before, after = grown
    return AuditEntry(entry_time=now, before_revision=before, revision=after, outcome=outcome, message=message.replace("\0", ""), **known)


async def record(tx: Transaction, call: Call, now: datetime) -> None:
    """Adds the entry of a change that was made in this transaction to the audit log."""
    if call.attempt is not None:
        await tx.append_audit(entry_of(call.attempt, now=now, grown=tx.grown or (0, 0)))


async def recall(tx: ReadTransaction, call: Call) -> RememberedRequest | None:
    """What was answered to this request before, if it was asked before.

    Raises:
        InvalidField: when the request_id was used with another body.
    """
    first = await tx.remembered_request(call.actor, call.request_id) if call.request_id else None
    if first is not None and first.fingerprint != call.fingerprint:
        used = f"{call.request_id!r} was used before with another request; give each new request an id of its own"
        raise InvalidField([Violation("request_id", used)], request_id=call.request_id)
    return first


async def once(tx: Transaction, call: Call, now: datetime, result_type: type[T], do: Callable[[], Awaitable[T]]) -> T:
    """The remembered result of the request, or else that of do(), remembered, and told in the audit log, in the same transaction.

    Raises as recall.
    """
    first = await recall(tx, call)
    if first is not None:
        return msgspec.msgpack.decode(first.answer, type=result_type)
    result = await do()
    await record(tx, call, now)
    if not call.request_id:
        return result
    await tx.forget_requests(before=now - REQUEST_MEMORY)
    await tx.remember_request(
        RememberedRequest(
            caller=call.actor,
            request_id=call.request_id,
            fingerprint=call.fingerprint,
            answer=msgspec.msgpack.encode(result),
            create_time=now,
        )
    )
    return result
