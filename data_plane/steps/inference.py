"""inference: asks a model behind an OpenAI-compatible API. The output is its text, or with response_schema the value it answered.

Targets are tried in order; one that failed lately is passed over while another is there. Tools that the model asks for are called
here, all of one answer at the same time, and their answers sent back, until it answers in words.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec

from data_plane.steps.base import (
    MAX_SHOWN_CHARS,
    RETRYABLE_STATUSES,
    CannotCompileError,
    Clients,
    Compiling,
    Runner,
    StepContext,
    StepError,
    Variables,
    cause_of,
    read_body,
    retry_after,
)
from data_plane.steps.sse import read_stream
from data_plane.steps.tool_call import ToolCaller, compile_tool
from pointsman.expressions import ExpressionError, compile_template
from pointsman.schemas import Schema, compile_schema
from pointsman.v1.config_pb2 import Inference, ModelTarget, Step, Tool
from pointsman.values import NUL_REFUSED, decode_json, from_struct

DEFAULT_TOOL_CALLS = 8
# A target with so many failures in a row is passed over for so long, unless no other is left.
BREAKER_FAILURES = 3
BREAKER_SECONDS = 10.0

Message = dict[str, Any]


def compile_step(compiling: Compiling, step: Step) -> Runner:
    """A conversation with the model, from messages to an output."""
    conversation = _Conversation(compiling, step.inference)
    return conversation.run


@dataclass(slots=True)
class _Target:
    """One server of a model. Its failures are remembered as long as the release is loaded."""

    url: str
    model: str
    headers: dict[str, str]
    failures: int = 0
    passed_over_until: float = 0.0

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.failures >= BREAKER_FAILURES:
            self.passed_over_until = now + BREAKER_SECONDS


class _Conversation:
    """One inference step, compiled."""

    def __init__(self, compiling: Compiling, inference: Inference) -> None:
        model = compiling.models.get(inference.model)
        if model is None:
            raise CannotCompileError(f"there is no model {inference.model!r}")
        self._name = model.name
        self._targets = [_target(target, model.name, compiling) for target in model.targets]
        self._system = compile_template(inference.system) if inference.system else None
        self._prompt = compile_template(inference.prompt) if inference.prompt else None
        self._tools: dict[str, ToolCaller] = {}
        self._max_tool_calls = inference.max_tool_calls or DEFAULT_TOOL_CALLS
        self._schema: Schema | None = None
        self._parameters = self._fixed_parameters(compiling, inference)

    def _fixed_parameters(self, compiling: Compiling, inference: Inference) -> dict[str, Any]:
        """What every request of this step has."""
        parameters: dict[str, Any] = {}
        if inference.HasField("temperature"):
            parameters["temperature"] = inference.temperature
        if inference.HasField("max_tokens"):
            parameters["max_tokens"] = inference.max_tokens
        if inference.HasField("response_schema"):
            self._schema = compile_schema(inference.response_schema)
            named = {"name": "answer", "schema": self._schema.source, "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": named}
        described = []
        for name in inference.tools:
            tool = compiling.tools.get(name)
            if tool is None:
                raise CannotCompileError(f"there is no tool {name!r}")
            self._tools[name] = compile_tool(tool, compiling)
            described.append(_described(tool))
        if described:
            parameters["tools"] = described
        return parameters

    async def run(self, variables: Variables, context: StepContext) -> Any:
        """The output. Raises StepError."""
        messages = self._messages(variables)
        text = await self._talk(messages, variables, context)
        if self._schema is None:
            return text
        found, problem = _parsed(text, self._schema)
        if problem:
            # One repair: the model sees what was wrong with its own answer.
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": f"That was not accepted: {problem}. Answer again."},
            ]
            found, problem = _parsed(await self._talk(messages, variables, context), self._schema)
        if problem:
            raise StepError(f"model {self._name!r} did not answer as response_schema asks, twice: {problem}")
        return found

    def _messages(self, variables: Variables) -> list[Message]:
        try:
            messages = [{"role": "system", "content": self._system.render(variables)}] if self._system else []
            if self._prompt:
                return [*messages, {"role": "user", "content": self._prompt.render(variables)}]
        except ExpressionError as error:
            raise StepError(str(error)) from None
        history = variables["input"].get("messages")
        if not isinstance(history, list) or not history:
            raise StepError("it has no prompt, and the input has no messages: a list of {role, content}")
        return messages + history

    async def _talk(self, messages: list[Message], variables: Variables, context: StepContext) -> str:
        """Asks until the model answers in words, calling the tools that it asks for."""
        calls = 0
        while True:
            message = await self._ask(messages, context)
            wanted = message.get("tool_calls") or []
            if not wanted:
                content = message.get("content")
                if not isinstance(content, str):
                    raise StepError(f"model {self._name!r} answered neither text nor tool calls")
                if "\0" in content:
                    raise StepError(f"model {self._name!r} answered text that {NUL_REFUSED}")
                return content
            calls += len(wanted)
            if calls > self._max_tool_calls:
                raise StepError(f"model {self._name!r} asked for more than {self._max_tool_calls} tool calls (max_tool_calls)")
            messages.append({"role": "assistant", "content": message.get("content"), "tool_calls": wanted})
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._call_tool(call, variables, context.clients)) for call in wanted]
            messages += [task.result() for task in tasks]

    async def _call_tool(self, call: Message, variables: Variables, clients: Clients) -> Message:
        """The answer to one tool call. What goes wrong is told to the model, which may do something else."""
        function = call["function"]
        name = str(function.get("name"))
        caller = self._tools.get(name)
        if caller is None:
            return _told(call, f"error: there is no tool {name!r}; there are {', '.join(self._tools)}")
        try:
            arguments = msgspec.json.decode(str(function.get("arguments") or "{}"))
            answer = await caller(arguments, variables, clients)
            content = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
        except msgspec.DecodeError as error:
            content = f"error: the arguments are not JSON: {error}"
        except StepError as error:
            content = f"error: {error}"
        return _told(call, content)

    async def _ask(self, messages: list[Message], context: StepContext) -> Message:
        """One answer, from the first target that gives one. Raises the last target's StepError."""
        last: StepError | None = None
        now = time.monotonic()
        usable = [target for target in self._targets if target.passed_over_until <= now] or self._targets
        for target in usable:
            try:
                message = await self._ask_target(target, messages, context)
            except StepError as error:
                target.failed(time.monotonic())
                last = error
                if not error.retryable:
                    raise
            else:
                target.succeeded()
                return message
        assert last is not None, "a model has at least one target"
        raise last

    async def _ask_target(self, target: _Target, messages: list[Message], context: StepContext) -> Message:
        # A value by schema is not told as it is written: it may be refused and written anew.
        delta = context.delta if self._schema is None else None
        body: dict[str, Any] = {"model": target.model, "messages": messages, **self._parameters}
        if delta is not None:
            body["stream"] = True
        who, http = f"model {self._name!r}", context.clients.http
        try:
            request = http.build_request("POST", target.url, headers=target.headers, content=msgspec.json.encode(body))
            response = await http.send(request, stream=True)
        except httpx2.InvalidURL as error:
            raise StepError(f"{who}: its base_url is not a URL: {error}") from None
        except httpx2.TransportError as error:
            raise StepError(f"{who} cannot be reached: {cause_of(error)}", retryable=True) from None
        try:
            if delta is not None and response.is_success and "event-stream" in response.headers.get("content-type", ""):
                return await read_stream(response, who, delta)
            answer = await read_body(response, who, retryable=True)
        finally:
            await response.aclose()
        if not response.is_success:
            shown = answer.decode(errors="replace")[:MAX_SHOWN_CHARS].strip()
            retryable = response.status_code in RETRYABLE_STATUSES
            raise StepError(
                f"{who} answered {response.status_code}: {shown}", retryable=retryable, retry_after_seconds=retry_after(response)
            )
        message = _message(who, answer)
        if delta is not None and isinstance(message.get("content"), str):
            delta(message["content"])
        return message


