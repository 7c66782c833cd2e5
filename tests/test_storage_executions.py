"""The ExecutionStore is a specification: each "must" of control_plane/storage/base.py, on every backend."""

import asyncio
import itertools
import random
import time
import uuid

import msgspec
import pytest

from control_plane.execution_model import Execution, Figures, Outcome, Report, Use, Wanted
from control_plane.storage import ExecutionStore, open_executions, open_store
from control_plane.storage import executions as shared
from pointsman.errors import StoreUnavailable
from tests.test_storage_contract import BACKENDS

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_767_225_600 * SECOND
NOW = time.time_ns() // 1000
INSTANCE = str(uuid.uuid4())
ids = itertools.count(1)


@pytest.fixture(params=BACKENDS)
def url(request, tmp_path):
    return BACKENDS[request.param](request, tmp_path)


async def opened(url: str) -> ExecutionStore:
    store = await open_store(url)
    await store.close()
    return await asyncio.to_thread(open_executions, url, store.store_id)


@pytest.fixture
async def kept(url):
    found = await opened(url)
    yield found
    await found.close()


def ran(start_time: int = START, **more: object) -> Execution:
    known = {
        "execution_id": next(ids).to_bytes(16),
        "app": "shop",
        "environment": "staging",
        "endpoint": "chat",
        "release": "v1",
        "digest": "sha256:1",
        "revision": 7,
        "gateway_id": "east",
        "start_time": start_time,
        "duration": 1000,
        "outcome": Outcome.SUCCEEDED,
        "error_reason": "",
        "error_message": "",
        "token_id": "t",
        "trace_id": "f" * 32,
        "input_tokens": 3,
        "output_tokens": 5,
        "detail": b"\x00detail",
    }
    return Execution(**known | more)


async def record(
    kept: ExecutionStore, *executions: Execution, dropped: int = 0, instance_id: str = INSTANCE, now: int = START
) -> list[Execution]:
    return await kept.record(Report(gateway_id="east", instance_id=instance_id, executions=list(executions), dropped=dropped), now)


def listed(execution: Execution) -> Execution:
    return msgspec.structs.replace(execution, detail=b"")


async def found(kept: ExecutionStore, limit: int = 1000, before: tuple[int, bytes] | None = None, **wanted: object) -> list[Execution]:
    return await kept.executions(Wanted(**wanted), before=before, limit=limit)


async def test_what_was_recorded_is_found_with_its_detail_and_listed_without(kept):
    one = ran()
    assert await record(kept, one) == [one]
    assert await kept.execution(one.execution_id) == one
    assert await kept.execution(b"\xff" * 16) is None
    assert await found(kept) == [listed(one)]


async def test_a_repeat_stores_nothing_twice_and_only_the_new_ones_are_returned(kept):
    first, second, third = ran(), ran(), ran()
    assert await record(kept, first, second, first) == [first, second]
    assert await record(kept, second, third, first) == [third]
    assert await record(kept, first, second, third) == []
    assert len(await found(kept)) == 3
    assert await record(kept) == []


async def test_a_batch_of_thousands_is_stored_once(kept):
    batch = [ran(START + number) for number in range(2_345)]
    assert await record(kept, *batch) == batch
    one_more = ran()
    assert await record(kept, *batch, one_more) == [one_more]
    assert len(await found(kept, limit=5_000)) == 2_346


