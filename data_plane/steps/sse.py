"""A model's answer that comes as server-sent events: told piece by piece, and put together to the message it would have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import msgspec

from data_plane.steps.base import MAX_ANSWER_BYTES, StepError, cause_of


async def read_stream(response: httpx2.Response, who: str, delta: Callable[[str], None]) -> dict[str, Any]:
    """The whole message: `content`, and `tool_calls` when there are any. Raises StepError, also when the stream is cut."""
    text: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    size, done = 0, False
    try:
        async for line in response.aiter_lines():
            size += len(line)
            if size > MAX_ANSWER_BYTES:
                raise StepError(f"{who} answered more than {MAX_ANSWER_BYTES} bytes")
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                done = True
                break
            piece = _piece(who, data)
            done = done or piece.pop("finished", False)
            content = piece.get("content")
            if isinstance(content, str) and content:
                text.append(content)
                delta(content)
            for call in piece.get("tool_calls") or ():
                _join(
                    calls.setdefault(call.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}), call
                )
    except httpx2.TransportError as error:
        raise StepError(f"{who}: the answer was cut: {cause_of(error)}") from None
    if not done:
        # What was told cannot be taken back, so it is not tried again.
        raise StepError(f"{who}: the answer was cut before its end")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text)}
    return message | ({"tool_calls": [calls[index] for index in sorted(calls)]} if calls else {})


def _piece(who: str, data: str) -> dict[str, Any]:
    """The delta of the first choice, with `finished` when it says that it is the last."""
    try:
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise StepError(f"{who} broke off: {str(chunk['error'])[:200]}")
        if not chunk.get("choices"):
            return {}
        choice = chunk["choices"][0]
        return {**(choice.get("delta") or {}), "finished": choice.get("finish_reason") is not None}
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise StepError(f"{who} did not answer as the OpenAI API does: {type(error).__name__}") from None


def _join(known: dict[str, Any], piece: dict[str, Any]) -> None:
    """Names and ids come once, arguments in pieces."""
    function = piece.get("function") or {}
    known["id"] = piece.get("id") or known["id"]
    known["function"]["name"] = function.get("name") or known["function"]["name"]
    known["function"]["arguments"] += function.get("arguments") or ""