def _message(who: str, body: bytes) -> Message:
    try:
        answer = msgspec.json.decode(body)
        message = answer["choices"][0]["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
        raise StepError(f"{who} did not answer as the OpenAI API does: {type(error).__name__}", retryable=True) from None
    calls = message.get("tool_calls") or [] if isinstance(message, dict) else None
    if calls is None or not all(isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls):
        raise StepError(f"{who} did not answer as the OpenAI API does: the message is not one", retryable=True)
    found: Message = message
    return found


def _told(call: Message, content: str) -> Message:
    """The message that answers a tool call."""
    return {"role": "tool", "tool_call_id": str(call.get("id", "")), "content": content}


def _target(target: ModelTarget, name: str, compiling: Compiling) -> _Target:
    headers = {key: compiling.secrets.resolve(value) for key, value in target.headers.items()}
    if target.api_key:
        headers["authorization"] = f"Bearer {compiling.secrets.resolve(target.api_key)}"
    headers.setdefault("content-type", "application/json")
    return _Target(url=target.base_url.rstrip("/") + "/chat/completions", model=target.model or name, headers=headers)


def _described(tool: Tool) -> dict[str, Any]:
    """A tool as models are told of it."""
    schema = from_struct(tool.input_schema) if tool.HasField("input_schema") else {"type": "object"}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": schema}}


def _parsed(text: str, schema: Schema) -> tuple[Any, str]:
    """The value and an empty text, or what is wrong with it."""
    try:
        found = decode_json(text.encode())
    except ValueError as error:
        return None, f"it {error}"
    return found, "; ".join(map(str, schema.violations(found)))
