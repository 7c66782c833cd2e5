"""What ran: reported by gateways, looked at by people, and summed up to tell whether a release is worse than the one before it."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from control_plane.execution_model import Execution, Figures, Outcome, Report, Use, Wanted
from control_plane.model import Action, Deployment, Unbinding
from control_plane.service.calls import Clock
from control_plane.service.paging import Page, PageRequest, foreign_token
from control_plane.storage.base import ExecutionStore, ReadTransaction, Store
from control_plane.storage.sql import from_micros, to_micros
from control_plane.tail import Tail
from pointsman.errors import ExecutionNotFound, InvalidField, Violation

DEFAULT_WINDOW = timedelta(hours=1)
MAX_FAILED_EXECUTIONS = 500
# By how much a gateway's clock may be behind.
MAX_CLOCK_SKEW = timedelta(minutes=10)
# More than any installation has: a summary tells of each whether it is live.
MAX_BINDINGS = 100_000


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One release in one environment; `previous_release` is empty for the first one there."""

    figures: Figures
    live: bool
    previous_release: str


class Summaries(msgspec.Struct, frozen=True, kw_only=True):
    """Of a window, and how many executions are missing in them."""

    summaries: list[Summary]
    since: int
    until: int
    dropped: int


class RollbackReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the release of a deployment did. While it is live, `replaced` and `unbound` are None; at most one of them is not."""

    deployment: Deployment
    replaced: Deployment | None
    unbound: Unbinding | None
    uses: list[Use]
    failed: list[Execution]


class Executions:
    """The use cases of ExecutionService, and ReportExecutions."""

    def __init__(self, store: Store, executions: ExecutionStore, tail: Tail, clock: Clock) -> None:
        self._store = store
        self._executions = executions
        self._tail = tail
        self._clock = clock

    async def report(self, report: Report) -> int:
        """Stores what is new, tells who follows, and says how many that were.

        Environments that callers made up become one without a name: each would be kept as many executions of as of a real one.
        """
        asked = {execution.environment for execution in report.executions if not execution.release and execution.environment}
        made_up = await self._store.read(lambda tx: _unknown(tx, asked)) if asked else set()
        if made_up:
            report = msgspec.structs.replace(report, executions=[_nowhere(one, made_up) for one in report.executions])
        new = await self._executions.record(report, to_micros(self._clock()))
        self._tail.publish(new)
        return len(new)

    async def get(self, execution_id: str, app: str) -> Execution:
        """One, of the app unless that is empty. Raises ExecutionNotFound."""
        found = await self._executions.execution(uuid.UUID(execution_id).bytes)
        if found is None or (app and found.app != app):
            why = "Gateways report within seconds; what is older than this control plane keeps is gone."
            raise ExecutionNotFound(f"There is no execution {execution_id} on record. {why}", execution_id=execution_id)
        return found

    async def list(self, wanted: Wanted, request: PageRequest) -> Page[Execution]:
        """Those that pass, newest first. Raises InvalidField."""
        _check_window(wanted.since, wanted.until)
        filters = ("executions", *(str(value) for value in msgspec.structs.astuple(wanted)))
        last = request.after(*filters, kinds=(int, str))
        try:
            before = (last[0], bytes.fromhex(last[1])) if last else None
        except ValueError:
            raise foreign_token() from None
        found = await self._executions.executions(wanted, before=before, limit=request.limit + 1)
        return request.page(found, lambda e: (e.start_time, e.execution_id.hex()), *filters)

    async def summarize(self, wanted: Wanted) -> Summaries:
        """By app and environment; in each the live release first, then by last_time, newest first. Raises InvalidField."""
        until = to_micros(self._clock()) if wanted.until is None else wanted.until
        since = until - DEFAULT_WINDOW // timedelta(microseconds=1) if wanted.since is None else wanted.since
        _check_window(since, until)
        figures = await self._executions.figures(msgspec.structs.replace(wanted, since=since, until=until))
        dropped = await self._executions.dropped(since, until)

        async def work(tx: ReadTransaction) -> list[Summary]:
            bindings = await tx.bindings(app=wanted.app, environment=wanted.environment, after=None, limit=MAX_BINDINGS)
            live = {(b.app, b.environment): b.deployment for b in bindings}
            return [await _summary(tx, found, live.get((found.app, found.environment))) for found in figures]

        summaries = await self._store.read(work)
        summaries.sort(key=lambda s: (s.figures.app, s.figures.environment, not s.live, -s.figures.last_time, s.figures.release))
        return Summaries(summaries=summaries, since=since, until=until, dropped=dropped)

    async def course(self, wanted: Wanted, pieces: int) -> Sequence[Sequence[Figures]]:
        """The figures of so many equally long pieces of the window from `since` to `until`, which are given; oldest first."""
        assert wanted.since is not None, "a window has a beginning"
        assert wanted.until is not None, "a window has an end"
        bounds = [wanted.since + (wanted.until - wanted.since) * at // pieces for at in range(pieces + 1)]
        asked = [msgspec.structs.replace(wanted, since=since, until=until) for since, until in itertools.pairwise(bounds)]
        return await asyncio.gather(*map(self._executions.figures, asked))

    async def dropped(self, since: int, until: int) -> int:
        """How many executions gateways had to drop in a window: they are on record nowhere."""
        return await self._executions.dropped(since, until)

    async def rollback_report(self, deployment_id: str) -> RollbackReport:
        """Of what the deployment made live, or, when it is a rollback, of what it ended. Raises InvalidField."""
        deployment, replaced, unbound = await self._store.read(lambda tx: _judged(tx, deployment_id))
        wanted = Wanted(
            app=deployment.app,
            environment=deployment.environment,
            release=deployment.release,
            revision=deployment.revision,
            # Nothing ran at a revision before there was one, so the rest of the record need not be looked through.
            since=to_micros(deployment.create_time - MAX_CLOCK_SKEW),
        )
        ended = replaced.create_time if replaced else unbound.unbind_time if unbound else None
        late_after = None if ended is None else to_micros(ended)
        uses = await self._executions.uses(wanted, late_after=late_after)
        only_failed = msgspec.structs.replace(wanted, outcome=int(Outcome.FAILED))
        failed = await self._executions.executions(only_failed, before=None, limit=MAX_FAILED_EXECUTIONS)
        return RollbackReport(deployment=deployment, replaced=replaced, unbound=unbound, uses=uses, failed=failed)


def _check_window(since: int | None, until: int | None) -> None:
    if since is not None and until is not None and since >= until:
        times = f"{_text(since)} to {_text(until)}"
        raise InvalidField([Violation("start_time", f"is not before end_time, {times}: no execution can pass; give an earlier one")])


def _text(micros: int) -> str:
    found: datetime = from_micros(micros)
    return found.isoformat()


async def _summary(tx: ReadTransaction, figures: Figures, live: Deployment | None) -> Summary:
    if live is not None and live.release == figures.release:
        return Summary(figures=figures, live=True, previous_release=live.previous_release)
    last = await tx.last_deployment_of(figures.app, figures.environment, figures.release)
    return Summary(figures=figures, live=False, previous_release=last.previous_release if last else "")


def _nowhere(execution: Execution, made_up: set[str]) -> Execution:
    wrong = not execution.release and execution.environment in made_up
    return msgspec.structs.replace(execution, environment="") if wrong else execution


async def _unknown(tx: ReadTransaction, environments: set[str]) -> set[str]:
    return {environment for environment in environments if await tx.environment(environment) is None}


async def _judged(tx: ReadTransaction, deployment_id: str) -> tuple[Deployment, Deployment | None, Unbinding | None]:
    """The deployment whose release the report is about, and what ended it: the one that replaced it, or the end of its environment."""
    found = await tx.deployment(deployment_id)
    if found is None:
        none = f"there is no deployment {deployment_id}; `pointsman history ENVIRONMENT -o json` shows the ids"
        raise InvalidField([Violation("deployment_id", none)], deployment_id=deployment_id)
    if found.action is Action.ROLLBACK:
        (found,) = await tx.deployments(app=found.app, environment=found.environment, after=deployment_id, limit=1)
    replaced, unbound = await tx.deployment_after(found), await tx.unbinding_after(found)
    if replaced is not None and unbound is not None:
        return (found, None, unbound) if unbound.revision < replaced.revision else (found, replaced, None)
    return found, replaced, unbound
