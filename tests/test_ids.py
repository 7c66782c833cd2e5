"""Ids of executions and deployments: UUIDv7s that grow, whatever the clock does."""

import itertools
import uuid

from pointsman.ids import IdMaker, new_id

MOMENT = 1_700_000_000_000


def made_at(*milliseconds):
    """Ids made at these times; the last one goes on."""
    times = itertools.chain(milliseconds, itertools.repeat(milliseconds[-1]))
    maker = IdMaker(lambda: next(times))
    return [maker() for _ in range(len(milliseconds) + 200)]


def test_an_id_is_a_uuid_of_version_7_with_its_time():
    for text in made_at(MOMENT, MOMENT + 1, MOMENT + 70_000):
        found = uuid.UUID(text)
        assert (found.version, found.variant, str(found)) == (7, uuid.RFC_4122, text)
        assert MOMENT <= found.int >> 80 <= MOMENT + 70_000


def test_ids_grow_within_a_millisecond_and_when_the_clock_is_set_back():
    for times in ((MOMENT,), (MOMENT, MOMENT - 3_600_000, MOMENT - 1, MOMENT), (0,)):
        found = made_at(*times)
        assert found == sorted(set(found))


def test_ids_of_two_processes_differ():
    first, second = (made_at(MOMENT) for _ in range(2))
    assert not set(first) & set(second)


def test_ids_of_this_process_differ():
    assert len({new_id() for _ in range(10_000)}) == 10_000
