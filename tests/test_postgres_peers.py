"""How replicas find and ask each other through PostgreSQL, without the servers around them."""

import asyncio
import contextlib
import time
import uuid

import pytest

from control_plane.model import Binding
from control_plane.peers import Arrival, KnownAnswer, KnownRequest, PrepareAnswer, PrepareRequest, RolloutAnswer, RolloutRequest
from control_plane.service.calls import utc_now
from control_plane.storage import open_peers, open_store, postgres_peers
from tests.eventually import eventually
from tests.postgres_server import MISSING, available, running_postgres, standby_of

PREPARE = PrepareRequest((), 1.0)


@pytest.fixture
def database(postgres_server):
    return postgres_server.new_database()


@pytest.fixture
async def url(postgres_server, database):
    """Of a database with the schema in it."""
    url = postgres_server.url(database)
    await (await open_store(url)).close()
    return url


class Replica:
    """What a control plane does with its peers; every answer is a rollout of so many members."""

    def __init__(self, url, store_id="store"):
        self.peers = open_peers(url, store_id)
        self.members = 0
        self.asked = []
        self.arrivals = []
        self.fails = False
        self.waits = asyncio.Event()
        self.waits.set()

    async def answer(self, request):
        self.asked.append(request)
        await self.waits.wait()
        if self.fails:
            raise RuntimeError("as a test wants it")
        return RolloutAnswer(self.members, [], {})

    async def ask(self, request=PREPARE, seconds=5.0):
        return await self.peers.ask(request, RolloutAnswer, seconds)

    async def counts(self, *members):
        """Asks, and expects these answers."""
        replies = await self.ask()
        assert (replies.failure, replies.silent) == (None, [])
        assert sorted(answer.members for answer in replies.answers) == sorted(members)


@contextlib.asynccontextmanager
async def replicas(url, count, *, store_id="store"):
    """Replicas that know each other; the n-th has n members."""
    found = [Replica(url, store_id) for _ in range(count)]
    try:
        for number, replica in enumerate(found):
            replica.members = number
            replica.peers.address = f"replica-{number}"
            await replica.peers.start(replica.answer, replica.arrivals.append)
        for replica in found:
            await eventually(lambda replica=replica: len(replica.peers.others) == count - 1)
        yield found
    finally:
        await asyncio.gather(*(replica.peers.close() for replica in found))


def sessions(postgres_server, database):
    return postgres_server.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'")


async def test_each_asks_all_others_and_never_itself(url):
    async with replicas(url, 3) as (a, b, c):
        await a.counts(1, 2)
        await b.counts(0, 2)
        await c.counts(0, 1)
        assert [len(replica.asked) for replica in (a, b, c)] == [2, 2, 2]


async def test_answers_of_many_questions_at_once_do_not_get_mixed_up(url):
    async with replicas(url, 3) as (a, b, c):

        async def known(request):
            return KnownAnswer([])

        async def rollout(request):
            return RolloutAnswer(int(request.seconds), [], {})

        for replica in (a, b, c):
            replica.answer = rollout
            replica.peers._answering = lambda request: known(request) if isinstance(request, KnownRequest) else rollout(request)
        asked = [replica.ask(RolloutRequest((), float(number), 0)) for number in range(50) for replica in (a, b, c)]
        lists = [a.peers.ask(KnownRequest((), 1), KnownAnswer, 5.0) for _ in range(20)]
        replies, listed = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*lists))
        assert [[answer.members for answer in reply.answers] for reply in replies] == [[n, n] for n in range(50) for _ in range(3)]
        assert all(reply.answers == [KnownAnswer([])] * 2 for reply in listed)


async def test_one_alone_asks_nobody_and_needs_no_connection_for_it(postgres_server, database, url):
    async with replicas(url, 1) as (a,):
        await a.counts()
        a.peers.tell(Arrival("g", "i", utc_now()))
        # Whoever looked for others at the start may still be leaving.
        await eventually(lambda: len(sessions(postgres_server, database)) == 1)


async def test_one_that_fails_to_answer_is_silent_at_once_and_one_that_takes_too_long_a_little_later(url):
    async with replicas(url, 3) as (a, b, _c):
        b.fails = True
        started = time.monotonic()
        replies = await a.ask(seconds=10)
        assert ([answer.members for answer in replies.answers], replies.silent) == ([2], ["replica-1"])
        b.waits.clear()
        replies = await a.ask(seconds=0.2)
        assert ([answer.members for answer in replies.answers], replies.silent) == ([2], ["replica-1"])
        assert 1 < time.monotonic() - started < 4
        b.waits.set()
        b.fails = False
        await a.counts(1, 2)


