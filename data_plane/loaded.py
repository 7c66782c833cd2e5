"""A release as a gateway holds it: verified, parsed, compiled, frozen.

Compiling happens once, on a worker thread; a trigger then only calls what was compiled. A release that cannot be compiled here is
told back to the control plane with every cause.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError

from data_plane.secrets import SecretMissingError, Secrets
from data_plane.steps import COMPILERS, CannotCompileError, Compiling, Runner
from pointsman.expressions import Expression, ExpressionError, compile_expression
from pointsman.rules import endpoint_path
from pointsman.schemas import Schema, compile_schema
from pointsman.v1.config_pb2 import AppConfig, Endpoint, Pipeline, Stage, Step
from pointsman.values import seconds_of

T = TypeVar("T")
DEFAULT_ENDPOINT_SECONDS = 60.0
DEFAULT_STEP_SECONDS = 30.0


class ReleaseUnusableError(Exception):
    """This gateway cannot run the release; `causes` say why, for a person."""

    def __init__(self, causes: list[str]) -> None:
        super().__init__("; ".join(causes))
        self.causes = causes


def _cut(text: str, chars: int) -> str:
    return text[:chars]


class LoadedStep(msgspec.Struct, frozen=True):
    """One compiled step. `kind` is the name of its kind in config.proto."""

    name: str
    kind: str
    run: Runner
    when: Expression | None
    timeout_seconds: float
    max_retries: int
    continue_on_error: bool


class LoadedStage(msgspec.Struct, frozen=True):
    """One compiled stage."""

    name: str
    parallel: bool
    gate: Expression | None
    steps: tuple[LoadedStep, ...]


class LoadedPipeline(msgspec.Struct, frozen=True):
    """One compiled pipeline. Without an output expression the answer is the output of the last step that succeeded."""

    name: str
    stages: tuple[LoadedStage, ...]
    output: Expression | None


class LoadedEndpoint(msgspec.Struct, frozen=True):
    """One compiled endpoint. `schema` is None when any object is taken."""

    name: str
    path: str
    method: str
    timeout_seconds: float
    max_concurrency: int
    schema: Schema | None
    pipeline: LoadedPipeline
    excerpt: Callable[[str, int], str] = _cut
    """The beginning of a text, so many characters, without the values of secrets."""


class LoadedRelease(msgspec.Struct, frozen=True):
    """One compiled release; `endpoints` by path without a leading slash."""

    digest: str
    size_bytes: int
    endpoints: Mapping[str, LoadedEndpoint]


def compile_release(digest: str, snapshot: bytes, secrets: Secrets) -> LoadedRelease:
    """Verifies and compiles the bytes of a snapshot. CPU work of up to seconds: not for the event loop.

    Raises:
        ReleaseUnusableError: when the bytes do not hash to the digest, or anything in them cannot be run here.
    """
    actual = "sha256:" + hashlib.sha256(snapshot).hexdigest()
    if actual != digest:
        raise ReleaseUnusableError([f"its bytes hash to {actual}, not to {digest}"])
    try:
        config = AppConfig.FromString(snapshot)
    except DecodeError as error:
        raise ReleaseUnusableError(["its bytes are not an AppConfig"]) from error
    compiler = _Compiler(config, secrets)
    pipelines = {pipeline.name: compiler.pipeline(f"pipelines[{i}]", pipeline) for i, pipeline in enumerate(config.pipelines)}
    endpoints = {}
    for index, endpoint in enumerate(config.endpoints):
        loaded = compiler.endpoint(f"endpoints[{index}]", endpoint, pipelines)
        if loaded is not None:
            endpoints[loaded.path] = loaded
    if compiler.causes:
        raise ReleaseUnusableError(compiler.causes)
    return LoadedRelease(digest=digest, size_bytes=len(snapshot), endpoints=endpoints)


class _Compiler:
    """Compiles the parts of one config and collects what goes wrong, so that all causes are told at once."""

    def __init__(self, config: AppConfig, secrets: Secrets) -> None:
        self.causes: list[str] = []
        self._compiling = Compiling(
            secrets=secrets, tools={tool.name: tool for tool in config.tools}, models={model.name: model for model in config.models}
        )

    def endpoint(self, path: str, endpoint: Endpoint, pipelines: Mapping[str, LoadedPipeline]) -> LoadedEndpoint | None:
        schema = self._try(f"{path}.input_schema", lambda: compile_schema(endpoint.input_schema))
        pipeline = pipelines.get(endpoint.pipeline)
        if pipeline is None:
            self.causes.append(f"{path}.pipeline: there is no pipeline {endpoint.pipeline!r}")
            return None
        return LoadedEndpoint(
            name=endpoint.name,
            path=endpoint_path(endpoint),
            method=endpoint.method or "POST",
            timeout_seconds=_seconds(endpoint, DEFAULT_ENDPOINT_SECONDS),
            max_concurrency=endpoint.max_concurrency,
            schema=schema if endpoint.HasField("input_schema") else None,
            pipeline=pipeline,
            excerpt=self._compiling.secrets.excerpt,
        )

    def pipeline(self, path: str, pipeline: Pipeline) -> LoadedPipeline:
        stages = [self._stage(f"{path}.stages[{i}]", stage) for i, stage in enumerate(pipeline.stages)]
        return LoadedPipeline(name=pipeline.name, stages=tuple(stages), output=self._expression(f"{path}.output", pipeline.output))

    def _stage(self, path: str, stage: Stage) -> LoadedStage:
        steps = [self._step(f"{path}.steps[{i}]", step) for i, step in enumerate(stage.steps)]
        return LoadedStage(
            name=stage.name,
            parallel=stage.mode == Stage.PARALLEL,
            gate=self._expression(f"{path}.gate", stage.gate),
            steps=tuple(step for step in steps if step is not None),
        )

    def _step(self, path: str, step: Step) -> LoadedStep | None:
        kind = step.WhichOneof("kind") or ""
        compile_kind = COMPILERS.get(kind)
        if compile_kind is None:
            self.causes.append(f"{path}: this gateway does not know steps of the kind {kind or 'that is absent'!r}")
            return None
        run = self._try(path, lambda: compile_kind(self._compiling, step))
        if run is None:
            return None
        return LoadedStep(
            name=step.name,
            kind=kind,
            run=run,
            when=self._expression(f"{path}.when", step.when),
            timeout_seconds=_seconds(step, DEFAULT_STEP_SECONDS),
            max_retries=step.max_retries,
            continue_on_error=step.continue_on_error,
        )

    def _expression(self, path: str, source: str) -> Expression | None:
        return self._try(path, lambda: compile_expression(source)) if source else None

    def _try(self, path: str, compile_it: Callable[[], T]) -> T | None:
        try:
            return compile_it()
        except (ExpressionError, SecretMissingError, CannotCompileError, ValueError) as error:
            self.causes.append(f"{path}: {error}")
            return None


def _seconds(message: Endpoint | Step, default: float) -> float:
    return seconds_of(message.timeout) if message.HasField("timeout") else default
