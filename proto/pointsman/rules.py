"""What a request and a config must be: all violations at once, each with its path as the author wrote it.

The rules of single fields stand in the .proto files (protovalidate); here are the words for people, and everything that needs more
than one field: unique names, references, expressions, templates, schemas.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from protovalidate import Validator

from pointsman import schemas, upstreams
from pointsman.errors import Violation, did_you_mean
from pointsman.expressions import TOOL_VARIABLES, VARIABLES, ExpressionError, compile_expression, compile_template
from pointsman.sound_requests import SoundRequests
from pointsman.upstreams import HEADER_NAME, SECRET_MISPLACED, SECRET_QUOTED, SECRET_REFERENCE, SECRET_START, with_secrets
from pointsman.v1.config_pb2 import AppConfig, Endpoint, Pipeline, Step, Tool
from pointsman.v1.holds_pb2 import Holds

MIB = 1024 * 1024
MAX_SNAPSHOT_BYTES = 8 * MIB
MAX_SHOWN_CHARS = 80

_ID = "a small letter, then small letters, digits and inner hyphens, at most 63 characters"
# What a pattern of the .proto files asks for, in words. A test knows that none is missing.
PATTERNS = {
    "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$": _ID,
    "^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$": "letters, digits and . _ + -, the first a letter or digit, at most 128 characters",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$": "letters, digits and . _ -, the first a letter or digit, at most 128 characters",
    "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$": "letters, digits and _ . -, the first no . or -, at most 128 characters",
    "^/?[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)*$": "a path such as chat or orders/status, of letters, digits and _ . ~ -",
    "^[A-Za-z0-9_][A-Za-z0-9 _./-]{0,127}$": "letters, digits, spaces and _ . / -, the first a letter, digit or _, at most 128 characters",
    "^[A-Za-z_][A-Za-z0-9_-]{0,63}$": "a letter or _, then letters, digits, _ and -, at most 64 characters",
    "^[A-Za-z0-9_-]{1,64}$": "letters, digits, _ and -, at most 64 characters",
    "^[A-Za-z0-9][A-Za-z0-9:_./-]{0,127}$": "letters, digits and : _ . / -, the first a letter or digit, at most 128 characters",
    HEADER_NAME: "a header name (RFC 9110)",
    "^sha256:[0-9a-f]{64}$": "sha256: and 64 hex digits",
}
_validator = Validator()
_sound = SoundRequests()
MAX_NANOS = 999_999_999
# Seconds from and to, and the least nanoseconds.
_TIMES = {
    "google.protobuf.Duration": (-315_576_000_000, 315_576_000_000, -MAX_NANOS),
    "google.protobuf.Timestamp": (-62_135_596_800, 253_402_300_799, 0),
}
_CHECKED_ELSEWHERE = frozenset({"pointsman.v1.AppConfig", "pointsman.v1.Execution"})
# A gateway's words on why it cannot run a release may quote anything of it, and to refuse them would end its stream.
_MAY_HAVE_NUL = _CHECKED_ELSEWHERE | {"pointsman.v1.SyncRequest.Rejection"}


def check_request(message: Message) -> list[Violation]:
    """Every rule that a request breaks. Paths inside an AppConfig have no prefix: they are those of the author's file."""
    key = _sound.key_of(message)
    if key is not None and _sound.has(message, key):
        return []
    violations = [*_field_rules(message), *_nul_in(message)]
    if key is not None and not violations:
        _sound.add(message, key)
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.full_name == AppConfig.DESCRIPTOR.full_name:
            violations += check_config(value)
    return violations


def check_config(config: AppConfig) -> list[Violation]:
    """Every rule that a config breaks, in the order of the config."""
    violations = _field_rules(config)
    size = config.ByteSize()
    if size > MAX_SNAPSHOT_BYTES:
        violations.append(Violation("", f"the config has {size} bytes; at most {MAX_SNAPSHOT_BYTES} are allowed"))
    names = _Names(config)
    violations += _unique(config)
    for index, endpoint in enumerate(config.endpoints):
        violations += _endpoint(f"endpoints[{index}]", endpoint, names)
    for index, pipeline in enumerate(config.pipelines):
        violations += _pipeline(f"pipelines[{index}]", pipeline, names)
    for index, tool in enumerate(config.tools):
        violations += _tool(f"tools[{index}]", tool)
    for index, model in enumerate(config.models):
        for position, target in enumerate(model.targets):
            path = f"models[{index}].targets[{position}]"
            violations += upstreams.url_violations(f"{path}.base_url", target.base_url, is_prefix=True)
            violations += upstreams.header_violations(f"{path}.headers", target.headers, names=PATTERNS[HEADER_NAME])
    return violations


