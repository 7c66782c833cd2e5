"""How one execution looks: its facts, then its steps beside each other in time."""

from __future__ import annotations

from datetime import UTC

import click

from control_plane.cli.durations import briefly
from control_plane.cli.output import harmless, table
from pointsman.v1.executions_pb2 import Execution

BAR_CHARS = 40


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
    headings = ("STAGE", "STEP", "KIND", "OUTCOME", "TRIES", "TOOK", f"0 {'.' * (BAR_CHARS - 2)} {briefly(one.duration)}")
    table(headings, [_row(one, step) for step in one.steps], "It has no steps.")
    for step in one.steps:
        if step.error:
            click.echo(f"\n{step.name} failed: {harmless(step.error)}")
    captured = [("input", one.input)]
    for step in one.steps:
        captured += [(f"{step.name}, given", step.input), (f"{step.name}, gave", step.output)]
    for name, text in [*captured, ("output", one.output)]:
        if text:
            click.echo(f"\n{name}:\n{harmless(text)}")


def _row(one: Execution, step: Execution.StepExecution) -> tuple[str, ...]:
    ran = step.HasField("start_time")
    return (
        step.stage,
        step.name,
        step.kind,
        Execution.StepExecution.Outcome.Name(step.outcome),
        str(step.attempts) if ran else "-",
        briefly(step.duration) if ran else "-",
        _bar(one, step) if ran else "",
    )


def _bar(one: Execution, step: Execution.StepExecution) -> str:
    """From when to when, in the time of the whole; at least one character."""
    began = step.start_time.ToMicroseconds() - one.start_time.ToMicroseconds()
    whole = max(one.duration.ToMicroseconds(), 1)
    first, last = (min(max(moment / whole, 0), 1) for moment in (began, began + step.duration.ToMicroseconds()))
    start = min(int(first * BAR_CHARS), BAR_CHARS - 1)
    return " " * start + "#" * max(round(last * BAR_CHARS) - start, 1)
