"""The fault drills, at a size that fits here; `make drill` runs them at full size."""

from __future__ import annotations

import importlib
import random

import pytest

from tests.postgres_server import MISSING, available

SMALL = {"kill": (400, 5), "disk": (400, 5), "readonly": (300, 3), "failover": (300, 1), "record": (300, 1)}


@pytest.mark.parametrize("name", SMALL)
async def test_promise_03_nothing_acknowledged_is_lost(name, tmp_path):
    if name in ("readonly", "failover") and not available():
        pytest.skip(MISSING)
    seed = random.SystemRandom().randrange(2**32)
    result = await importlib.import_module(f"tests.drill.{name}").run(tmp_path, seed, *SMALL[name])
    print(result)
    assert result.lost == 0, result
    assert result.operations > SMALL[name][0] // 3
    assert result.worst_outage_seconds < 10
