"""Control planes on one database: who of them lives, and how they ask each other, by NOTIFY.

The connection that listens also beats, so a replica whose row in `replicas` is fresh is one that hears.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

import msgspec
import psycopg
import structlog

from control_plane.peers import A, Answering, Arrival, Replies, Request
from control_plane.storage.postgres_connection import delays, location_of, one_line, parse
from control_plane.storage.postgres_following import ask
from control_plane.storage.postgres_letters import (
    NOTIFY,
    Arrivals,
    Joined,
    Left,
    Message,
    Question,
    Reply,
    Speaker,
    connect,
    is_in_a_row,
    packed,
    unavailable,
    unpacked,
)
from pointsman.errors import StoreUnavailable

BEAT_SECONDS = 1.0
# While somebody waits for an answer.
WAITING_BEAT_SECONDS = 0.25
GONE_SECONDS = 3.0
# For one that listens no more: so long it may take to listen again after its connection broke.
DEAF_SECONDS = 1.5
# How long an answer may travel after the time that was granted to those who give it.
LATE_SECONDS = 1.0
JOIN_SECONDS = 10.0
SWEEP_SECONDS = 20.0

# Those of older versions do not say what their backend is.
_BEAT = """WITH beat AS (
    INSERT INTO replicas (replica_id, address, backend_pid) VALUES (%s, %s, pg_backend_pid())
    ON CONFLICT (replica_id) DO UPDATE SET address = excluded.address, backend_pid = excluded.backend_pid, beat_time = now()
)
SELECT replica_id, address, beat_time > now() - make_interval(secs => CASE
    WHEN backend_pid IS NULL OR EXISTS (SELECT FROM pg_stat_get_activity(backend_pid)) THEN %s ELSE %s END)
