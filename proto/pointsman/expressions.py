"""CEL expressions and Jinja templates, compiled once: shared, so that the control plane refuses what a gateway could not run.

Both see `input` (a map), `steps` (name -> output; null for a step that was skipped or failed), `environment` and `release` (strings);
templates of tools also see `arguments` (a map). Values in and out are plain: dict, list, str, int, float, bool, None.

CEL is cel-cpp with its strings and optional extensions. A JSON number without a fraction is an int; in `+ - * /` it may be mixed with
doubles, which CEL alone refuses, and gives a double. Evaluation is bounded by cel-cpp's iteration budget, rendering by fuel and by the
size of what comes out.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import math
import operator
import re
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any

import minijinja
from cel_expr_python import cel
from cel_expr_python.ext.ext_optional import ExtOptional
from cel_expr_python.ext.ext_strings import ExtStrings

from pointsman import syntax
from pointsman.bounds import MAX_GROWTH, expression_problem, growth_of, has_optional, multiplies, template_problem
from pointsman.closures import NotPlainError, TooLargeError, compile_closure
from pointsman.fixed import fixed, needs_fixed
from pointsman.values import ELEMENT_SIZE, MAX_NESTING, MAX_VALUE_SIZE, NESTING_REFUSED, SIZE_REFUSED

KIB = 1024
MAX_EXPRESSION_BYTES = 8 * KIB
MAX_TEMPLATE_BYTES = 256 * KIB
MAX_RENDERED_BYTES = 4 * KIB * KIB
TEMPLATE_FUEL = 1_000_000
MAX_INDENT = 16
VARIABLES = ("input", "steps", "environment", "release")
TOOL_VARIABLES = (*VARIABLES, "arguments")

_MAP = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
_TYPES = {"input": _MAP, "steps": _MAP, "environment": cel.Type.STRING, "release": cel.Type.STRING}
_POSITION = re.compile(r"<input>:(\d+):(\d+): (.*)")
_UNDECLARED = re.compile(r"undeclared reference to '([^'.]+)[^']*'")
_TAG = re.compile(r"\{[{%#]")
_NO_WORD = "which JSON has no word for"
_PLAIN_TYPES = frozenset({bool, int, str, type(None)})
_MICROSECOND = dt.timedelta(microseconds=1)


class ExpressionError(Exception):
    """An expression or a template cannot be compiled, or gave no value; the message says why, and where when compiling."""


class _NotForUrlError(Exception):
    """A value that cannot be part of a URL."""


class Expression:
    """A compiled CEL expression. Immutable; may be evaluated on any thread."""

    __slots__ = ("_by_parts", "_closure", "_program", "source", "steps")

    def __init__(self, source: str, compiled: Any) -> None:
        self.source = source
        tree = syntax.parse(compiled.serialize())
        if growth_of(tree) > MAX_GROWTH:
            raise ExpressionError(
                f"could make more than {MAX_GROWTH} times of what it is given; use fewer replacements, joins and maps upon one another"
            )
        self._by_parts = has_optional(tree) or multiplies(tree)
        self._closure = compile_closure(tree)
        # It takes more memory than all else here, and most expressions never need it beside a closure: it can be made again.
        self._program = None if self._closure is not None else compiled
        self.steps = syntax.steps_of(tree)
        """Names of the steps that it refers to by a name written in it."""

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """The plain value.

        Raises:
            ExpressionError: when it gives an error, or a value that JSON has no word for.
        """
        if self._closure is not None:
            try:
                return self._closure(variables)
            except NotPlainError:
                pass
            except TooLargeError:
                raise ExpressionError(f"gave a value that {SIZE_REFUSED}") from None
        return self.evaluate_by_library(variables)

    def evaluate_by_library(self, variables: Mapping[str, Any]) -> Any:
        """The same without closures. Raises as evaluate."""
        if self._program is None:
            self._program = _cel().compile(self.source)
        try:
            value = self._program.eval(data=variables)
        except (OverflowError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            # A value that cel-cpp cannot take, such as an integer beyond 64 bits, or one that it cannot hold.
            raise ExpressionError(_first_line(str(error))) from None
        try:
            if value.type() == cel.Type.ERROR:
                raise ExpressionError(_explained(str(value.value())))
            found = value if self._by_parts else value.plain_value()
            return _Plain(by_parts=self._by_parts).of(found, MAX_NESTING)
        except (TypeError, SystemError):
            # The library's way to say that Python has no such value.
            raise ExpressionError(f"gave an optional, {_NO_WORD}; take its value with .orValue(...)") from None

    def evaluate_bool(self, variables: Mapping[str, Any]) -> bool:
        """The value of a gate.

        Raises:
            ExpressionError: as evaluate, and when the value is no bool.
        """
        found = self.evaluate(variables)
        if not isinstance(found, bool):
            raise ExpressionError(f"gave {_shown(found)}, and must give true or false")
        return found


class Template:
    """A template that was found good. Immutable; may be rendered on any thread."""

    __slots__ = ("_environment", "_is_text", "_needs_fixed", "_quote_url", "source", "steps", "variables")

    def __init__(self, source: str, names: Collection[str], *, quote_url: bool) -> None:
        self.source = source
        self._quote_url = quote_url
        self._is_text = not _TAG.search(source)
        self._needs_fixed = needs_fixed(source)
        # Made at the first use, in some 15 microseconds: it takes 15 KB, and a gateway holds thousands of templates that wait for theirs.
        self._environment: minijinja.Environment | None = None
        self.variables = frozenset(name.split(".")[0] for name in names)
        """Names of the variables that it refers to."""
        self.steps = frozenset(name.split(".")[1] for name in names if name.startswith("steps."))
        """Names of the steps that it refers to by a name written in it."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            ExpressionError: when it refers to a value that is not there, runs out of fuel or grows too large.
        """
        if self._is_text:
            return self.source
        environment = self._environment = self._environment or _environment_of(self.source, quote_url=self._quote_url)
        try:
            text = environment.render_template("template", **(fixed(variables) if self._needs_fixed else variables))
        except minijinja.TemplateError as error:
            raise ExpressionError(_first_line(error.message)) from None
        except _NotForUrlError as error:
            raise ExpressionError(str(error)) from None
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ExpressionError(f"called a method: {_first_line(str(error))}") from None
        if len(text) > MAX_RENDERED_BYTES:
            raise ExpressionError(f"gave {len(text)} characters; at most {MAX_RENDERED_BYTES} are allowed")
        return text


def compile_expression(source: str) -> Expression:
    """Raises ExpressionError, with line and column, when the source is no CEL or names an unknown variable."""
    size = len(source.encode())
    if size > MAX_EXPRESSION_BYTES:
        raise ExpressionError(f"has {size} bytes; at most {MAX_EXPRESSION_BYTES} are allowed")
    if problem := expression_problem(source):
        raise ExpressionError(problem)
    try:
        return Expression(source, _cel().compile(source))
    except RuntimeError as error:
        raise ExpressionError(_compile_error(source, str(error))) from None


def compile_template(source: str, *, variables: Collection[str] = VARIABLES, quote_url: bool = False) -> Template:
    """A template. With quote_url every value put into it is percent-encoded.

    Raises:
        ExpressionError: with its line, when it is no template or names an unknown variable.
    """
    size = len(source.encode())
    if size > MAX_TEMPLATE_BYTES:
        raise ExpressionError(f"has {size} bytes; at most {MAX_TEMPLATE_BYTES} are allowed")
    if problem := template_problem(source):
        raise ExpressionError(problem)
    try:
        environment = _environment_of(source, quote_url=quote_url)
        names = environment.undeclared_variables_in_template("template", nested=True)
    except minijinja.TemplateError as error:
        raise ExpressionError(_first_line(error.message)) from None
    for name in sorted(name.split(".")[0] for name in names):
        if name not in variables and name not in environment.globals:
            raise ExpressionError(_unknown_variable(name, variables))
    return Template(source, names, quote_url=quote_url)


def _environment_of(source: str, *, quote_url: bool) -> minijinja.Environment:
    environment = minijinja.Environment(
        undefined_behavior="strict",
        fuel=TEMPLATE_FUEL,
        # Names the undefined value in the first line of the message; the values that it lists after that are never shown.
        debug=True,
        keep_trailing_newline=True,
        auto_escape_callback=lambda _name: False,
        finalizer=_quoted if quote_url else None,
    )
    # Fuel does not bound what doubles a string in a loop, which needs a namespace to carry it from one turn to the next.
    environment.remove_global("namespace")
    # It would print every variable.
    environment.remove_global("debug")
    # The library's own ends the process when it is asked for a large indent.
    environment.add_filter("tojson", _to_json)
    environment.add_template("template", source)
    return environment


def _to_json(value: Any, *arguments: Any, **named: Any) -> str:
    """As the library's own writes it: also good inside HTML. Takes an `indent`, by its place or its name."""
    indent = named.pop("indent", None) if not arguments else arguments[0]
    if named or len(arguments) > 1:
        raise ExpressionError("gave tojson more than a value and an indent")
    try:
        width = 2 if indent is True else None if indent is None or indent is False else max(0, min(int(indent), MAX_INDENT))
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=width)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ExpressionError("gave tojson what JSON has no word for") from None
    if len(text) > MAX_RENDERED_BYTES:
        raise ExpressionError(f"gave {len(text)} characters of JSON; at most {MAX_RENDERED_BYTES} are allowed")
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("'", "\\u0027")


