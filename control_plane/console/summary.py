"""Is the new release worse? What each release did over a window, the live one beside the one before it; and what a deployment did."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from control_plane.console.charts import Bars, Course, bars, course
from control_plane.console.filters import read_filters, typed_filters
from control_plane.console.pages import took
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path, with_query
from control_plane.execution_model import Figures, Wanted
from control_plane.service.executions import Summary
from control_plane.storage.sql import to_micros
from pointsman.errors import InvalidField, PointsmanError, Violation
from pointsman.rules import check_request
from pointsman.v1.executions_pb2 import GetRollbackReportRequest

WINDOWS = {"15m": "15 minutes", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours", "7d": "7 days"}
DEFAULT_WINDOW = "15m"
PIECES = 24
MAX_RELEASES = 20
MAX_FAILED = 50
# 95 % confidence, of two sides.
Z = 1.96
# Durations vary by themselves; less than this is not called slower, nor with fewer executions.
SLOWER = 1.25
FEW = 30


class Place(msgspec.Struct, frozen=True):
    """One environment: the live release, the one before it, and what is said of them."""

    environment: str
    live: Summary | None
    before: Summary | None
    verdict: str
    news: str
    courses: list[Course]
    bars: Bars | None
    rows: list[Summary]


class SummaryPages:
    """Verdicts on releases."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit) -> Response:
        """Of a window that ends now."""
        app, now = visit.part("app"), self._parts.clock()
        typed = typed_filters(visit)
        window = typed["since"] or DEFAULT_WINDOW
        shown: dict[str, Any] = {"places": [], "dropped": 0, "times": []}
        problem: PointsmanError | None = None
        try:
            wanted = await read_filters(visit, app, typed | {"since": window}, now)
            shown |= await self._summed(msgspec.structs.replace(wanted, until=to_micros(now) if wanted.until is None else wanted.until))
        except InvalidField as error:
            problem = error
        here = path("apps", app, "summary")
        return visit.page(
            "summary.html",
            tab="summary",
            problem=problem,
            app=app,
            typed=typed,
            window=window,
            windows=[(key, text, with_query(here, **typed | {"since": key})) for key, text in WINDOWS.items()],
            environments=await self._parts.all_environments(),
            max_releases=MAX_RELEASES,
            ran=_ran,
            rate=_rate,
            count=_count,
            **shown,
        )

    async def _summed(self, wanted: Wanted) -> dict[str, Any]:
        found = await self._parts.executions.summarize(wanted)
        pieces = await self._parts.executions.course(wanted, PIECES) if found.summaries else []
        places: dict[str, list[Summary]] = {}
        for summary in found.summaries:
            places.setdefault(summary.figures.environment, []).append(summary)
        order = {environment.environment: at for at, environment in enumerate(await self._parts.all_environments())}
        seconds = (found.until - found.since) / 1_000_000 / PIECES
        named = sorted(places, key=lambda name: (order.get(name, len(order)), name))
        return {
            "places": [_place(name, places[name], pieces, seconds) for name in named],
            "dropped": found.dropped,
            "times": [found.since + (found.until - found.since) * at // PIECES for at in range(PIECES)],
        }

    async def report(self, visit: Visit) -> Response:
        """What a release did from its deployment until it was replaced."""
        app, deployment_id = visit.part("app"), visit.part("deployment")
        if violations := check_request(GetRollbackReportRequest(deployment_id=deployment_id)):
            raise InvalidField(violations)
        found = await self._parts.executions.rollback_report(deployment_id)
        if found.deployment.app != app:
            raise InvalidField([Violation("deployment_id", f"deployment {deployment_id} is not one of {app}")])
        visit.check_place(app, found.deployment.environment)
        return visit.page(
            "report.html",
            tab="environments",
            app=app,
            found=found,
            ran=sum(use.executions for use in found.uses),
            failed=sum(use.failed for use in found.uses),
            late=sum(use.late for use in found.uses),
            failures=[(str(uuid.UUID(bytes=one.execution_id)), one) for one in found.failed[:MAX_FAILED]],
        )


def _place(environment: str, rows: list[Summary], pieces: Sequence[Sequence[Figures]], seconds: float) -> Place:
    live = next((row for row in rows if row.live), None)
    before = next((row for row in rows if live and row is not live and row.figures.release == live.previous_release), None)
    verdict, news = _verdict(live, before)
    pair = [(row, kind) for row, kind in ((live, "live"), (before, "before")) if row is not None]
    return Place(
        environment=environment,
        live=live,
        before=before,
        verdict=verdict,
        news=news,
        courses=_courses(environment, pair, pieces, seconds) if pair else [],
        bars=_latencies(pair) if any(_ran(row.figures) for row, _ in pair) else None,
        rows=rows,
    )


def _courses(environment: str, pair: Sequence[tuple[Summary, str]], pieces: Sequence[Sequence[Figures]], seconds: float) -> list[Course]:
    found = [{one.release: one for one in piece if one.environment == environment} for piece in pieces]
    named = [(row.figures.release, kind, [piece.get(row.figures.release) for piece in found]) for row, kind in pair]
    return [
        course("Executions/s", [(name, kind, [_count(f) / seconds if f else 0.0 for f in of]) for name, kind, of in named], _number),
        course("Error rate", [(name, kind, [_rate(f) if f and _ran(f) else None for f in of]) for name, kind, of in named], _percent),
        course(
            "95 % took at most",
            [(name, kind, [float(f.durations[1]) if f and _ran(f) else None for f in of]) for name, kind, of in named],
            _length,
        ),
    ]


def _latencies(pair: Sequence[tuple[Summary, str]]) -> Bars:
    series = [(row.figures.release, kind, [float(micros) for micros in row.figures.durations]) for row, kind in pair if _ran(row.figures)]
    return bars("Latency", ("p50", "p95", "p99"), series, _length)


def _verdict(live: Summary | None, before: Summary | None) -> tuple[str, str]:
    """What is said, and what it is: `bad`, `good` or `plain`, where nothing could be compared."""
    if live is None:
        return "What is live here did not run in this window.", "plain"
    new = live.figures
    if before is None:
        earlier = f"{live.previous_release}, live before it, did not run in this window; choose a longer one to compare."
        return (earlier if live.previous_release else "It is the first release here: there is none before it to compare with."), "plain"
    old = before.figures
    if idle := next((figures.release for figures in (new, old) if not _ran(figures)), None):
        return f"No execution of {idle} succeeded or failed in this window; choose a longer one to compare.", "plain"
    worse = []
    if _interval(new)[0] > _interval(old)[1]:
        worse.append(f"fails more often: {_percent(_rate(new))}, was {_percent(_rate(old))}")
    if min(_ran(new), _ran(old)) >= FEW and new.durations[1] > SLOWER * old.durations[1]:
        worse.append(f"is slower: 95 % took at most {took(new.durations[1])}, was {took(old.durations[1])}")
    if worse:
        return f"{new.release} {'; and it '.join(worse)}.", "bad"
    same = f"{new.release} is no worse than {old.release}"
    numbers = f"it fails {_percent(_rate(new))}, was {_percent(_rate(old))}; p95 {took(new.durations[1])}, was {took(old.durations[1])}"
    few = f", as far as {_ran(new):,} executions can tell" if _ran(new) < FEW else ""
    return f"{same}{few}: {numbers}.", "good"


def _interval(figures: Figures) -> tuple[float, float]:
    """Between which two the true error rate lies, with a confidence of 95 %: Wilson, J. Am. Stat. Assoc. 22 (1927) 209."""
    ran = _ran(figures)
    if not ran:
        return 0.0, 1.0
    share, square = _rate(figures), Z * Z
    middle = (share + square / (2 * ran)) / (1 + square / ran)
    half = Z / (1 + square / ran) * math.sqrt(share * (1 - share) / ran + square / (4 * ran * ran))
    return middle - half, middle + half


def _ran(figures: Figures) -> int:
    return figures.succeeded + figures.failed


def _count(figures: Figures) -> int:
    return _ran(figures) + figures.cancelled + figures.refused


def _rate(figures: Figures) -> float:
    ran = _ran(figures)
    return figures.failed / ran if ran else 0.0


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _length(value: float) -> str:
    return took(round(value))