async def test_newest_first_and_pages_go_on_where_the_last_one_ended_also_among_equals(kept):
    executions = [ran(START + number // 3) for number in range(20)]
    await record(kept, *reversed(executions))
    expected = [listed(e) for e in sorted(executions, key=lambda e: (e.start_time, e.execution_id), reverse=True)]
    assert await found(kept) == expected
    before, pages = None, []
    while page := await found(kept, limit=7, before=before):
        pages += page
        before = (page[-1].start_time, page[-1].execution_id)
    assert pages == expected


FILTERS = {
    "app": "other",
    "environment": "production",
    "release": "v2",
    "endpoint": "talk",
    "gateway_id": "west",
    "error_reason": "STEP_FAILED",
    "outcome": Outcome.FAILED,
    "revision": 8,
}


@pytest.mark.parametrize("few", [1_000, 1])
async def test_every_filter_alone_and_with_another(kept, monkeypatch, few):
    monkeypatch.setattr("control_plane.storage.sqlite_executions.FEW", few)
    monkeypatch.setattr("control_plane.storage.postgres_executions.LOOKED_AT", few)
    both = list(itertools.combinations(FILTERS, 2))
    executions = [ran(START + 1)]
    executions += [ran(START + 2, **{name: FILTERS[name]}) for name in FILTERS]
    executions += [ran(START + 3, **{name: FILTERS[name] for name in pair}) for pair in both]
    await record(kept, *executions)
    for names in [*((name,) for name in FILTERS), *both]:
        wanted = {name: FILTERS[name] for name in names}
        expected = {e.execution_id for e in executions if all(getattr(e, name) == value for name, value in wanted.items())}
        assert {e.execution_id for e in await found(kept, **wanted)} == expected
        assert {e.execution_id for e in executions if Wanted(**wanted).accepts(e)} == expected


@pytest.mark.parametrize("few", [1_000, 20])
async def test_filters_windows_and_pages_together_find_what_looking_at_each_would(kept, monkeypatch, few):
    monkeypatch.setattr("control_plane.storage.sqlite_executions.FEW", few)
    monkeypatch.setattr("control_plane.storage.postgres_executions.LOOKED_AT", few)
    chance = random.Random(6)
    values = dict.fromkeys(FILTERS, ("", "a", "b", "c")) | {"outcome": tuple(Outcome), "revision": (1, 2, 3)}
    executions = [
        ran(START + chance.randrange(40), duration=chance.randrange(10), **{name: chance.choice(values[name]) for name in values})
        for _ in range(600)
    ]
    await record(kept, *executions)
    newest_first = sorted(executions, key=lambda e: (e.start_time, e.execution_id), reverse=True)
    for _ in range(150):
        filters = {name: chance.choice(values[name][1:]) for name in chance.sample(sorted(values), chance.randrange(4))}
        since, until, least = START + chance.randrange(20), START + 20 + chance.randrange(20), chance.randrange(10)
        wanted = Wanted(**filters, min_duration=least, since=chance.choice([None, since]), until=chance.choice([None, until]))
        expected = [listed(e) for e in newest_first if wanted.accepts(e)]
        expected = [e for e in expected if e.start_time >= (wanted.since or 0) and e.start_time < (wanted.until or START + 40)]
        last = chance.choice([None, *newest_first])
        before = last and (last.start_time, last.execution_id)
        expected = [e for e in expected if before is None or (e.start_time, e.execution_id) < before]
        assert await kept.executions(wanted, before=before, limit=9) == expected[:9], (wanted, before)


async def test_by_duration_and_by_time(kept):
    executions = [ran(START + number * SECOND, duration=number * SECOND) for number in range(10)]
    await record(kept, *executions)
    newest_first = [listed(e) for e in reversed(executions)]
    assert await found(kept, min_duration=4 * SECOND) == newest_first[:6]
    assert await found(kept, since=START + 3 * SECOND, until=START + 5 * SECOND) == [newest_first[5], newest_first[6]]
    assert await found(kept, since=START + 3 * SECOND, min_duration=8 * SECOND, app="shop") == newest_first[:2]
    assert await found(kept, since=START + 10 * SECOND) == []


async def test_figures_of_each_release_in_each_environment(kept):
    await record(
        kept,
        *(ran(START + number, duration=number, outcome=Outcome.FAILED if number <= 10 else Outcome.SUCCEEDED) for number in range(1, 101)),
        ran(START, duration=10**9, outcome=Outcome.REFUSED, input_tokens=0, output_tokens=0),
        ran(START + 500, duration=10**9, outcome=Outcome.CANCELLED),
        ran(START, release="v2", outcome=Outcome.REFUSED),
        ran(START, environment="production", duration=7),
        ran(START, app="other", duration=7),
        ran(START + SECOND),
    )
    wanted = Wanted(app="shop", since=START, until=START + SECOND)
    figures = {(f.environment, f.release): f for f in await kept.figures(wanted)}
    assert figures["staging", "v1"] == Figures(
        app="shop",
        environment="staging",
        release="v1",
        succeeded=90,
        failed=10,
        cancelled=1,
        refused=1,
        durations=(50, 95, 99),
        input_tokens=303,
        output_tokens=505,
        first_time=START,
        last_time=START + 500,
    )
    assert figures["staging", "v2"].durations == (0, 0, 0)
    assert figures["production", "v1"].durations == (7, 7, 7)
    assert len(figures) == 3
    assert {f.app for f in await kept.figures(Wanted(since=START, until=START + 1))} == {"shop", "other"}
    assert await kept.figures(Wanted(endpoint="nowhere")) == []


async def test_what_gateways_dropped_counts_once_when_it_was_told(kept):
    other = str(uuid.uuid4())
    for now, instance_id, dropped in (
        (START, INSTANCE, 5),
        (START + 1, INSTANCE, 5),
        (START + 2, INSTANCE, 9),
        (START + 3, INSTANCE, 2),
        (START + 3, other, 100),
        (START + 4, INSTANCE, 9),
    ):
        await record(kept, dropped=dropped, instance_id=instance_id, now=now)
    assert await kept.dropped(START, START + 10) == 109
    assert await kept.dropped(START + 1, START + 3) == 4
    assert await kept.dropped(START + 4, START + 10) == 0


async def test_uses_by_gateway(kept):
    await record(
        kept,
        ran(START),
        ran(START + 5, outcome=Outcome.FAILED),
        ran(START + 9),
        ran(START + 3, gateway_id="west"),
        ran(START + 4, revision=8),
        ran(START + 4, release="v2"),
    )
    wanted = Wanted(app="shop", environment="staging", release="v1", revision=7)
    assert await kept.uses(wanted, late_after=START + 5) == [
        Use(gateway_id="east", executions=3, failed=1, late=1, last_time=START + 9),
        Use(gateway_id="west", executions=1, failed=0, late=0, last_time=START + 3),
    ]
    assert [use.late for use in await kept.uses(wanted, late_after=None)] == [0, 0]


async def test_a_sweep_deletes_what_is_old_in_slices(kept):
    old = [ran(START + number) for number in range(25)]
    new = [ran(NOW + number) for number in range(5)]
    await record(kept, *old, *new, dropped=3)
    assert await kept.sweep(keep_since=START + 20, keep_rows=100, limit=10) == 10
    assert await kept.sweep(keep_since=START + 20, keep_rows=100, limit=100) == 10
    assert await kept.sweep(keep_since=START + 20, keep_rows=100, limit=100) == 0
    assert await found(kept) == [listed(e) for e in reversed(old[20:] + new)]
    assert await kept.dropped(0, NOW) == 0


async def test_a_sweep_deletes_what_is_too_much_of_an_environment(kept):
    staging = [ran(START + number) for number in range(20)]
    production = [ran(START + number, environment="production") for number in range(8)]
    await record(kept, *staging, *production)
    assert await kept.sweep(keep_since=0, keep_rows=10, limit=4) == 4
    assert await kept.sweep(keep_since=0, keep_rows=10, limit=100) == 6
    assert await kept.sweep(keep_since=0, keep_rows=10, limit=100) == 0
    assert await found(kept, environment="staging") == [listed(e) for e in reversed(staging[10:])]
    assert len(await found(kept, environment="production")) == 8


async def test_what_is_there_is_there_when_it_is_opened_again(url, kept):
    one = ran()
    await record(kept, one, dropped=2)
    await kept.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        await found(kept)
    again = await opened(url)
    try:
        assert await again.execution(one.execution_id) == one
        assert await record(again, one, dropped=2) == []
        assert await again.dropped(0, NOW) == 2
    finally:
        await again.close()


async def test_too_many_waiting_reports_are_refused(kept, monkeypatch):
    monkeypatch.setattr(shared, "MAX_WAITING_REPORTS", 2)
    reports = [asyncio.create_task(record(kept, ran())) for _ in range(3)]
    done = await asyncio.gather(*reports, return_exceptions=True)
    assert [type(result) for result in done] == [list, list, StoreUnavailable]
    assert done[2].retry_after_seconds > 0
    assert len(await record(kept, ran())) == 1