def _cel() -> Any:
    global _cel_environment  # noqa: PLW0603 -- made at the first use: the command line imports this module without needing CEL
    if _cel_environment is None:
        _cel_environment = cel.NewEnv(variables=_TYPES, extensions=[ExtStrings(), ExtOptional(), _mixed_arithmetic()])
    return _cel_environment


def _mixed_arithmetic() -> Any:
    """`3 * 1.5`: a caller cannot help that the number 2 of JSON is an int and 2.5 a double, and an author does not see which will come."""
    declared = []
    functions = (
        ("_+_", "add", operator.add),
        ("_-_", "subtract", operator.sub),
        ("_*_", "multiply", operator.mul),
        ("_/_", "divide", _divide),
    )
    for function, name, compute in functions:
        overloads = []
        for left, right in ((cel.Type.INT, cel.Type.DOUBLE), (cel.Type.DOUBLE, cel.Type.INT)):
            # Declared as dyn, so that what comes of it can be compared with ints too.
            id_ = f"{name}_{left.name()}_{right.name()}".lower()
            overloads.append(cel.Overload(id_, return_type=cel.Type.DYN, parameters=[left, right], impl=_on_doubles(compute)))
        declared.append(cel.FunctionDecl(function, overloads))
    return cel.CelExtension("mixed_arithmetic", declared)


