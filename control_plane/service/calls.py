"""What every mutation is told besides its own arguments, and the promise that a repeated request is answered as the first was."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from google.protobuf.message import Message

from control_plane.model import RememberedRequest
from control_plane.storage.base import ReadTransaction, Transaction
from pointsman.errors import InvalidField, Violation

T = TypeVar("T")
Clock = Callable[[], datetime]
# For at least so long; what is older goes when the next request is remembered.
REQUEST_MEMORY = timedelta(hours=24)
# The caller, where nobody had to show a token and none was named.
ANONYMOUS = "anonymous"


def utc_now() -> datetime:
    """The clock of a running server."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, and how. `fingerprint` tells one request body from another; it matters only with a request_id."""

    actor: str
    request_id: str = ""
    fingerprint: str = ""
    validate_only: bool = False


def fingerprint_of(request: Message) -> str:
    """The same for the same request, whichever door it came through."""
    body = request.DESCRIPTOR.full_name.encode() + b"\n" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(body).hexdigest()


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
    """The remembered result of the request, or else that of do(), remembered in the same transaction.

    Raises as recall.
    """
    first = await recall(tx, call)
    if first is not None:
        return msgspec.msgpack.decode(first.answer, type=result_type)
    result = await do()
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
