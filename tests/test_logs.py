"""What the servers write to stderr of a defect: where it was, and none of the values that were there."""

from __future__ import annotations

import json
import sys

import pytest

from tests.processes import run

DEFECT = """
import sys, structlog
from pointsman.logs import configure

def call(key):
    headers = {"authorization": key}
    raise KeyError("a defect")

configure(sys.argv[1])
try:
    call(sys.stdin.read())
except KeyError:
    structlog.get_logger().exception("a trigger failed", request_id="r1")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_defect_is_logged_without_the_values_of_variables(log_format):
    done = await run(sys.executable, "-c", DEFECT, log_format, stdin="canary-4711")
    assert done.code == 0
    logged = json.loads(done.stderr)["exception"] if log_format == "json" else done.stderr
    assert "in call" in logged
    assert "KeyError: 'a defect'" in logged
    assert "r1" in done.stderr
    assert "canary" not in done.stderr + done.stdout