def _on_doubles(compute: Callable[[float, float], float]) -> Callable[[float, float], float]:
    return lambda left, right: compute(float(left), float(right))


def _divide(left: float, right: float) -> float:
    """As CEL divides doubles (IEEE 754)."""
    if right:
        return left / right
    return math.nan if not left or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)


_cel_environment: Any = None


def _compile_error(source: str, text: str) -> str:
    """`line 1, column 7: ...` out of what cel-cpp says."""
    found = _POSITION.search(text)
    if not found:
        return _first_line(text)
    line, column, message = found.groups()
    undeclared = _UNDECLARED.search(message)
    if undeclared and re.search(rf"\b{re.escape(undeclared[1])}\s*\(", source):
        message = f"unknown function {undeclared[1]!r}"
    elif undeclared:
        message = _unknown_variable(undeclared[1], VARIABLES)
    elif "no matching overload" in message and "double" in message and "int" in message:
        message = f"{message.removesuffix(' [INVALID_ARGUMENT]')}; int and double do not mix here: write 2.0 for 2, or double(x)"
    return f"line {line}, column {column}: {message.removesuffix(' [INVALID_ARGUMENT]')}"


def _unknown_variable(name: str, variables: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(variables), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(variables)}"
    return f"unknown variable {name!r}; {hint}"


def _explained(text: str) -> str:
    """What cel-cpp says at run time, without its status word, and with a remedy where there is a usual one."""
    message = re.sub(r"^[A-Z_]+: ", "", _first_line(text))
    if message.startswith("Key not found in map"):
        return f"{message}; test with has(x.key), or write x.?key.orValue(...)"
    return message


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "gave no reason"


class _Plain:
    """The library's values as plain ones, lists and maps all the way down; CEL's other types as JSON has them.

    By parts where it must be: the library's own plain_value is ten times as quick, but ends the process at an optional in a map, and makes
    as many copies of a text as it stands in lists before anyone can count them.
    """

    def __init__(self, *, by_parts: bool) -> None:
        self._by_parts = by_parts
        self._left = MAX_VALUE_SIZE

    def of(self, value: Any, nesting: int) -> Any:
        """Nested so deep at most. Raises ExpressionError, and TypeError for an optional."""
        found = value.value() if self._by_parts else value
        kind = type(found)
        if kind is str or kind is list or kind is dict:
            self._left -= len(found) if kind is str else ELEMENT_SIZE * len(found)
            if self._left < 0:
                raise ExpressionError(f"gave a value that {SIZE_REFUSED}")
            if kind is str:
                return found
            if not nesting:
                raise ExpressionError(f"gave a value that {NESTING_REFUSED}")
            if kind is list:
                return [self.of(item, nesting - 1) for item in found]
            return {_key(key): self.of(item, nesting - 1) for key, item in found.items()}
        return found if kind in _PLAIN_TYPES else _scalar(found)


def _scalar(value: Any) -> Any:
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise ExpressionError(f"gave {value}, {_NO_WORD}")
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dt.timedelta):
        return _duration(value // _MICROSECOND)
    raise ExpressionError(f"gave {_shown(value)}, {_NO_WORD}; turn it into a string, a number, a list or a map")


def _duration(microseconds: int) -> str:
    """As protobuf's JSON mapping writes it: `90s`, `-0.5s`."""
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    fraction = f".{rest:06}".rstrip("0") if rest else ""
    return f"{'-' if microseconds < 0 else ''}{seconds}{fraction}s"


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ExpressionError(f"gave a map with the key {_shown(key)}; keys must be strings")
    return key


def _shown(value: Any) -> str:
    """A value and its type, short enough for a message."""
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _quoted(value: Any) -> str:
    if value is None or isinstance(value, Mapping | list | tuple):
        raise _NotForUrlError(f"a URL takes text and numbers, not {_shown(value)}")
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return urllib.parse.quote(text, safe="")
