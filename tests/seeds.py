"""Seeds of random walks: others in every run, the same in all processes of one. POINTSMAN_TEST_SEED repeats a run's."""

from __future__ import annotations

import os
import random

VARIABLE = "POINTSMAN_TEST_SEED"
OF_THIS_RUN = int(os.environ.setdefault(VARIABLE, str(random.SystemRandom().randrange(2**32))))


def seeds(count: int) -> list[int]:
    """So many; a run that fails names its own."""
    chance = random.Random(OF_THIS_RUN)
    return [chance.randrange(2**32) for _ in range(count)]
