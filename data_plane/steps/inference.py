"""inference: asks a model behind an OpenAI-compatible API. The output is its text, or with response_schema the value it answered.

Targets are tried in order; one that failed lately is passed over while another is there. Tools that the model asks for are called
here, all of one answer at the same time, and their answers sent back, until it answers in words.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from data_plane.steps.base import CannotCompileError, Compiling, Runner, StepContext, StepError, Variables
from data_plane.steps.completions import Message, ToolCall, tool_call
from data_plane.steps.targets import Targets
from data_plane.steps.tools import CompiledTool, compile_tool
from pointsman.expressions import ExpressionError, compile_template
from pointsman.schemas import Schema, compile_schema
from pointsman.v1.config_pb2 import Inference, Step, Tool
from pointsman.values import NUL_REFUSED, decode_json, from_struct, refusal

DEFAULT_TOOL_CALLS = 8

Messages = list[dict[str, Any]]


def compile_step(compiling: Compiling, step: Step) -> Runner:
    """A conversation with the model, from messages to an output."""
    conversation = _Conversation(compiling, step.inference)
    return conversation.run


class _Attempt(msgspec.Struct):
    """What one attempt of a step has done so far."""

    variables: Variables
    context: StepContext
    tool_calls: int = 0
    repeatable: bool = True
    """Whether another attempt would do no harm: nothing was told to a listener, and no tool called that is not retry_safe."""

    def tell(self, text: str) -> None:
        """Text, as the model writes it."""
        assert self.context.delta is not None, "only called when somebody listens"
        self.repeatable = False
        self.context.delta(text)


class _Conversation:
    """One inference step, compiled."""

    def __init__(self, compiling: Compiling, inference: Inference) -> None:
        model = compiling.models.get(inference.model)
        if model is None:
            raise CannotCompileError(f"there is no model {inference.model!r}")
        self._who = f"model {model.name!r}"
        self._excerpt = compiling.excerpt
        self._targets = Targets.of(model, compiling)
        self._system = compile_template(inference.system) if inference.system else None
        self._prompt = compile_template(inference.prompt) if inference.prompt else None
        self._tools: dict[str, CompiledTool] = {}
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
            named = {"name": "answer", "schema": _in_order(self._schema.source), "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": named}
        described = []
        for name in inference.tools:
            tool = compiling.tools.get(name)
            if tool is None:
                raise CannotCompileError(f"there is no tool {name!r}")
            self._tools[name] = compile_tool(name, compiling)
            described.append(_described(tool))
        if described:
            parameters["tools"] = described
        return parameters

    async def run(self, variables: Variables, context: StepContext) -> Any:
        """The output. Raises StepError."""
        attempt = _Attempt(variables, context)
        try:
            return await self._answer(attempt)
        except StepError as error:
            error.retryable = error.retryable and attempt.repeatable
            raise

    async def _answer(self, attempt: _Attempt) -> Any:
        messages = attempt.context.given = self._messages(attempt.variables)
        text = await self._talk(messages, attempt)
        if self._schema is None:
            return text
        found, problem = _parsed(text, self._schema)
        if problem:
            # One repair: the model sees what was wrong with its own answer.
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": f"That was not accepted: {problem}. Answer again."},
            ]
            found, problem = _parsed(await self._talk(messages, attempt), self._schema)
        if problem:
            raise StepError(f"{self._who} did not answer as response_schema asks, twice: {problem}")
        return found

    def _messages(self, variables: Variables) -> Messages:
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

    async def _talk(self, messages: Messages, attempt: _Attempt) -> str:
        """Asks until the model answers in words, calling the tools that it asks for."""
        # A value by schema is not told as it is written: it may be refused and written anew.
        delta = attempt.tell if attempt.context.delta is not None and self._schema is None else None
        while True:
            message = await self._targets.ask({"messages": messages, **self._parameters}, attempt.context, delta)
            wanted = message.tool_calls or []
            if not wanted:
                return self._words(message)
            attempt.tool_calls += len(wanted)
            if attempt.tool_calls > self._max_tool_calls:
                raise StepError(f"{self._who} asked for more than {self._max_tool_calls} tool calls (max_tool_calls)")
            messages.append({"role": "assistant", "content": message.content, "tool_calls": wanted})
            understood = [tool_call(self._who, call) for call in wanted]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._told(call, attempt)) for call in understood]
            messages += [task.result() for task in tasks]

    def _words(self, message: Message) -> str:
        # A stream that refuses has an empty text.
        if message.refusal and not message.content:
            raise StepError(f"{self._who} refused to answer: {self._excerpt(message.refusal)}")
        if message.content is None:
            raise StepError(f"{self._who} answered neither text nor tool calls")
        if "\0" in message.content:
            raise StepError(f"{self._who} answered text that {NUL_REFUSED}")
        return message.content

    async def _told(self, call: ToolCall, attempt: _Attempt) -> dict[str, Any]:
        """The answer to one tool call. What goes wrong is told to the model, which may do something else."""
        try:
            answer = await self._call_tool(call, attempt)
            content = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
        except StepError as error:
            content = f"error: {error}"
        return {"role": "tool", "tool_call_id": call.id or "", "content": content}

    async def _call_tool(self, call: ToolCall, attempt: _Attempt) -> Any:
        tool = self._tools.get(call.function.name)
        if tool is None:
            raise StepError(f"there is no tool {call.function.name!r}; there are {', '.join(self._tools) or 'none'}")
        arguments = _arguments(call.function.arguments)
        assert attempt.context.usage is not None, "the model that asks for it was counted"
        attempt.context.usage.tool_calls += 1
        attempt.repeatable = attempt.repeatable and tool.retry_safe
        return await tool(arguments, attempt.variables, attempt.context.clients)


def _arguments(told: str | dict[str, Any] | None) -> Any:
    """Raises StepError."""
    if isinstance(told, str):
        try:
            return decode_json(told.encode()) if told.strip() else {}
        except ValueError as error:
            raise StepError(f"the text of the arguments {error}") from None
    problem = refusal(told)
    if problem:
        raise StepError(f"the value of the arguments {problem}")
    return told or {}


def _described(tool: Tool) -> dict[str, Any]:
    """A tool as models are told of it."""
    schema = _in_order(from_struct(tool.input_schema)) if tool.HasField("input_schema") else {"type": "object"}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": schema}}


def _in_order(schema: Any) -> Any:
    """With `properties` in the order of `required`, the others behind: models write fields in that order, and a Struct keeps none."""
    if isinstance(schema, list):
        return [_in_order(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _in_order(schema[key]) for key in sorted(schema)}
    properties, required = found.get("properties"), found.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        first = [name for name in required if isinstance(name, str) and name in properties]
        found["properties"] = {name: properties[name] for name in dict.fromkeys([*first, *properties])}
    return found


def _parsed(text: str, schema: Schema) -> tuple[Any, str]:
    """The value and an empty text, or what is wrong with it."""
    try:
        found = decode_json(text.encode())
    except ValueError as error:
        return None, f"it {error}"
    return found, "; ".join(map(str, schema.violations(found)))
