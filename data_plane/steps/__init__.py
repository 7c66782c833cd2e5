"""The kinds of steps, one file each. A new kind is one file here, with its line in COMPILERS; one message in config.proto, whose fields
say what they hold (holds.proto), so that app files are checked; and one section of PIPELINES.md. Tests tell what is missing.

A file has a `compile_step(compiling, step)` that does once what can be done once and returns a Runner. A Runner that needs no
waiting is a plain function; one that waits returns an awaitable. Either gives the step's output, a plain value.
"""

from __future__ import annotations

from collections.abc import Callable

from data_plane.steps import inference, tool_call, transform
from data_plane.steps.base import CannotCompileError, Compiling, Runner, StepError
from pointsman.v1.config_pb2 import Step

COMPILERS: dict[str, Callable[[Compiling, Step], Runner]] = {
    "inference": inference.compile_step,
    "tool_call": tool_call.compile_step,
    "transform": transform.compile_step,
}

__all__ = ["COMPILERS", "CannotCompileError", "Compiling", "Runner", "StepError"]
