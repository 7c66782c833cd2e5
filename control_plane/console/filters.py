"""Which executions a person asks for: as typed, as the request that would ask the same over gRPC, and as the store is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from control_plane.console.visit import Visit
from control_plane.execution_model import Outcome, Wanted
from control_plane.storage.sql import from_micros, to_micros
from pointsman.errors import InvalidField, Violation
from pointsman.v1.executions_pb2 import Execution, ListExecutionsRequest

FIELDS = ("environment", "release", "endpoint", "outcome", "gateway_id", "error_reason", "min_duration", "since", "until")
OUTCOMES = tuple(outcome.name for outcome in Outcome)
MAX_SECONDS = 36_500 * 86_400
_LENGTH = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def typed_filters(visit: Visit) -> dict[str, str]:
    """Name -> what was typed. Whose token is for some environments alone sees the first of them until another is named."""
    typed = {name: visit.asked(name) for name in FIELDS}
    if not typed["environment"] and visit.own_environments:
        typed["environment"] = visit.own_environments[0]
    return typed


async def read_filters(visit: Visit, app: str, typed: Mapping[str, str], now: datetime) -> Wanted:
    """What the store is to be asked.

    Raises:
        InvalidField: with what is wrong with which field.
        PermissionDenied: when the token does not allow to see that.
    """
    outcome = typed["outcome"].upper()
    if outcome and outcome not in OUTCOMES:
        raise InvalidField([Violation("outcome", f"{typed['outcome'][:40]!r} is none of {', '.join(OUTCOMES)}")])
    given = {name: typed[name] for name in ("environment", "release", "endpoint", "gateway_id", "error_reason")}
    await visit.check(ListExecutionsRequest(app=app, outcome=Execution.Outcome.Value(outcome) if outcome else 0, **given))  # type: ignore[arg-type]
    least = typed["min_duration"]
    return Wanted(
        app=app,
        environment=typed["environment"],
        release=typed["release"],
        endpoint=typed["endpoint"].removeprefix("/"),
        gateway_id=typed["gateway_id"],
        error_reason=typed["error_reason"],
        outcome=int(Outcome[outcome]) if outcome else 0,
        min_duration=round(seconds_of("min_duration", least) * 1_000_000) if least else 0,
        since=_micros(moment_of("since", typed["since"], now)),
        until=_micros(moment_of("until", typed["until"], now)),
    )


def pinned(typed: Mapping[str, str], wanted: Wanted) -> dict[str, str]:
    """The filters for the link to the next page: `15m` ago must not mean another moment there."""
    moments = {"since": wanted.since, "until": wanted.until}
    return dict(typed) | {name: from_micros(micros).isoformat() for name, micros in moments.items() if micros is not None}


def seconds_of(field: str, text: str) -> float:
    """In seconds. Raises InvalidField."""
    found = _LENGTH.fullmatch(text)
    if not found:
        raise InvalidField([Violation(field, f"{text[:40]!r} is not a duration such as 500ms, 2s, 15m, 1h or 7d")])
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > MAX_SECONDS:
        raise InvalidField([Violation(field, f"{text[:40]!r} is more than {MAX_SECONDS // 86400:,} days")])
    return seconds


def moment_of(field: str, text: str, now: datetime) -> datetime | None:
    """A moment, or how long ago it was; None where nothing was typed. Raises InvalidField."""
    if not text:
        return None
    if _LENGTH.fullmatch(text):
        return now - timedelta(seconds=seconds_of(field, text))
    try:
        # A plus sign of a link that was not escaped arrives as a space.
        found = datetime.fromisoformat(re.sub(r" (\d\d:\d\d)$", r"+\1", text) if "T" in text else text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        how = f"{text[:40]!r} is no time: write how long ago, such as 15m or 2h, or a moment, such as 2026-01-31T12:00 (UTC)"
        raise InvalidField([Violation(field, how)]) from None


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)
