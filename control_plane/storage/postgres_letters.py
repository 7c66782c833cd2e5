"""What replicas say to each other by NOTIFY, and the connection on which one speaks.

What is too long for a NOTIFY lies in `replica_messages` while the NOTIFY carries its number. None of it needs to be durable: no commit
waits for a disk or a standby.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, LiteralString

import msgspec
import psycopg
import structlog

from control_plane.peers import Arrival
from control_plane.storage.postgres_connection import location_of, one_line
from control_plane.storage.postgres_following import ask, connected
from pointsman.errors import StoreUnavailable

# Of a NOTIFY: less than 8,000, the server's limit.
MAX_PAYLOAD_BYTES = 7_999
NOTIFY = "SELECT pg_notify(channel, message) FROM unnest(%s::text[], %s::text[]) AS letters (channel, message)"
_IN_A_ROW = "row "
_LAY_DOWN = """WITH kept AS (INSERT INTO replica_messages (message) VALUES (%s) RETURNING message_id)
SELECT pg_notify(%s, %s::text || message_id) FROM kept"""
_PICK_UP = "SELECT message FROM replica_messages WHERE message_id = %s"

log = structlog.get_logger()


class Joined(msgspec.Struct, tag="joined", frozen=True):
    """The sender listens from now on; what was said before it may not have heard."""

    sender: str


class Left(msgspec.Struct, tag="left", frozen=True):
    """The sender is not to be waited for any more."""

    sender: str


class Arrivals(msgspec.Struct, tag="arrivals", frozen=True):
    """To all."""

    sender: str
    arrivals: list[Arrival]


class Question(msgspec.Struct, tag="question", frozen=True):
    """To all. The request is encoded by itself: one that a replica of another version does not know can still be refused."""

    sender: str
    inquiry_id: str
    request: bytes


class Reply(msgspec.Struct, tag="reply", frozen=True):
    """To the asker alone; without an answer when none could be given."""

    sender: str
    inquiry_id: str
    answer: bytes | None


Message = Joined | Left | Arrivals | Question | Reply
_decoder = msgspec.msgpack.Decoder(Message)


def packed(message: Message) -> str:
    """As text that any encoding of a database can take."""
    return base64.b64encode(msgspec.msgpack.encode(message)).decode()


def unpacked(text: str) -> Message | None:
    """None when it cannot be read, as when a later version said it."""
    try:
        message: Message = _decoder.decode(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        log.warning("what another replica says cannot be read", error=str(error))
        return None
    return message


def is_in_a_row(payload: str) -> bool:
    """Whether a NOTIFY only points at what is said."""
    return payload.startswith(_IN_A_ROW)


async def connect(parameters: dict[str, Any]) -> psycopg.AsyncConnection[Any]:
    """A connection whose commits are not waited for."""
    connection = await connected(parameters)
    await ask(connection, "SET synchronous_commit = off")
    return connection


class _Letter(msgspec.Struct, eq=False):
    """A packed message that waits to be sent, or could not be."""

    channel: str
    text: str
    error: StoreUnavailable | None = None


class Speaker:
    """One connection, made when it is first needed. Its users take turns; many letters go together where many wait."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.turn = asyncio.Lock()
        self._outbox: list[_Letter] = []

    async def say(self, channel: str, message: Message) -> None:
        """Says it, with whatever else came to be said while others spoke. Raises StoreUnavailable when it could not be said."""
        letter = _Letter(channel, packed(message))
        self._outbox.append(letter)
        async with self.turn:
            if letter in self._outbox:
                letters, self._outbox = self._outbox, []
                try:
                    await self._send(letters)
                except StoreUnavailable as error:
                    for failed in letters:
                        failed.error = error
        if letter.error is not None:
            raise letter.error

    async def pick_up(self, payload: str) -> str | None:
        """What a NOTIFY points at; None when it is not there any more. Raises StoreUnavailable."""
        row = await (await self.execute(_PICK_UP, payload.removeprefix(_IN_A_ROW))).fetchone()
        return None if row is None else str(row[0])

    async def execute(self, sql: LiteralString, *parameters: Any) -> psycopg.AsyncCursor[Any]:
        """Runs a statement. Raises StoreUnavailable."""
        async with self.turn:
            return await self._execute(sql, *parameters)

    async def close(self) -> None:
        """Lets go of the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _send(self, letters: list[_Letter]) -> None:
        short = [letter for letter in letters if len(letter.text) <= MAX_PAYLOAD_BYTES]
        if short:
            await self._execute(NOTIFY, [letter.channel for letter in short], [letter.text for letter in short])
        for letter in letters:
            if len(letter.text) > MAX_PAYLOAD_BYTES:
                await self._execute(_LAY_DOWN, letter.text, letter.channel, _IN_A_ROW)

    async def _execute(self, sql: LiteralString, *parameters: Any) -> psycopg.AsyncCursor[Any]:
        """For whose turn it is to speak. A connection that broke while nobody used it is replaced. Raises StoreUnavailable."""
        for last in (False, True):
            try:
                if self._connection is None:
                    self._connection = await connect(self._parameters)
                return await ask(self._connection, sql, parameters)
            except (psycopg.Error, OSError) as error:
                broken, self._connection = self._connection, None
                if broken is not None:
                    await broken.close()
                if last:
                    raise unavailable(self._parameters, one_line(error)) from error
        raise AssertionError("unreachable")


def unavailable(parameters: dict[str, Any], why: str) -> StoreUnavailable:
    """That nobody can be asked."""
    location = location_of(parameters)
    told = f"The other replicas cannot be asked through {location}: {why}. Nothing was changed; ask again."
    return StoreUnavailable(told, store=location, cause="replicas")
