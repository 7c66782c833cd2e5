"""What an OpenAI-compatible API answers, whole or as server-sent events, as one Message; whatever has another shape is a StepError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec

from data_plane.steps.answers import read_events
from data_plane.steps.base import MAX_ANSWER_BYTES, MAX_SHOWN_CHARS, StepError

Excerpt = Callable[[str], str]
"""What is shown of a text that somebody else made."""

MAX_TOOL_CALLS_AT_ONCE = 128


class Message(msgspec.Struct):
    """What a model said. `tool_calls` as they came: some APIs want more of them back than the standard has."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class ToolCall(msgspec.Struct):
    """What is needed of a tool call."""

    class Function(msgspec.Struct):
        """Arguments are JSON text; of some APIs the value itself."""

        name: str
        arguments: str | dict[str, Any] | None = None

    function: Function
    id: str | None = None


class _Choice(msgspec.Struct):
    message: Message


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


class _ToolPiece(msgspec.Struct):
    class Function(msgspec.Struct):
        name: str | None = None
        arguments: str | dict[str, Any] | None = None

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolPiece] | None = None


class _ChunkChoice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: Any = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def tool_call(who: str, call: dict[str, Any]) -> ToolCall:
    """Raises StepError."""
    try:
        return msgspec.convert(call, ToolCall)
    except msgspec.ValidationError as error:
        raise _not_as_expected(who, error) from None


def read_message(who: str, body: bytes, excerpt: Excerpt) -> Message:
    """Raises StepError."""
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_as_expected(who, error) from None
    if not answer.choices:
        raise StepError(f"{who} answered {f'an error: {_told(answer.error, excerpt)}' if answer.error else 'no choices'}")
    message = answer.choices[0].message
    return _with_usage(message, answer.model, answer.usage)


async def read_stream(response: httpx2.Response, who: str, delta: Callable[[str], None], excerpt: Excerpt) -> Message:
    """The whole message, its text told as it comes. Raises StepError, also when the stream is cut."""
    text: list[str] = []
    calls = _ToolCalls()
    refusal, model, usage = "", None, None
    size, done = 0, False
    async with contextlib.aclosing(read_events(response, who)) as events:
        async for data in events:
            if data == b"[DONE]":
                done = True
                break
            chunk = _chunk(who, data, excerpt)
            model, usage = chunk.model or model, chunk.usage or usage
            choice = chunk.choices[0] if chunk.choices else None
            if choice is None or choice.index != 0:
                continue
            # No end of the loop: what was used may come after what was written.
            done = done or choice.finish_reason is not None
            piece = choice.delta or _Delta()
            refusal += piece.refusal or ""
            size += len(data)
            if size > MAX_ANSWER_BYTES * 16 or len(calls.joined) > MAX_TOOL_CALLS_AT_ONCE:
                raise StepError(f"{who} answered more than there is room for")
            if piece.content:
                text.append(piece.content)
                delta(piece.content)
            for part in piece.tool_calls or ():
                calls.add(part)
    if not done:
        raise StepError(f"{who}: the answer was cut before its end", retryable=True)
    content = "".join(text)
    if len(content) > MAX_ANSWER_BYTES:
        raise StepError(f"{who} answered more than {MAX_ANSWER_BYTES} characters")
    message = Message(content=content, tool_calls=calls.joined or None, refusal=refusal or None)
    return _with_usage(message, model, usage)


def _chunk(who: str, data: bytes, excerpt: Excerpt) -> _Chunk:
    try:
        chunk = _decode_chunk(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_as_expected(who, error) from None
    if chunk.error:
        raise StepError(f"{who} broke off: {_told(chunk.error, excerpt)}")
    return chunk


def _told(error: Any, excerpt: Excerpt) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return excerpt(message if isinstance(message, str) else str(error))


class _ToolCalls:
    """Calls that come in pieces: names and ids once, arguments bit by bit. `joined` has them in the order in which they began."""

    def __init__(self) -> None:
        self.joined: list[dict[str, Any]] = []
        self._by_index: dict[int | None, dict[str, Any]] = {}
        """None: the last one, for servers that leave the index out."""

    def add(self, piece: _ToolPiece) -> None:
        function = piece.function or _ToolPiece.Function()
        known = self._by_index.get(piece.index)
        # Some servers give every call the same index: another name, not with the same id, begins another call.
        if known is None or (function.name and known["function"]["name"] and (not piece.id or piece.id != known["id"])):
            known = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            self.joined.append(known)
        self._by_index[piece.index] = self._by_index[None] = known
        known["id"] = known["id"] or piece.id or ""
        known["function"]["name"] = known["function"]["name"] or function.name or ""
        arguments = function.arguments or ""
        known["function"]["arguments"] += arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _with_usage(message: Message, model: Any, usage: Any) -> Message:
    """Counts are told where they are as the standard has them: a server that counts otherwise still answers."""
    message.model = model if isinstance(model, str) else ""
    counted = usage if isinstance(usage, dict) else {}
    message.input_tokens, message.output_tokens = (_count(counted.get(key)) for key in ("prompt_tokens", "completion_tokens"))
    return message


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _not_as_expected(who: str, error: Exception) -> StepError:
    return StepError(f"{who} did not answer as the OpenAI API does: {str(error)[:MAX_SHOWN_CHARS]}")