def endpoint_path(endpoint: Endpoint) -> str:
    """The path that callers use: without a leading slash; the name when no path is given."""
    return (endpoint.path or endpoint.name).removeprefix("/")


class _Names:
    """What references may name."""

    def __init__(self, config: AppConfig) -> None:
        self.pipelines = [pipeline.name for pipeline in config.pipelines]
        self.tools = [tool.name for tool in config.tools]
        self.models = [model.name for model in config.models]
        self.steps_of_tools = {tool.name: _steps_of_tool(tool) for tool in config.tools}


def _field_rules(message: Message) -> list[Violation]:
    found = []
    for violation in _validator.collect_violations(message):
        field = violation.proto.field
        path = ".".join(_element(element) for element in field.elements) if field else ""
        rule = violation.proto.rule_id
        found.append(Violation(path.removesuffix(".kind"), _words(rule, violation)))
    return [*found, *_times(message)]


def _nul_in(message: Message, path: str = "") -> Iterator[Violation]:
    """Texts that PostgreSQL does not take. What is kept as bytes, as configs and executions are, or not at all, may have it."""
    for field, value in message.ListFields():
        at = f"{path}.{field.name}" if path else field.name
        kind = field.message_type
        if kind is not None:
            if kind.file.package.startswith("pointsman") and kind.full_name not in _MAY_HAVE_NUL and not kind.GetOptions().map_entry:
                for index, item in enumerate(value) if field.is_repeated else [(0, value)]:
                    yield from _nul_in(item, f"{at}[{index}]" if field.is_repeated else at)
        elif field.type == FieldDescriptor.TYPE_STRING and any("\0" in text for text in (value if field.is_repeated else [value])):
            yield Violation(at, "has the character NUL (U+0000), which no store takes; leave it out")


