"""Concurrent Deploy, Rollback and GetBinding of a binding are linearizable: by a checker that finds made-up histories that are not."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from tests.clients import control_plane_client
from tests.deploying import RELEASES, call_for, make_releases, new_histories
from tests.linearizability import LOST, Operation, State, is_linearizable
from tests.processes import start_control_plane

CALLERS = 8
CALLS = 120


def deploy(start, end, release, revision=0, **more):
    return Operation(**({"kind": "deploy", "start": start, "end": end, "wanted": release, "revision": revision, "release": release} | more))


def get(start, end, revision, release):
    return Operation(kind="get", start=start, end=end, revision=revision, release=release)


def rollback(start, end, revision=0, release="", **more):
    return Operation(kind="rollback", start=start, end=end, revision=revision, release=release, **more)


GOOD = {
    "one after the other": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 2), get(4, 5, 2, "b"), rollback(6, 7, 3, "a"), get(8, 9, 3, "a")],
    "what overlaps may come in any order": [deploy(0, 9, "b", 2), deploy(0, 9, "a", 1), get(1, 8, 1, "a"), get(2, 3, 0, "")],
    "a deploy of what is live changes nothing": [deploy(0, 1, "a", 1), deploy(2, 3, "a", 1), get(4, 5, 1, "a")],
    "a lost call may have happened": [deploy(0, 1, "a", 1), deploy(2, math.inf, "b", outcome=LOST), get(3, 4, 1, "a"), get(5, 6, 7, "b")],
    "a lost call may never happen": [deploy(0, 1, "a", 1), deploy(2, math.inf, "b", outcome=LOST), get(9, 10, 1, "a")],
    "walking back to the bottom": [
        deploy(0, 1, "a", 1),
        deploy(2, 3, "b", 2),
        rollback(4, 5, 3, "a"),
        rollback(6, 7, outcome="NOTHING_TO_ROLL_BACK"),
    ],
    "a conflict names what is there": [
        deploy(0, 1, "a", 1),
        deploy(2, 3, "b", 1, expected=9, outcome="REVISION_CONFLICT"),
        deploy(4, 5, "b", 2, expected=1),
    ],
}
BAD = {
    "a stale read": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 2), get(4, 5, 1, "a")],
    "a lost update": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 2), get(4, 5, 2, "a")],
    "a revision that goes back": [deploy(0, 1, "a", 5), deploy(2, 3, "b", 4)],
    "a rollback that happens twice": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 2), deploy(4, 5, "c", 3), rollback(6, 7, 5, "a")],
    "a rollback that goes forward again": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 2), rollback(4, 5, 3, "a"), rollback(6, 7, 4, "b")],
    "a read from the future": [get(0, 1, 1, "a"), deploy(2, 3, "a", 1)],
    "two that both saw nothing": [deploy(0, 9, "a", 1, expected=0), deploy(0, 9, "b", 2, expected=0)],
    "a lost call that undoes itself": [deploy(0, 1, "a", 1), deploy(2, math.inf, "b", outcome=LOST), get(3, 4, 2, "b"), get(5, 6, 1, "a")],
    "a conflict with what was expected": [deploy(0, 1, "a", 1), deploy(2, 3, "b", 1, expected=1, outcome="REVISION_CONFLICT")],
}


@pytest.mark.parametrize("name", GOOD)
def test_the_checker_takes_what_can_have_happened(name):
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_the_checker_finds_what_cannot(name):
    assert not is_linearizable(BAD[name])


@pytest.mark.parametrize("seed", range(5))
def test_a_true_history_is_taken_and_a_changed_one_is_not(seed):
    chance = random.Random(seed)
    history, state = [], State()
    for revision in range(1, 401):
        start, end = revision - chance.random() * 5, revision + chance.random() * 5
        wanted = chance.choice(RELEASES)
        candidates = [deploy(start, end, wanted, revision), rollback(start, end, outcome="NOTHING_TO_ROLL_BACK")]
        candidates += [rollback(start, end, revision, release) for release in RELEASES]
        candidates += [get(start, end, state.stack[-1][0] or 0, state.stack[-1][1])] if state.stack else []
        fitting = [one for one in candidates if state.after(one) is not None]
        if fitting:
            chosen = chance.choice(fitting)
            history.append(chosen)
            state = state.after(chosen)
    assert is_linearizable(history)
    at = next(index for index, one in enumerate(history) if one.kind == "get" and index > 100)
    changed = [*history[:at], get(history[at].start, history[at].end, history[at].revision, "v9"), *history[at + 1 :]]
    assert not is_linearizable(changed)


def _new_database(server):
    return server.url(server.new_database())


@pytest.fixture(params=["sqlite", "postgres"])
def store_flags(request):
    return ["--store", _new_database(request.getfixturevalue("postgres_server"))] if request.param == "postgres" else []


async def test_promise_03_concurrent_calls_are_linearizable_for_each_binding(store_flags, tmp_path, record_property):
    seed = random.SystemRandom().randrange(2**32)
    record_property("seed", seed)
    print(f"seed {seed}")
    async with start_control_plane(tmp_path, *store_flags) as server, control_plane_client(server) as plane:
        await make_releases(plane)
        histories = new_histories()
        await asyncio.gather(*(call_for(server.grpc, f"{seed} {number}", histories, CALLS) for number in range(CALLERS)))
    for environment, history in histories.items():
        assert len(history) > CALLERS * CALLS // 4
        assert {one.kind for one in history} == {"deploy", "rollback", "get"}
        assert is_linearizable(history), f"seed {seed}: {environment}"
