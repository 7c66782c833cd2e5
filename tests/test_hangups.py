"""Who hangs up is noticed, and an answer leaves in one piece; at the level of the event loop."""

import asyncio

import pytest

from data_plane.hangups import Hangups
from pointsman.joined_writes import JoinedWrites
from tests.eventually import eventually


class Caller:
    """An ASGI `receive`: `hang_up` ends it, `asked` counts who waits for that."""

    def __init__(self):
        self.asked = 0
        self._gone = asyncio.Event()

    async def receive(self):
        self.asked += 1
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def hang_up(self):
        self._gone.set()


class Recorded:
    """A transport that notes what is done to it."""

    def __init__(self):
        self.done = []

    def write(self, data):
        self.done.append(data)

    def write_eof(self):
        self.done.append("eof")

    def close(self):
        self.done.append("close")

    def is_closing(self):
        return "close" in self.done


async def run(hangups, caller, until):
    with hangups.watch(caller.receive) as watch:
        try:
            await until.wait()
        except asyncio.CancelledError:
            return watch.hung_up
    return None


async def test_work_is_cancelled_when_its_caller_hangs_up_and_other_work_goes_on():
    hangups, gone, other, done = Hangups(), Caller(), Caller(), asyncio.Event()
    works = [asyncio.create_task(run(hangups, caller, done)) for caller in (gone, other)]
    await eventually(lambda: gone.asked and other.asked)
    gone.hang_up()
    assert await works[0] is True
    assert not works[1].done()
    done.set()
    assert await works[1] is None


async def test_a_cancellation_from_elsewhere_is_no_hanging_up():
    hangups, caller = Hangups(), Caller()
    work = asyncio.create_task(run(hangups, caller, asyncio.Event()))
    await eventually(lambda: caller.asked)
    work.cancel()
    assert await work is False


async def test_quick_work_is_never_watched_and_what_comes_later_is():
    hangups, quick, slow, done = Hangups(), Caller(), Caller(), asyncio.Event()
    done.set()
    for _ in range(100):
        assert await run(hangups, quick, done) is None
    work = asyncio.create_task(run(hangups, slow, asyncio.Event()))
    await eventually(lambda: slow.asked)
    slow.hang_up()
    assert await work is True
    assert quick.asked == 0


async def test_what_is_written_in_one_turn_leaves_at_once_and_in_order():
    real = Recorded()
    joined = JoinedWrites(real)
    joined.write(b"head ")
    joined.write(b"body")
    assert real.done == []
    await eventually(lambda: real.done)
    joined.write(b"next")
    await eventually(lambda: len(real.done) == 2)
    assert real.done == [b"head body", b"next"]


@pytest.mark.parametrize(("end", "mark"), [("close", "close"), ("write_eof", "eof")])
async def test_the_end_comes_after_what_was_written(end, mark):
    real = Recorded()
    joined = JoinedWrites(real)
    joined.write(b"all")
    getattr(joined, end)()
    assert real.done == [b"all", mark]
    assert joined.is_closing() == (end == "close")
    await asyncio.sleep(0)
    assert real.done == [b"all", mark]


async def test_what_was_written_for_who_has_gone_since_is_dropped():
    real = Recorded()
    joined = JoinedWrites(real)
    joined.write(b"never")
    real.close()
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()
    assert real.done == ["close"]
