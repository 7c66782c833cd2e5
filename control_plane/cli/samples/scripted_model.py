"""A model that follows a few fixed rules, OpenAI-compatible, on loopback. It takes what it needs from the words of the last message.

- Asked by a schema, it answers a value of that shape.
- Given tools, it calls each whose required arguments are all in the message, and then tells what they answered.
- Asked to paraphrase, it says the same again; else it says what it always says.

`python -m control_plane.cli.samples.scripted_model PORT` serves until SIGTERM, as a child of dev.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from typing import Any

from control_plane.cli.samples import SERVICES
from control_plane.cli.samples.serving import QuietHandler, serve_until_told, start

SCRIPT = "Thank you for your patience. Your message is with our team, and we will write as soon as we know more."
NAME = "scripted"
PARAPHRASE = "Paraphrase: "
# Words with a capital letter after one without: `I am Ann Lee from Leeds` has Ann Lee, and Leeds.
NAMES = re.compile(r"(?<=[a-z] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")


class ScriptedModel(QuietHandler):
    """Answers every POST as a chat; as a stream, word by word."""

    def do_POST(self) -> None:
        """One chat completion."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = answer(asked)
        written = json.dumps(message["tool_calls"]) if "tool_calls" in message else message["content"]
        usage = {"prompt_tokens": _words(asked["messages"]), "completion_tokens": len(written.split())}
        if not asked.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, "application/json", json.dumps({"model": NAME, "choices": [choice], "usage": usage}).encode())
            return
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in _deltas(message)]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
        lines = [json.dumps({"model": NAME, **chunk}) for chunk in chunks] + ["[DONE]"]
        self.answer(200, "text/event-stream", "".join(f"data: {line}\n\n" for line in lines).encode())


def _words(messages: list[dict[str, Any]]) -> int:
    """The tokens of this model are words."""
    return sum(len(str(message.get("content") or "").split()) for message in messages)


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    if "tool_calls" in message:
        return [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(message["tool_calls"])]
    return [{"content": piece} for piece in re.findall(r"\s*\S+", message["content"])]


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The message that it answers to a request of /v1/chat/completions."""
    messages = asked["messages"]
    found = [message["content"] for message in itertools.takewhile(lambda message: message["role"] == "tool", reversed(messages))]
    if found:
        return _said(f"I looked it up: {'; '.join(reversed(found))}")
    text = next(str(message["content"]) for message in reversed(messages) if message["role"] == "user")
    if calls := _calls(asked.get("tools", []), text):
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if "response_format" in asked:
        return _said(json.dumps(_value(asked["response_format"]["json_schema"]["schema"], text, NAMES.findall(text))))
    return _said(text.removeprefix(PARAPHRASE) if text.startswith(PARAPHRASE) else SCRIPT)


def _said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _calls(tools: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for tool in (tool["function"] for tool in tools):
        properties = tool["parameters"].get("properties", {})
        arguments = {name: _found(properties[name], text) for name in tool["parameters"].get("required", [])}
        if None not in arguments.values():
            function = {"name": tool["name"], "arguments": json.dumps(arguments)}
            calls.append({"id": f"call-{len(calls) + 1}", "type": "function", "function": function})
    return calls


def _found(schema: dict[str, Any], text: str) -> Any:
    """The first thing in the text that fits the schema; None when there is none."""
    words = re.findall(r"\w+", text)
    if "enum" in schema:
        return next((one for one in schema["enum"] if str(one).lower() in text.lower()), None)
    if schema.get("type") == "integer":
        numbers = [int(word) for word in words if word.isdecimal()]
        return next((n for n in numbers if schema.get("minimum", n) <= n <= schema.get("maximum", n)), None)
    return next((word for word in words if "pattern" in schema and re.search(schema["pattern"], word)), None)


def _value(schema: dict[str, Any], text: str, names: list[str]) -> Any:
    """A value of the schema's shape; texts without a pattern take the names in turn."""
    if schema.get("type") == "object":
        return {name: _value(schema["properties"][name], text, names) for name in schema.get("required", schema["properties"])}
    found = _found(schema, text)
    if found is not None:
        return found
    if "enum" in schema:
        return schema["enum"][-1]
    if schema.get("type") == "integer":
        return schema.get("minimum", 0)
    return names.pop(0) if names and "pattern" not in schema else "0"


if __name__ == "__main__":
    serve_until_told(SERVICES["caller"].title, int(sys.argv[1]), lambda port: start(ScriptedModel, port))
