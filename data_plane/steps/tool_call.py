"""tool_call: calls a tool with arguments from an expression. The output is its answer."""

from __future__ import annotations

from typing import Any

from data_plane.steps.base import Compiling, Runner, StepContext, StepError, Variables
from data_plane.steps.tools import compile_tool
from pointsman.expressions import ExpressionError, compile_expression
from pointsman.v1.config_pb2 import Step


def compile_step(compiling: Compiling, step: Step) -> Runner:
    """Waits for the tool."""
    call = compile_tool(step.tool_call.tool, compiling)
    arguments = compile_expression(step.tool_call.arguments) if step.tool_call.arguments else None

    async def run(variables: Variables, context: StepContext) -> Any:
        try:
            given = arguments.evaluate(variables) if arguments else {}
        except ExpressionError as error:
            raise StepError(f"its arguments: {error}") from None
        context.given = given
        return await call(given, variables, context.clients)

    return run