@functools.cache
def _timed(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields that are a Duration or a Timestamp, or have one in them.

    A config is checked by itself; executions come by the thousand, and are read without protobuf's conversions.
    """
    found = []
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or kind.full_name in _CHECKED_ELSEWHERE or kind.GetOptions().map_entry:
            continue
        if kind.full_name in _TIMES or (kind.file.package != "google.protobuf" and _timed(kind)):
            found.append(field)
    return tuple(found)


def _times(message: Message, path: str = "") -> Iterator[Violation]:
    """Those that are none (duration.proto, timestamp.proto): all conversions of protobuf raise for them, and no rule of a field sees it."""
    for field in _timed(message.DESCRIPTOR):
        at = f"{path}.{field.name}" if path else field.name
        if field.is_repeated:
            for index, item in enumerate(getattr(message, field.name)):
                yield from _times(item, f"{at}[{index}]")
        elif message.HasField(field.name):
            value = getattr(message, field.name)
            bounds = _TIMES.get(value.DESCRIPTOR.full_name)
            if bounds is None:
                yield from _times(value, at)
                continue
            least, most, least_nanos = bounds
            one_sign = least_nanos == 0 or value.seconds * value.nanos >= 0
            if not (least <= value.seconds <= most and least_nanos <= value.nanos <= MAX_NANOS and one_sign):
                what = "duration" if least_nanos else "moment"
                yield Violation(at, f"is no {what} that protobuf has: {value.seconds} seconds and {value.nanos} nanoseconds")


def _element(element: Any) -> str:
    name = str(element.field_name)
    if element.subscript is None:
        return name
    value = element.subscript.value
    return f'{name}["{value}"]' if isinstance(value, str) else f"{name}[{value}]"


def _words(rule: str, violation: Any) -> str:
    """The value and what is allowed, in words."""
    value = violation.field_value
    if rule == "required":
        return "absent; one of its kinds must be given"
    if rule == "string.pattern":
        wanted = PATTERNS[violation.rule_value]
        return f"{_shown(value)} is not allowed; use {wanted}" if value else f"absent; use {wanted}"
    if rule == "string.in":
        return f"{_shown(value)} is not allowed; use {', '.join(str(v) for v in violation.rule_value if v)}"
    if rule == "string.min_len":
        return "absent, and needed"
    if rule == "string.uuid":
        return f"{_shown(value)} is not a UUID"
    if isinstance(value, str | bytes) and rule.startswith(("string.max", "bytes.max")):
        return f"has {len(value.encode()) if isinstance(value, str) else len(value)} bytes; {violation.proto.message}"
    shown = f"{_shown(value)}: " if isinstance(value, str | bytes | int | float) else ""
    return shown + str(violation.proto.message)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _unique(config: AppConfig) -> Iterator[Violation]:
    for kind in ("endpoints", "pipelines", "tools", "models"):
        yield from _twice(kind, [item.name for item in getattr(config, kind)], "name")
    yield from _twice("endpoints", [endpoint_path(endpoint) for endpoint in config.endpoints], "path")


def _twice(path: str, values: Sequence[str], field: str) -> Iterator[Violation]:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value and value in first:
            yield Violation(f"{path}[{index}].{field}", f"{value!r} is the {field} of {path}[{first[value]}] already; choose another")
        first.setdefault(value, index)


def _reference(path: str, name: str, known: Sequence[str], what: str) -> Iterator[Violation]:
    if name and name not in known:
        there = did_you_mean(name, known) or (f" There are {', '.join(sorted(known)[:5])}." if known else f" There are no {what}s.")
        yield Violation(path, f"there is no {what} {name!r}.{there}")


def _endpoint(path: str, endpoint: Endpoint, names: _Names) -> Iterator[Violation]:
    yield from _reference(f"{path}.pipeline", endpoint.pipeline, names.pipelines, "pipeline")
    if endpoint.HasField("input_schema"):
        yield from _schema(f"{path}.input_schema", endpoint.input_schema)


def _pipeline(path: str, pipeline: Pipeline, names: _Names) -> Iterator[Violation]:
    yield from _twice(f"{path}.stages", [stage.name for stage in pipeline.stages], "name")
    all_steps = {step.name for stage in pipeline.stages for step in stage.steps}
    seen: set[str] = set()
    for position, stage in enumerate(pipeline.stages):
        at = f"{path}.stages[{position}]"
        yield from _expression(f"{at}.gate", stage.gate, seen, all_steps)
        before = set(seen)
        for index, step in enumerate(stage.steps):
            if step.name in seen:
                yield Violation(
                    f"{at}.steps[{index}].name", f"{step.name!r} is the name of an earlier step of the pipeline; choose another"
                )
            yield from _step(f"{at}.steps[{index}]", step, names, before if stage.mode == stage.PARALLEL else seen, all_steps)
            seen.add(step.name)
    yield from _expression(f"{path}.output", pipeline.output, seen, all_steps)


def _step(path: str, step: Step, names: _Names, seen: set[str], all_steps: set[str]) -> Iterator[Violation]:
    yield from _expression(f"{path}.when", step.when, seen, all_steps)
    kind = step.WhichOneof("kind")
    if kind is None:
        return
    message = getattr(step, kind)
    for field, value in message.ListFields():
        at, holds = f"{path}.{kind}.{field.name}", field.GetOptions().Extensions[Holds.kind]
        if holds == Holds.JSON_SCHEMA:
            yield from _schema(at, value)
        for index, text in enumerate(value) if field.is_repeated else [(None, value)]:
            yield from _held(at if index is None else f"{at}[{index}]", text, holds, names, seen, all_steps)


def _held(path: str, text: str, holds: int, names: _Names, seen: set[str], all_steps: set[str]) -> Iterator[Violation]:
    """What is wrong with a text of a step, by what its field is said to hold (holds.proto)."""
    match holds:
        case Holds.EXPRESSION:
            yield from _expression(path, text, seen, all_steps)
        case Holds.TEMPLATE:
            yield from _template(path, text, VARIABLES, seen, all_steps)
        case Holds.MODEL:
            yield from _reference(path, text, names.models, "model")
        case Holds.TOOL:
            yield from _reference(path, text, names.tools, "tool")
            yield from _steps_by_tool(path, text, names, seen, all_steps)


def _tool(path: str, tool: Tool) -> Iterator[Violation]:
    if tool.HasField("input_schema"):
        yield from _schema(f"{path}.input_schema", tool.input_schema)
    if tool.WhichOneof("kind") == "http":
        yield from upstreams.url_violations(f"{path}.http.url", tool.http.url, is_template=True)
        yield from _template(f"{path}.http.url", tool.http.url, TOOL_VARIABLES)
        yield from _template(f"{path}.http.body", tool.http.body, TOOL_VARIABLES)
        for name, value in sorted(tool.http.headers.items()):
            yield from _header_template(f'{path}.http.headers["{name}"]', value)
        yield from upstreams.header_violations(f"{path}.http.headers", tool.http.headers)
    elif tool.WhichOneof("kind") == "mcp":
        yield from upstreams.url_violations(f"{path}.mcp.url", tool.mcp.url)
        yield from upstreams.header_violations(f"{path}.mcp.headers", tool.mcp.headers, names=PATTERNS[HEADER_NAME])


def _header_template(path: str, value: str) -> Iterator[Violation]:
    try:
        compile_template(SECRET_REFERENCE.sub("", value), variables=TOOL_VARIABLES)
        source, secrets = with_secrets(value)
        template = compile_template(source, variables=(*TOOL_VARIABLES, *secrets))
    except ExpressionError as error:
        yield Violation(path, f"{_shown(value)}: {error}")
        return
    if not template.variables.issuperset(secrets):
        yield Violation(path, f"{_shown(value)} {SECRET_QUOTED}")


def _steps_of_tool(tool: Tool) -> frozenset[str]:
    """Names of the steps that its templates refer to, as far as they compile."""
    found: set[str] = set()
    for source in (tool.http.url, tool.http.body, *(SECRET_REFERENCE.sub("", value) for value in tool.http.headers.values())):
        with contextlib.suppress(ExpressionError):
            found |= compile_template(source, variables=TOOL_VARIABLES).steps
    return frozenset(found)


def _steps_by_tool(path: str, tool: str, names: _Names, seen: Iterable[str], all_steps: Iterable[str]) -> Iterator[Violation]:
    """A tool's templates see the steps of the pipeline that calls it."""
    for violation in _steps(path, names.steps_of_tools.get(tool, ()), seen, all_steps):
        yield Violation(path, f"the templates of tool {tool!r} cannot be used here: {violation.description}")


def _expression(path: str, source: str, seen: Iterable[str], all_steps: Iterable[str]) -> Iterator[Violation]:
    if not source:
        return
    try:
        expression = compile_expression(source)
    except ExpressionError as error:
        yield Violation(path, f"{_shown(source)}: {error}")
        return
    yield from _steps(path, expression.steps, seen, all_steps)


def _template(
    path: str, source: str, variables: Sequence[str], seen: Iterable[str] | None = None, all_steps: Iterable[str] = ()
) -> Iterator[Violation]:
    if not source:
        return
    if SECRET_START in source:
        yield Violation(path, SECRET_MISPLACED)
    try:
        template = compile_template(source, variables=variables)
    except ExpressionError as error:
        yield Violation(path, f"{_shown(source)}: {error}")
        return
    if seen is not None:
        yield from _steps(path, template.steps, seen, all_steps)


def _steps(path: str, used: Iterable[str], seen: Iterable[str], all_steps: Iterable[str]) -> Iterator[Violation]:
    """A reference to a step must be to one that has run by then."""
    for name in sorted(used):
        if name in seen:
            continue
        if name in all_steps:
            yield Violation(
                path, f"steps.{name} has not run yet here; use a step of an earlier stage, or one before it in a SEQUENTIAL stage"
            )
        else:
            yield Violation(path, f"there is no step {name!r} in this pipeline.{did_you_mean(name, all_steps)}")


def _schema(path: str, struct: Any) -> Iterator[Violation]:
    for violation in schemas.schema_violations(struct):
        inner = f"{path}.{violation.field}" if violation.field else path
        yield Violation(inner, f"is not a JSON Schema that can be used here: {violation.description}")
