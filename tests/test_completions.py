"""What OpenAI-compatible servers answer, as they really do: tool calls in any pieces, errors in the midst, counts at the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_plane.steps.base import Clients, StepError
from data_plane.steps.completions import Message, read_message, read_stream
from tests.test_answers import answering
from tests.test_tool_call import clients as clients  # noqa: PLC0414 -- a fixture

FINISHED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def call(arguments: Any, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"function": {"arguments": arguments} | ({"name": name} if name else {}), **more}


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


async def streamed(clients: Clients, *chunks: Any, told: list[str] | None = None) -> Message:
    told = [] if told is None else told
    async with answering(clients, *map(event, chunks)) as response:
        return await read_stream(response, "it", told.append, lambda text: text[:40])


async def test_text_is_told_as_it_comes_and_counts_come_last(clients):
    told: list[str] = []
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    message = await streamed(
        clients, chunk(role="assistant"), chunk(content="a"), chunk(content="b"), FINISHED, usage, b"[DONE]", told=told
    )
    assert (message.content, message.input_tokens, message.output_tokens, told) == ("ab", 3, 4, ["a", "b"])


@pytest.mark.parametrize("end", [[FINISHED], [b"[DONE]"], [FINISHED, b"[DONE]"], [FINISHED, b"[DONE]", b"not looked at"]])
async def test_either_sign_of_the_end_will_do(clients, end):
    assert (await streamed(clients, chunk(content="all"), *end)).content == "all"


TWO = [("c1", "find", '{"id": 1}'), ("c2", "find", '{"id": 2}')]


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        # As the standard has it, the pieces of two calls mixed.
        (
            [
                call("", "find", id="c1", index=0),
                call("", "find", id="c2", index=1),
                call('{"id"', index=0),
                call('{"id"', index=1),
                call(": 1}", index=0),
                call(": 2}", index=1),
            ],
            TWO,
        ),
        # No index.
        ([call('{"id"', "find", id="c1"), call(": 1}"), call('{"id": ', "find", id="c2", index=None), call("2}")], TWO),
        # Every call whole, and all with the same index.
        ([call('{"id": 1}', "find", id="c1", index=0), call('{"id": 2}', "find", id="c2", index=0)], TWO),
        # The same without ids.
        (
            [call('{"id": 1}', "find", id="", index=0), call('{"id": 2}', "find", index=0)],
            [("", "find", '{"id": 1}'), ("", "find", '{"id": 2}')],
        ),
        # An id of its own for every piece.
        ([call('{"id"', "find", id="c1", index=0), call(": 1}", id="x", index=0)], TWO[:1]),
        # Id and name again and again.
        ([call('{"id"', "find", id="c1", index=0), call(": 1}", "find", id="c1", index=0)], TWO[:1]),
        # Arguments that are no text.
        ([call({"id": 1}, "find", id="c1", index=0)], [("c1", "find", '{"id":1}')]),
        ([call(None, "find", id="c1", index=0)], [("c1", "find", "")]),
    ],
)
async def test_tool_calls_are_joined_as_they_were_meant(clients, pieces, calls):
    found = (await streamed(clients, *[chunk(tool_calls=[piece]) for piece in pieces], FINISHED)).tool_calls
    assert [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in found or ()] == calls


@pytest.mark.parametrize(
    ("chunks", "says", "retryable"),
    [
        ([chunk(content="a"), {"error": {"message": "overloaded", "code": 503}}], "it broke off: overloaded", False),
        ([chunk(content="a"), {"error": "no room"}], "it broke off: no room", False),
        ([{"error": {"code": 503, "text": "x" * 100}}], r"it broke off: \{'code': 503, 'text': 'x{17}$", False),
        ([chunk(content="a")], "the answer was cut before its end", True),
        ([], "the answer was cut before its end", True),
        ([b"<html>"], "did not answer as the OpenAI API does", False),
        ([b'{"choices": [{"delta": {"content": 5}}]}'], "did not answer as the OpenAI API does", False),
        ([chunk(tool_calls=[call("", "t", index=n) for n in range(200)]), chunk()], "more than there is room for", False),
    ],
)
async def test_a_stream_that_does_not_end_well(clients, chunks, says, retryable):
    with pytest.raises(StepError, match=says) as failed:
        await streamed(clients, *chunks)
    assert failed.value.retryable is retryable


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": {"message": "no provider", "code": 502}}', "it answered an error: no provider"),
        (b'{"choices": [], "error": "no provider"}', "it answered an error: no provider"),
        (b'{"choices": []}', "it answered no choices"),
        (b"{}", "it answered no choices"),
        (b"", "did not answer as the OpenAI API does"),
        (b'{"choices": [{"message": {"content": ["x"]}}]}', "did not answer as the OpenAI API does"),
    ],
)
def test_an_answer_that_is_none(body, says):
    with pytest.raises(StepError, match=says) as failed:
        read_message("it", body, lambda text: text)
    assert not failed.value.retryable


def test_an_answer_whose_error_is_null_is_one():
    assert read_message("it", b'{"choices": [{"message": {"content": "yes"}}], "error": null}', lambda text: text).content == "yes"
