"""Moments on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from control_plane.cli.durations import DURATION, DURATION_TEXT


class MomentType(click.ParamType[datetime]):
    """ISO 8601: `2026-01-31`, `2026-01-31T12:00:30Z`, `2026-01-31 12:00+02:00`; in UTC when it does not say otherwise."""

    name = "time"
    examples = "2026-01-31T12:00 or 2026-01-31T12:00+02:00"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Takes text, or a moment."""
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value).strip())
        except ValueError:
            self.fail(f"{value!r} is not a time such as {self.examples}", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


class PastType(MomentType):
    """As MomentType, or how long ago: `15m`, `1h30m`."""

    examples = "15m (ago), 2026-01-31T12:00 or 2026-01-31T12:00+02:00"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Takes text, or a moment."""
        if not isinstance(value, datetime) and DURATION_TEXT.fullmatch(str(value).strip()):
            return datetime.now(UTC) - timedelta(seconds=DURATION.convert(value, param, ctx))
        return super().convert(value, param, ctx)


MOMENT = MomentType()
PAST = PastType()