async def test_an_answer_in_the_words_of_another_version_is_none(url):
    async with replicas(url, 3) as (a, b, _c):

        async def other(_request):
            return PrepareAnswer({})

        b.peers._answering = other
        replies = await a.ask()
        assert ([answer.members for answer in replies.answers], replies.silent) == ([2], ["replica-1"])


async def test_questions_and_answers_of_any_size_arrive(postgres_server, database, url):
    async with replicas(url, 2) as (a, b):
        for size in (1, 2_000, 5_800, 6_000, 8_000, 1_000_000):
            binding = Binding(app="a" * size, environment="staging", revision=1, deployment=None)

            async def answer(request):
                return RolloutAnswer(1, [request.bindings[0].app, "ünd ✓ \0"], {})

            b.peers._answering = answer
            replies = await a.ask(RolloutRequest((binding,), 1.0, 1))
            assert replies.answers == [RolloutAnswer(1, ["a" * size, "ünd ✓ \0"], {})]
        kept = postgres_server.execute("SELECT count(*), min(length(message)) > 7000 FROM replica_messages", database)
        assert kept[0][0] >= 4
        assert kept[0][1]


async def test_what_was_said_is_swept_and_so_are_replicas_that_never_came_back(postgres_server, database, url, monkeypatch):
    monkeypatch.setattr(postgres_peers, "SWEEP_SECONDS", 0.0)
    old = "now() - interval '61 seconds'"
    postgres_server.execute(f"INSERT INTO replica_messages (message, create_time) VALUES ('old', {old}), ('new', now())", database)
    postgres_server.execute(f"INSERT INTO replicas VALUES ('{uuid.uuid4()}', 'gone', {old})", database)
    async with replicas(url, 1):
        await eventually(lambda: postgres_server.execute("SELECT address FROM replicas", database) == [("replica-0",)])
        await eventually(lambda: postgres_server.execute("SELECT message FROM replica_messages", database) == [("new",)])


async def test_one_that_beats_no_more_is_not_waited_for(postgres_server, database, url):
    async with replicas(url, 2) as (a, _b):
        postgres_server.execute(f"INSERT INTO replicas VALUES ('{uuid.uuid4()}', 'dead')", database)
        await eventually(lambda: sorted(a.peers.others) == ["dead", "replica-1"])
        started = time.monotonic()
        await a.ask(seconds=60)
        assert time.monotonic() - started < 5
        await a.counts(1)


async def test_one_that_is_killed_is_waited_for_no_longer_than_a_connection_takes_to_come_back(url, monkeypatch):
    # So long ago that nobody takes it for a server that has just come back.
    monkeypatch.setattr(postgres_peers, "GONE_SECONDS", 60)
    async with replicas(url, 3) as (a, b, _c):
        a.peers._listening_since -= 60
        b.waits.clear()
        asking = asyncio.create_task(a.ask(seconds=60))
        await eventually(lambda: b.asked)
        # As a process that dies: its connections close, and nobody says a word.
        await _die(b.peers)
        died = time.monotonic()
        replies = await asking
        assert ([answer.members for answer in replies.answers], replies.silent) == ([2], [])
        assert time.monotonic() - died < postgres_peers.DEAF_SECONDS + 1
        await a.counts(2)


async def _die(peers):
    for task in list(peers._tasks):
        task.cancel()
    await asyncio.gather(*peers._tasks, return_exceptions=True)


async def test_one_that_listens_again_in_time_was_never_gone(postgres_server, database, url):
    async with replicas(url, 3) as (a, b, _c):
        a.peers._listening_since -= 60
        seen = set()
        for _ in range(5):
            # Its listening connection alone.
            (pid,) = postgres_server.execute(f"SELECT backend_pid FROM replicas WHERE address = '{b.peers.address}'", database)[0]
            postgres_server.execute(f"SELECT pg_terminate_backend({pid})", database)

            def listens_again(pid=pid):
                seen.add(len(a.peers.others))
                return postgres_server.execute(f"SELECT backend_pid <> {pid} FROM replicas WHERE address = '{b.peers.address}'", database)[
                    0
                ][0]

            await eventually(listens_again)
            await a.counts(1, 2)
        assert seen == {2}


async def test_one_that_leaves_is_not_waited_for_at_all(url):
    async with replicas(url, 3) as (a, b, _c):
        b.waits.clear()
        asking = asyncio.create_task(a.ask(seconds=60))
        await eventually(lambda: b.asked)
        await b.peers.close()
        replies = await asyncio.wait_for(asking, 2)
        assert ([answer.members for answer in replies.answers], replies.silent) == ([2], [])


