"""The checked syntax tree of a CEL expression, as the library serialises it (`Expression.serialize()`), and what is read off it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

# `steps[name]`, `steps[?name]` and `steps.?name`.
_INDEXING = frozenset({"_[_]", "_[?_]", "_?._"})

# The part of cel/expr/{checked,syntax}.proto that is read here: message -> (field, number, type, repeated, oneof).
_SCHEMA: dict[str, list[tuple[str, int, str, bool, str]]] = {
    "CheckedExpr": [("expr", 4, "Expr", False, "")],
    "Expr": [
        ("const_expr", 3, "Constant", False, "expr_kind"),
        ("ident_expr", 4, "Ident", False, "expr_kind"),
        ("select_expr", 5, "Select", False, "expr_kind"),
        ("call_expr", 6, "Call", False, "expr_kind"),
        ("list_expr", 7, "CreateList", False, "expr_kind"),
        ("struct_expr", 8, "CreateStruct", False, "expr_kind"),
        ("comprehension_expr", 9, "Comprehension", False, "expr_kind"),
    ],
    "Constant": [
        ("null_value", 1, "int64", False, "constant_kind"),
        ("bool_value", 2, "bool", False, "constant_kind"),
        ("int64_value", 3, "int64", False, "constant_kind"),
        ("uint64_value", 4, "uint64", False, "constant_kind"),
        ("double_value", 5, "double", False, "constant_kind"),
        ("string_value", 6, "string", False, "constant_kind"),
        ("bytes_value", 7, "bytes", False, "constant_kind"),
    ],
    "Ident": [("name", 1, "string", False, "")],
    "Select": [("operand", 1, "Expr", False, ""), ("field", 2, "string", False, ""), ("test_only", 3, "bool", False, "")],
    "Call": [("target", 1, "Expr", False, ""), ("function", 2, "string", False, ""), ("args", 3, "Expr", True, "")],
    "CreateList": [("elements", 1, "Expr", True, ""), ("optional_indices", 2, "int32", True, "")],
    "CreateStruct": [("message_name", 1, "string", False, ""), ("entries", 2, "Entry", True, "")],
    "Entry": [
        ("field_key", 2, "string", False, "key_kind"),
        ("map_key", 3, "Expr", False, "key_kind"),
        ("value", 4, "Expr", False, ""),
        ("optional_entry", 5, "bool", False, ""),
    ],
    "Comprehension": [
        ("iter_var", 1, "string", False, ""),
        ("iter_range", 2, "Expr", False, ""),
        ("accu_var", 3, "string", False, ""),
        ("accu_init", 4, "Expr", False, ""),
        ("loop_condition", 5, "Expr", False, ""),
        ("loop_step", 6, "Expr", False, ""),
        ("result", 7, "Expr", False, ""),
    ],
}


def parse(serialized: bytes) -> Any:
    """The root: a message `Expr`, with the fields above."""
    return _messages()["CheckedExpr"].FromString(any_pb2.Any.FromString(serialized).value).expr


def steps_of(expr: Any) -> frozenset[str]:
    """Names of the steps that are referred to by a name written in the expression; text in literals and comments does not count."""
    return frozenset(_steps(expr))


def _steps(expr: Any) -> Iterator[str]:
    kind = expr.WhichOneof("expr_kind")
    if kind == "select_expr" and _is_steps(expr.select_expr.operand):
        yield expr.select_expr.field
    elif kind == "call_expr" and expr.call_expr.function in _INDEXING:
        of, index = expr.call_expr.args
        if _is_steps(of) and index.const_expr.WhichOneof("constant_kind") == "string_value":
            yield index.const_expr.string_value
    loop = expr.comprehension_expr
    # In its turns `steps` is the name of something else.
    for part in [loop.iter_range] if loop.iter_var == "steps" else parts(expr):
        yield from _steps(part)


def parts(expr: Any) -> Iterator[Any]:
    """The expressions right below."""
    kind = expr.WhichOneof("expr_kind")
    if kind == "select_expr":
        yield expr.select_expr.operand
    elif kind == "call_expr":
        yield expr.call_expr.target
        yield from expr.call_expr.args
    elif kind == "list_expr":
        yield from expr.list_expr.elements
    elif kind == "struct_expr":
        for entry in expr.struct_expr.entries:
            yield entry.map_key
            yield entry.value
    elif kind == "comprehension_expr":
        loop = expr.comprehension_expr
        yield from (loop.iter_range, loop.accu_init, loop.loop_condition, loop.loop_step, loop.result)


def _is_steps(expr: Any) -> bool:
    return bool(expr.WhichOneof("expr_kind") == "ident_expr" and expr.ident_expr.name == "steps")


@functools.cache
def _messages() -> dict[str, Any]:
    """Message classes for the schema: cel-cpp's Python package has them compiled in, but does not show them."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="pointsman/cel.proto", package="pointsman.cel", syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        oneofs: list[str] = []
        for field, number, kind, repeated, oneof in fields:
            added = message.field.add(name=field, number=number)
            added.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if kind in _SCHEMA:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".pointsman.cel.{kind}"
            else:
                added.type = field_type.Type.Value(f"TYPE_{kind.upper()}")
            if oneof:
                if oneof not in oneofs:
                    oneofs.append(oneof)
                    message.oneof_decl.add(name=oneof)
                added.oneof_index = oneofs.index(oneof)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"pointsman.cel.{name}")) for name in _SCHEMA}