FROM replicas WHERE replica_id <> %s ORDER BY address"""
_SWEEP = """WITH gone AS (DELETE FROM replicas WHERE beat_time < now() - interval '1 minute')
DELETE FROM replica_messages WHERE create_time < now() - interval '1 minute'"""

log = structlog.get_logger()


class _Inquiry:
    """A question, and who still owes an answer; `done` is set when none does."""

    def __init__(self, question: Question, members: Mapping[str, str]) -> None:
        self.question = question
        self.members = dict(members)
        self.pending = set(members)
        self.answers: dict[str, bytes | None] = {}
        self.done = asyncio.Event()

    def answered(self, replica_id: str, answer: bytes | None) -> None:
        self.answers[replica_id] = answer
        self._settle(replica_id)

    def only(self, living: Collection[str]) -> None:
        for replica_id in self.pending - set(living):
            self._settle(replica_id)

    def _settle(self, replica_id: str) -> None:
        self.pending.discard(replica_id)
        if not self.pending:
            self.done.set()

    def replies(self, answer_type: type[A]) -> Replies[A]:
        """What has come; an answer that cannot be read is none."""
        answers, silent = [], [self.members[replica_id] for replica_id in self.pending]
        for replica_id, answer in self.answers.items():
            try:
                if answer is not None:
                    answers.append(msgspec.msgpack.decode(answer, type=answer_type))
                    continue
            except msgspec.MsgspecError as error:
                log.warning("a replica answered in another version's words", replica=self.members.get(replica_id), error=str(error))
            silent.append(self.members.get(replica_id, replica_id))
        return Replies(answers=answers, silent=silent)


class PostgresPeers:
    """Implements peers.Peers."""

    def __init__(self, url: str, store_id: str) -> None:
        self.address = ""
        self._parameters = parse(url)
        self._replica_id = str(uuid.uuid4())
        # A database may hold several stores, each in a schema; channels belong to the database.
        self._channel = f"pointsman_{store_id}"
        self._members: dict[str, str] = {}
        self._inquiries: dict[str, _Inquiry] = {}
        self._answering: Answering | None = None
        self._arrived: Callable[[Arrival], None] | None = None
        self._arrivals: list[Arrival] = []
        self._seen: dict[str, float] = {}
        self._responding: set[str] = set()
        self._joined = asyncio.Event()
        self._listening_since = 0.0
        self._beat_at, self._late_at = math.inf, -math.inf
        self._swept_at = time.monotonic()
        self._speaker = Speaker(self._parameters)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def others(self) -> Collection[str]:
        """See peers.Peers."""
        return self._members.values()

    async def start(self, answering: Answering, arrived: Callable[[Arrival], None]) -> None:
        """See peers.Peers. When they cannot be joined now, they are as soon as they can."""
        self._answering, self._arrived = answering, arrived
        self._spawn(self._listen())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_SECONDS):
                await self._joined.wait()

    async def close(self) -> None:
        """See peers.Peers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._speaker.execute("DELETE FROM replicas WHERE replica_id = %s", self._replica_id)
            await self._speaker.say(self._channel, Left(self._replica_id))
        except StoreUnavailable as error:
            log.info("left without a word to the other replicas", error=error.message)
        await self._speaker.close()

    async def ask(self, request: Request, answer_type: type[A], seconds: float) -> Replies[A]:
        """See peers.Peers."""
        if not self._members:
            return Replies(answers=[])
        question = Question(self._replica_id, str(uuid.uuid4()), msgspec.msgpack.encode(request))
        inquiry = self._inquiries[question.inquiry_id] = _Inquiry(question, self._members)
        asked = False
        try:
            async with asyncio.timeout(seconds + LATE_SECONDS):
                await asyncio.shield(self._spawn(self._speaker.say(self._channel, question)))
                asked = True
                await inquiry.done.wait()
        except TimeoutError:
            if not asked:
                return self._unasked(inquiry, unavailable(self._parameters, "it does not answer"))
        except StoreUnavailable as error:
            return self._unasked(inquiry, error)
        finally:
            del self._inquiries[question.inquiry_id]
        return inquiry.replies(answer_type)

    def tell(self, arrival: Arrival) -> None:
        """See peers.Peers."""
        if not self._members:
            return
        self._arrivals.append(arrival)
        if len(self._arrivals) == 1:
            self._spawn(self._announce())

    async def _announce(self) -> None:
        """Those that come while this waits for its turn to speak go with it."""
        async with self._speaker.turn:
            arrivals, self._arrivals = self._arrivals, []
        try:
            await self._speaker.say(self._channel, Arrivals(self._replica_id, arrivals))
        except StoreUnavailable as error:
            log.info("other replicas do not hear which gateways came", error=error.message)

    def _unasked(self, inquiry: _Inquiry, failure: StoreUnavailable) -> Replies[Any]:
        return Replies(answers=[], silent=list(inquiry.members.values()), failure=failure)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Listening

    async def _listen(self) -> None:
        waits = delays()
        while True:
            try:
                async with await connect(self._parameters) as connection:
                    for channel in (self._channel, _channel_of(self._replica_id)):
                        await ask(connection, f'LISTEN "{channel}"')
                    self._listening_since = time.monotonic()
                    await self._beat(connection)
                    await ask(connection, NOTIFY, [[self._channel], [packed(Joined(self._replica_id))]])
                    self._joined.set()
                    self._ask_again(self._members)
                    waits = delays()
                    while True:
                        await self._hear(connection)
                        await self._beat(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("other replicas are not heard now", store=location_of(self._parameters), error=one_line(error))
            await asyncio.sleep(next(waits))

    async def _beat(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Tells that this one lives, and learns who else does."""
        # After a restart of the server nobody listens for a moment.
        deaf_seconds = DEAF_SECONDS if time.monotonic() > self._listening_since + GONE_SECONDS else GONE_SECONDS
        cursor = await ask(connection, _BEAT, [self._replica_id, self.address, GONE_SECONDS, deaf_seconds, self._replica_id])
        rows = {str(replica_id): (address, lives) for replica_id, address, lives in await cursor.fetchall()}
        members = {replica_id: address for replica_id, (address, lives) in rows.items() if lives}
        now = time.monotonic()
        if now > self._beat_at + GONE_SECONDS - BEAT_SECONDS:
            self._late_at = now
        self._beat_at = now
        self._seen |= dict.fromkeys(members, now)
        # The server forgets every row when it crashes: who has none may just not be back yet. And whatever held this one up, such as a
        # pause of the whole machine, may have held up the others: the first to go on must not take them for dead.
        members |= {
            replica_id: address
            for replica_id, address in self._members.items()
            if now < self._late_at + GONE_SECONDS
            or (replica_id not in rows and now < max(self._seen[replica_id], self._listening_since) + GONE_SECONDS)
        }
        self._set_members(members)
        if now > self._swept_at + SWEEP_SECONDS:
            self._swept_at = now
            await ask(connection, _SWEEP)

    def _set_members(self, members: dict[str, str]) -> None:
        if members.keys() != self._members.keys():
            log.info("replicas of this control plane", others=list(members.values()))
        self._members = members
        self._seen = {replica_id: seen for replica_id, seen in self._seen.items() if replica_id in members}
        for inquiry in self._inquiries.values():
            inquiry.only(members)

    def _ask_again(self, members: Collection[str]) -> None:
        """Those that still owe an answer: while somebody did not listen, the question or the answer was lost."""
        for inquiry in self._inquiries.values():
            for replica_id in inquiry.pending.intersection(members):
                self._spawn(self._try_to_say(replica_id, inquiry.question))

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Until the next beat is due, or somebody came or left."""
        began, changed = time.monotonic(), False
        # What is asked here is heard here as well, so a wait that begins is known at once.
        while not changed and (seconds := began + self._beat_seconds - time.monotonic()) > 0:
            async for note in connection.notifies(timeout=seconds, stop_after=1):
                if is_in_a_row(note.payload):
                    self._spawn(self._pick_up(note.payload))
                else:
                    changed |= self._take(note.payload)

    @property
    def _beat_seconds(self) -> float:
        return WAITING_BEAT_SECONDS if self._inquiries else BEAT_SECONDS

    async def _pick_up(self, payload: str) -> None:
        try:
            text = await self._speaker.pick_up(payload)
        except StoreUnavailable as error:
            log.warning("what another replica said cannot be read", error=error.message)
        else:
            if text is not None:
                self._take(text)

    def _take(self, text: str) -> bool:
        """Whether there may be new members."""
        message = unpacked(text)
        if message is None or message.sender == self._replica_id:
            return False
        match message:
            case Joined():
                self._ask_again([message.sender])
            case Left():
                self._set_members({replica_id: address for replica_id, address in self._members.items() if replica_id != message.sender})
            case Question() if message.inquiry_id not in self._responding:
                self._responding.add(message.inquiry_id)
                self._spawn(self._respond(message))
            case Reply() if (inquiry := self._inquiries.get(message.inquiry_id)) is not None:
                inquiry.answered(message.sender, message.answer)
            case Arrivals() if self._arrived is not None:
                for arrival in message.arrivals:
                    self._arrived(arrival)
        return isinstance(message, Joined)

    async def _respond(self, question: Question) -> None:
        answer = None
        try:
            assert self._answering is not None
            request = msgspec.msgpack.decode(question.request, type=Request)
            answer = msgspec.msgpack.encode(await self._answering(request))
        except Exception:
            log.exception("what another replica asked cannot be answered")
        finally:
            self._responding.discard(question.inquiry_id)
        await self._try_to_say(question.sender, Reply(self._replica_id, question.inquiry_id, answer))

    async def _try_to_say(self, replica_id: str, message: Message) -> None:
        try:
            await self._speaker.say(_channel_of(replica_id), message)
        except StoreUnavailable as error:
            log.warning("another replica cannot be told", replica=self._members.get(replica_id, replica_id), error=error.message)


def _channel_of(replica_id: str) -> str:
    return f"pointsman_{replica_id}"
