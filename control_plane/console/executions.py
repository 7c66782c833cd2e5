"""What ran: a list that is filtered, the same as it happens, and one execution with its steps drawn to scale."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from control_plane.console.filters import FIELDS, OUTCOMES, pinned, read_filters, typed_filters
from control_plane.console.pages import laid_out, server_sent
from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, path, with_query
from control_plane.execution_model import Execution, Outcome, Wanted
from control_plane.service.paging import PageRequest
from control_plane.storage.sql import to_micros
from pointsman.captured import why_not_again
from pointsman.errors import InvalidField, PointsmanError, Unauthenticated
from pointsman.v1 import executions_pb2 as pb

PAGE_SIZE = 50
# Newest first; what comes more quickly than a person can read is counted and not shown.
MAX_AT_ONCE = 50
MIN_PAUSE_SECONDS = 0.1
SIGN_OF_LIFE_SECONDS = 8.0
# A browser connects again by itself; nothing stays open for ever.
STREAM_SECONDS = 600.0
DAY_MICROS = 86_400_000_000
# Inputs and outputs are cut off after 8 KiB each by gateways.
MAX_SHOWN_STEPS = 200


_STEP_OUTCOMES = {number: name for name, number in pb.Execution.StepExecution.Outcome.items()}


class Drawn(msgspec.Struct, frozen=True):
    """A step, and where its bar begins and how long it is, in percent of the whole; None when it never began."""

    step: pb.Execution.StepExecution
    outcome: str
    took: int
    bar: tuple[float, float] | None


class ExecutionPages:
    """Executions of an app."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, visit: Visit) -> Response:
        """Newest first; with `errors` those that failed on top; with `live` it follows."""
        app, typed = visit.part("app"), typed_filters(visit)
        shown: dict[str, Any] = {"executions": [], "failed": [], "older": "", "newest": "", "dropped": 0}
        problem: PointsmanError | None = None
        try:
            wanted = await read_filters(visit, app, typed, self._parts.clock())
            shown |= await self._listed(visit, wanted, typed)
        except InvalidField as error:
            problem = error
        here = path("apps", app, "executions")
        live = bool(visit.asked("live")) and problem is None
        return visit.page(
            "executions.html",
            tab="executions",
            problem=problem,
            app=app,
            typed=typed,
            errors_first=bool(visit.asked("errors")),
            is_filtered=any(typed[name] for name in FIELDS),
            outcomes=OUTCOMES,
            environments=await self._parts.all_environments(),
            live=live,
            tail=with_query(path("apps", app, "executions", "tail"), **typed) if live else "",
            live_link=with_query(here, **typed, live="yes"),
            still_link=with_query(here, **typed),
            max_rows=PAGE_SIZE * 4,
            line=visit.command("--app", app, "logs", "-f", *_flags(typed)),
            **shown,
        )

    async def _listed(self, visit: Visit, wanted: Wanted, typed: Mapping[str, str]) -> dict[str, Any]:
        token = visit.asked("page")
        page = await self._parts.executions.list(wanted, PageRequest(size=PAGE_SIZE, token=token))
        failed: list[Execution] = []
        if visit.asked("errors") and not token and not wanted.outcome:
            only = msgspec.structs.replace(wanted, outcome=int(Outcome.FAILED))
            failed = (await self._parts.executions.list(only, PageRequest(size=PAGE_SIZE))).items
        here = path("apps", wanted.app, "executions")
        more = page.next_page_token
        return {
            "executions": [_row(one) for one in page.items],
            "failed": [_row(one) for one in failed],
            "older": with_query(here, **pinned(typed, wanted), page=more) if more else "",
            "dropped": await self._dropped(wanted),
            "newest": with_query(here, **typed) if token else "",
        }

    async def _dropped(self, wanted: Wanted) -> int:
        """How many are missing in the time that is looked at; of the last day where no beginning is named."""
        until = to_micros(self._parts.clock()) if wanted.until is None else wanted.until
        return await self._parts.executions.dropped(until - DAY_MICROS if wanted.since is None else wanted.since, until)

    async def tail(self, visit: Visit) -> Response:
        """Server-sent events: `all` with the newest rows, then `rows` with those that came, and `missed` with how many were not told."""
        app = visit.part("app")
        wanted = await read_filters(visit, app, typed_filters(visit), self._parts.clock())
        return visit.stream(self._events(visit, msgspec.structs.replace(wanted, until=None)))

    async def _events(self, visit: Visit, wanted: Wanted) -> AsyncIterator[str]:
        ends = time.monotonic() + STREAM_SECONDS
        async with self._parts.tail.reader(wanted) as reader:
            # From here on nothing is missed; what was stored before is listed, and told again after a break.
            newest = await self._parts.executions.list(wanted, PageRequest(size=PAGE_SIZE))
            yield self._event(visit, "all", newest.items)
            while not self._parts.tail.closing and time.monotonic() < ends:
                found, missed = await reader.next(SIGN_OF_LIFE_SECONDS)
                try:
                    visit.check_still_in(self._parts.authority)
                except Unauthenticated:
                    yield server_sent("end", "")
                    return
                if not found and not missed:
                    yield ": still here\n\n"
                    continue
                missed += max(0, len(found) - MAX_AT_ONCE)
                if missed:
                    yield server_sent("missed", str(missed))
                yield self._event(visit, "rows", found[-MAX_AT_ONCE:][::-1])
                await asyncio.sleep(MIN_PAUSE_SECONDS)

    def _event(self, visit: Visit, name: str, executions: Sequence[Execution]) -> str:
        shown = visit.fragment("_execution_rows.html", executions=[_row(one) for one in executions], app=visit.part("app"))
        return server_sent(name, shown)

    async def one(self, visit: Visit) -> Response:
        """Its steps, what was captured, and why it failed."""
        app, execution_id = visit.part("app"), visit.part("execution")
        await visit.check(pb.GetExecutionRequest(app=app, execution_id=execution_id))
        found = await self._parts.executions.get(execution_id, app)
        visit.check_place(app, found.environment)
        detail = pb.Execution.FromString(found.detail)
        steps = [_drawn(found, step) for step in detail.steps[:MAX_SHOWN_STEPS]]
        return visit.page(
            "execution.html",
            tab="executions",
            app=app,
            one=_row(found),
            steps=steps,
            cut=len(detail.steps) - len(steps),
            failed_step=next((drawn.step for drawn in steps if drawn.outcome == "FAILED"), None),
            captured=_captured(detail),
            again=_again(app, found, detail.input),
            line=visit.command("execution", "show", execution_id),
        )


