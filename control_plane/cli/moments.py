"""Moments on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from control_plane.cli.durations import DURATION, DURATION_TEXT


class MomentType(click.ParamType[datetime]):
    """ISO 8601, in UTC when it does not say otherwise: `2026-01-31`, `2026-01-31 12:00+02:00`; or how long ago: `15m`, `1h30m`."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Takes text, or a moment."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if DURATION_TEXT.fullmatch(text):
            return datetime.now(UTC) - timedelta(seconds=DURATION.convert(text, param, ctx))
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 15m (ago), 2026-01-31T12:00 or 2026-01-31T12:00+02:00", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


MOMENT = MomentType()
