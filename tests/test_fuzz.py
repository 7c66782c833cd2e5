"""The properties of tests/fuzz on a smaller share of cases, with a new seed each time: what fails names it."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.__main__ import SERVERS, targets
from tests.processes import run

ALONE = {name: target for name, target in targets().items() if name not in SERVERS}


@pytest.mark.parametrize("names", [list(ALONE)], ids=["alone"])
async def test_no_bad_input_does_harm(names, tmp_path):
    trace = tmp_path / "case"
    done = await run(sys.executable, "-m", "tests.fuzz", *names, "--here", "--cases", "2000", "--trace", trace, timeout_seconds=110)
    assert done.code == 0, f"{done.stdout}\n{done.stderr}\nthe last case: {trace.read_text()}"
