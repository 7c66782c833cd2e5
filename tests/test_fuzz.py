"""The properties of tests/fuzz on a smaller share of cases, with a new seed each time: what fails names it."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.__main__ import targets
from tests.processes import run


@pytest.mark.parametrize(("alone", "cases"), [(True, 2000), (False, 1500)], ids=["alone", "with servers"])
async def test_no_bad_input_does_harm(alone, cases, tmp_path):
    names = [name for name, target in targets().items() if target.alone is alone]
    trace = tmp_path / "case"
    command = [sys.executable, "-m", "tests.fuzz", *names, "--here", "--cases", str(cases), "--trace", trace]
    done = await run(*command, timeout_seconds=110)
    assert done.code == 0, f"{done.stdout}\n{done.stderr}\nthe last case: {trace.read_text()}"


def test_a_full_run_is_two_hundred_thousand_cases():
    assert sum(target.share for target in targets().values()) >= 200_000


async def test_what_was_tried_is_told():
    done = await run(sys.executable, "-m", "tests.fuzz", "headers", "structs", "--cases", "300", "--seed", "1", timeout_seconds=60)
    assert done.code == 0, done.stdout + done.stderr
    rows, total = done.stdout.splitlines()[2:-1], done.stdout.splitlines()[-1]
    tried = {row.split()[0]: int(row.split()[1]) for row in rows}
    assert set(tried) == {"headers", "structs"}
    assert total.startswith(f"{sum(tried.values())} cases in ")
    assert total.endswith("failed: none")
