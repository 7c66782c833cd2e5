"""Tables: nothing of them is lost, however narrow the terminal is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli.tables import fitted
from tests.eventually import eventually
from tests.sample_apps import marked
from tests.terminal import shown

CELLS = st.text(alphabet="ab-1 ", max_size=30).map(lambda text: " ".join(text.split()))
STYLE = re.compile(r"\x1b\[[0-9;]*m")


@given(
    rows=st.integers(1, 9).flatmap(lambda columns: st.lists(st.lists(CELLS, min_size=columns, max_size=columns), min_size=1, max_size=5)),
    room=st.integers(40, 150),
)
def test_whatever_the_width_every_cell_is_there_and_no_line_is_too_long(rows, room):
    for row, lines in zip(rows, fitted(rows, room), strict=True):
        assert max(map(len, lines)) <= room
        # A column that is folded is the last of its line, so its words follow each other.
        assert " ".join(lines).split() == " ".join(row).split()


def test_what_gives_way_first():
    rows = [("ENVIRONMENT", "RELEASE", "REASON"), ("production", "v1.0.0", "it was verified on staging"), ("staging", "v2", "")]
    assert list(fitted(rows, 60)) == [
        ["ENVIRONMENT  RELEASE  REASON"],
        ["production   v1.0.0   it was verified on staging"],
        ["staging      v2"],
    ]
    assert list(fitted(rows, 46))[1] == ["production  v1.0.0  it was verified on staging"]
    assert list(fitted(rows, 42))[1] == ["production  v1.0.0  it was verified on", "                    staging"]
    assert list(fitted(rows, 30)) == [
        ["ENVIRONMENT  RELEASE", "  REASON"],
        ["production   v1.0.0", "  it was verified on staging"],
        ["staging      v2"],
    ]


def test_letters_that_take_two_columns_or_none():
    (first,), (second,), (third,) = fitted([("東京", "x"), ("Zu\u0308rich", "x"), ("a", "x")], 80)
    assert (first, second, third) == ("東京    x", "Zu\u0308rich  x", "a       x")


@pytest.mark.parametrize("columns", [60, 80, 120])
async def test_the_real_commands_fit_the_terminal(stack, columns):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1", "production", reason="a longer reason, so that not all of it fits into one line")
    await stack.plane.deploy(app, "v2", "production")
    revision = (await stack.plane.binding(app)).revision
    await stack.gates[0].trigger(app, min_revision=revision)
    for arguments, names in (
        (("status",), {app, "production", "v2"}),
        (("history",), {"production", "v1", "v2", "longer"}),
        (("release", "list"), {"v1", "v2", "SUPERSEDED"}),
        (("gateways",), {"east", "west"}),
        (("environment", "list"), {"production", "staging"}),
        (("execution", "list"), {app, "production", "where", "v2"}),
        (("summary",), {app, "production", "v2"}),
        (("audit", "list"), {"Deploy", f"{app}/production"}),
    ):

        async def told(arguments=arguments, names=names):
            """Once gateways have reported what ran."""
            found = STYLE.sub("", await shown(*arguments, columns=columns, POINTSMAN_SERVER=stack.control_plane.grpc, POINTSMAN_APP=app))
            return found if names <= set(found.split()) else None

        plain = await eventually(told)
        # Sentences beside a table are broken by the terminal.
        table = [
            line for line in plain.partition("\n\n")[0].splitlines() if not re.match(r"from 20|\S+ in \S+: |\d+ more are missing: ", line)
        ]
        assert max(map(len, table)) <= columns, plain
