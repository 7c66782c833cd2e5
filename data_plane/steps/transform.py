"""transform: computes a value by an expression."""

from __future__ import annotations

from typing import Any

from data_plane.steps.base import Compiling, Runner, StepContext, StepError, Variables
from pointsman.expressions import ExpressionError, compile_expression
from pointsman.v1.config_pb2 import Step


def compile_step(_compiling: Compiling, step: Step) -> Runner:
    """Needs no waiting."""
    evaluate = compile_expression(step.transform.expression).evaluate

    def run(variables: Variables, _context: StepContext) -> Any:
        try:
            return evaluate(variables)
        except ExpressionError as error:
            raise StepError(str(error)) from None

    return run