async def test_stores_that_share_a_database_do_not_hear_each_other(postgres_server, database, url):
    postgres_server.execute("CREATE SCHEMA other", database)
    elsewhere = url + "?options=-csearch_path%3Dother"
    await (await open_store(elsewhere)).close()
    async with replicas(url, 2) as (a, _b), replicas(elsewhere, 2, store_id="other") as (c, d):
        await a.counts(1)
        assert (c.asked, d.asked) == ([], [])


async def test_nonsense_on_the_channel_harms_nobody(postgres_server, database, url):
    async with replicas(url, 2) as (a, b):
        for payload in ("", "nonsense", "AAAA", "row", "row x", "row 99999", "ünd"):
            postgres_server.execute(f"SELECT pg_notify('pointsman_store', '{payload}')", database)
        await a.counts(1)
        await b.counts(0)


async def test_a_question_amid_cut_connections_is_answered_all_the_same(postgres_server, database, url):
    async with replicas(url, 3) as (a, b, c):
        for _ in range(10):
            for pid in sessions(postgres_server, database):
                postgres_server.execute(f"SELECT pg_terminate_backend({pid[0]})")
            for replica, others in ((a, (1, 2)), (b, (0, 2)), (c, (0, 1))):
                await replica.counts(*others)


async def test_a_question_asked_again_while_its_answer_is_made_is_answered_once(url):
    async with replicas(url, 2) as (a, b):
        b.waits.clear()
        asking = asyncio.create_task(a.ask(seconds=20))
        await eventually(lambda: b.asked)
        a.peers._ask_again(a.peers._members)
        a.peers.tell(Arrival("heard after it", "i", utc_now()))
        await eventually(lambda: b.arrivals)
        b.waits.set()
        assert [answer.members for answer in (await asking).answers] == [1]
        assert len(b.asked) == 1


async def test_one_whose_row_was_lost_with_the_server_counts_until_it_is_back(postgres_server, database, url):
    async with replicas(url, 3) as known:
        others = set()

        async def all_have_beaten(since):
            others.update(len(replica.peers.others) for replica in known)
            return postgres_server.execute(f"SELECT 1 FROM replicas WHERE beat_time > '{since}' HAVING count(*) = 3", database)

        postgres_server.execute("TRUNCATE replicas", database)
        now = postgres_server.execute("SELECT now()")[0][0]
        await eventually(lambda: all_have_beaten(now))
        assert others == {2}


async def test_arrivals_are_told_to_the_others_many_at_once(postgres_server, database, url):
    async with replicas(url, 3) as (a, b, c):
        arrivals = [Arrival(f"g{number}", str(uuid.uuid4()), utc_now()) for number in range(500)]
        for arrival in arrivals:
            a.peers.tell(arrival)
        await eventually(lambda: b.arrivals == c.arrivals == arrivals)
        assert a.arrivals == []
        assert postgres_server.execute("SELECT count(*) FROM replica_messages", database)[0][0] <= 2


@pytest.mark.skipif(not available(), reason=MISSING)
async def test_when_nobody_can_be_asked_that_is_said_in_time():
    with running_postgres("fsync=off") as postgres:
        await (await open_store(postgres.url())).close()
        async with replicas(postgres.url(), 2) as (a, _b):
            with postgres.frozen():
                started = time.monotonic()
                replies = await a.ask(seconds=0.5)
                assert time.monotonic() - started < 3
                assert "does not answer" in replies.failure.message
                assert replies.silent == ["replica-1"]

            async def whole_again():
                return len((await a.ask(seconds=0.2)).answers) == 1

            await eventually(whole_again, 30)
            postgres.stop()
            replies = await a.ask()
            assert replies.failure.reason_name == "STORE_UNAVAILABLE"
            assert replies.silent == ["replica-1"]
            postgres.start()
            await eventually(whole_again, 30)


@pytest.mark.skipif(not available(), reason=MISSING)
async def test_replicas_live_on_without_a_synchronous_standby_and_find_each_other_on_it_when_it_takes_over():
    with running_postgres() as primary, standby_of(primary) as standby:
        both = primary.url().replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")
        await (await open_store(both)).close()
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.execute("SELECT pg_reload_conf()")
        await eventually(lambda: primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
        async with replicas(both, 2) as (a, b):
            await asyncio.to_thread(standby.stop)
            stopped = primary.execute("SELECT now()")[0][0]
            await eventually(lambda: primary.execute(f"SELECT count(*) FROM replicas WHERE beat_time > '{stopped}'") == [(2,)])
            await a.counts(1)
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)

            async def whole_again(asking, other):
                return [answer.members for answer in (await asking.ask(seconds=0.2)).answers] == [other.members]

            await eventually(lambda: whole_again(a, b), 20)
            await eventually(lambda: whole_again(b, a), 20)