def _row(found: Execution) -> dict[str, Any]:
    """An execution for templates."""
    return {
        "id": str(uuid.UUID(bytes=found.execution_id)),
        "outcome": Outcome(found.outcome).name,
        "of": found,
    }


def _flags(typed: Mapping[str, str]) -> list[str]:
    """The filters, for a command."""
    return [part for name in FIELDS if typed[name] for part in (f"--{name.replace('_', '-')}", typed[name])]


def _drawn(one: Execution, step: pb.Execution.StepExecution) -> Drawn:
    took = step.duration.ToMicroseconds()
    # A newer gateway may know more of them.
    outcome = _STEP_OUTCOMES.get(step.outcome, str(step.outcome))
    if not step.HasField("start_time"):
        return Drawn(step, outcome, took, None)
    whole = max(one.duration, 1)
    began = step.start_time.ToMicroseconds() - one.start_time
    first, last = (min(max(moment / whole, 0.0), 1.0) for moment in (began, began + took))
    return Drawn(step, outcome, took, (round(first * 100, 3), round((last - first) * 100, 3)))


def _again(app: str, one: Execution, given: str) -> str:
    """Where the same input can be sent again, to the release that is live now; empty when it is not on record as it came."""
    if not one.environment or why_not_again(given):
        return ""
    execution_id = str(uuid.UUID(bytes=one.execution_id))
    return with_query(path("apps", app, "try"), environment=one.environment, endpoint=one.endpoint, execution=execution_id)


def _captured(detail: pb.Execution) -> list[tuple[str, str]]:
    """What it is, and the text; JSON is laid out, what was cut off stays as it is."""
    texts = [("Input", detail.input), ("Output", detail.output)]
    for step in detail.steps[:MAX_SHOWN_STEPS]:
        texts += [(f"{step.stage} / {step.name}: input", step.input), (f"{step.stage} / {step.name}: output", step.output)]
    return [(name, laid_out(text)) for name, text in texts if text]
