"""How one execution looks: its facts, then its steps beside each other in time."""

from __future__ import annotations

from datetime import UTC

import click

from control_plane.cli.durations import briefly
from control_plane.cli.output import harmless
from control_plane.cli.tables import room_beside, table
from pointsman.v1.executions_pb2 import Execution

BAR_CHARS = 40
MIN_BAR_CHARS = 10


def tell_execution(one: Execution) -> None:
    """Facts, timeline, errors of steps, then what was captured."""
    outcome = Execution.Outcome.Name(one.outcome)
    click.echo(f"execution {one.execution_id}: {outcome} after {briefly(one.duration)}")
    if one.error_reason:
        click.echo(f"{one.error_reason}: {harmless(one.error_message)}")
    ran_on = (
        f"release {one.release} ({one.digest}) at revision {one.revision}"
        if one.release
        else "no release: it was refused before one was found"
    )
    click.echo(f"{harmless(one.app)} in {harmless(one.environment)}, endpoint {harmless(one.endpoint)}, {harmless(ran_on)}")
    began = one.start_time.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    more = [f"token {one.token_id}" if one.token_id else "", f"trace {one.trace_id}" if one.trace_id else ""]
    if one.input_tokens or one.output_tokens:
        more.append(f"{one.input_tokens} tokens read and {one.output_tokens} written")
    click.echo(", ".join([f"on gateway {one.gateway_id}, began {began} UTC", *filter(None, map(harmless, more))]))
    click.echo()
    headings = ("STAGE", "STEP", "KIND", "OUTCOME", "TRIES", "TOOK")
    rows = [_row(step) for step in one.steps]
    end = f" {briefly(one.duration)}"
    chars = int(max(min(room_beside([headings, *rows]) - len(end), BAR_CHARS), MIN_BAR_CHARS))
    bars = [_bar(one, step, chars) for step in one.steps]
    table((*headings, f"0 {'.' * (chars - 2)}{end}"), [(*row, bar) for row, bar in zip(rows, bars, strict=True)], "It has no steps.")
    for step in one.steps:
        if step.error:
            click.echo(f"\n{step.name} failed: {harmless(step.error)}")
    captured = [("input", one.input)]
    for step in one.steps:
        captured += [(f"{step.name}, given", step.input), (f"{step.name}, gave", step.output)]
    for name, text in [*captured, ("output", one.output)]:
        if text:
            click.echo(f"\n{name}:\n{harmless(text)}")


def _row(step: Execution.StepExecution) -> tuple[str, ...]:
    ran = step.HasField("start_time")
    return (
        step.stage,
        step.name,
        step.kind,
        Execution.StepExecution.Outcome.Name(step.outcome),
        str(step.attempts) if ran else "-",
        briefly(step.duration) if ran else "-",
    )


def _bar(one: Execution, step: Execution.StepExecution, chars: int) -> str:
    """From when to when, in the time of the whole, which is so many characters wide; at least one character if it ran."""
    if not step.HasField("start_time"):
        return ""
    began = step.start_time.ToMicroseconds() - one.start_time.ToMicroseconds()
    whole = max(one.duration.ToMicroseconds(), 1)
    first, last = (min(max(moment / whole, 0), 1) for moment in (began, began + step.duration.ToMicroseconds()))
    start = min(int(first * chars), chars - 1)
    return " " * start + "#" * max(round(last * chars) - start, 1)
