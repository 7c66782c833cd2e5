"""What callers send as JSON, the schemas that it is held to, and the texts in headers: tokens, traces."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st

from data_plane.access import Access
from data_plane.holder import Change, Holder
from data_plane.table import Role, Verifier
from data_plane.tracing import trace_of
from pointsman import schemas, tokens
from pointsman.errors import PointsmanError
from pointsman.values import decode_json, from_struct, refusal, to_struct, to_value
from tests.fuzz.engine import Target, pure
from tests.fuzz.strategies import JSON, ODD_TEXTS, SEEDS, TEXT, messages, mutated

ODD_JSON = [
    b"NaN", b"Infinity", b"-Infinity", b'{"a":1,"a":2}', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\\u0000"', b"\xef\xbb\xbf{}", b"1" * 400, b"-" + b"9" * 5000, b"1e400",
    b"1e-99999", b"-0", b"-0.0", b"0123", b"1.", b".5", b"'a'", b"{a:1}", b"[1,]", b"//x\n1", b"\x00", b"{}{}", b" " * 10_000, b'{"a":' * 5000, b"[" * 10_000, b"[" * 10_000 + b"]" * 10_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'"' + b"\\" * 999, b'"' + b"a" * 100_000 + b'"', b"9223372036854775808", b"-9223372036854775809", b'{"\\u0000":1}', b'"\\uD83D\\uDE00"',
]  # fmt: skip
BODIES = st.one_of(
    st.sampled_from(ODD_JSON),
    JSON.map(lambda plain: json.dumps(plain).encode()),
    st.builds(
        lambda plain, seed, odd: mutated(json.dumps(plain).encode(), seed, odd),
        JSON,
        SEEDS,
        st.lists(st.sampled_from(ODD_JSON), max_size=2),
    ),
    st.binary(max_size=30),
)
KEYWORDS = ["type", "properties", "items", "required", "enum", "const", "pattern", "patternProperties", "format", "minimum", "maxLength", "multipleOf", "allOf", "anyOf", "oneOf", "not", "if", "then", "$ref", "$defs", "$id", "$schema", "$dynamicRef", "$anchor", "uniqueItems", "contains", "dependentSchemas", "propertyNames", "unevaluatedProperties", "additionalProperties", "minItems", "contentEncoding", "contentMediaType"]  # fmt: skip
OPERANDS = st.sampled_from(["object", "string", "#", "#/$defs/a", "#/properties/a", "http://127.0.0.1:1/x", "file:///etc/passwd", "json-schema:///x", "a{1000}{1000}{1000}", "(a*)*b", "(?=a)", "[", "\\p{L}+", "date-time", "ipv4", "uri", "regex", "https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#", "base64"]) | JSON  # fmt: skip
SCHEMAS = st.recursive(
    st.dictionaries(st.sampled_from(KEYWORDS), OPERANDS, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(KEYWORDS), inner | st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2), max_size=3),
    max_leaves=6,
)  # fmt: skip
SECRET = tokens.new_secret()
TOKEN = st.one_of(
    st.sampled_from([*ODD_TEXTS, SECRET, SECRET.upper(), SECRET + " ", "pm_", "pm__", "pm_" + "a" * 16 + "_", "pm_" + "\u0131" * 16 + "_" + "a" * 52, "Bearer", "bearer", "\udcff", "pm_" + "\ud800" * 16]),
    st.builds(lambda seed: mutated(SECRET.encode(), seed).decode("latin-1"), SEEDS),
    st.text(max_size=90),
)  # fmt: skip
HEADERS = st.tuples(st.sampled_from(["", "Bearer ", "bearer  ", "BEARER\t", "Basic ", "Bearer\u00a0"]), TOKEN).map("".join)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACES = st.sampled_from(
    ["", TRACE, "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "ff" + TRACE[2:], TRACE + "-more", TRACE + "\n", "-" * 5000, TRACE * 1000]
) | st.builds(lambda seed: mutated(TRACE.encode(), seed).decode("latin-1"), SEEDS)


def check_body(data: bytes) -> None:
    """It is a value that goes on through everything, or is refused in words."""
    try:
        found = decode_json(data)
    except ValueError as error:
        assert 0 < len(str(error)) < 1000
        return
    to_value(found)
    if isinstance(found, dict):
        from_struct(to_struct(found))


def check_schema(case: tuple[dict[str, Any], Any]) -> None:
    """It is a schema that holds any value to account in a bounded time, or is refused with places."""
    struct = to_struct(case[0])
    for violation in schemas.schema_violations(struct):
        assert violation.description
    try:
        schema = schemas.compile_schema(struct)
    except (jsonschema_rs.ValidationError, ValueError):
        return
    for violation in schema.violations(case[1]):
        assert violation.description


def check_struct(struct: Struct) -> None:
    """What comes through gRPC is refused, or is as good as what comes as JSON."""
    if not refusal(plain := from_struct(struct)):
        json.dumps(plain, allow_nan=False)


def _access() -> Access:
    holder = Holder(lambda: None)  # type: ignore[arg-type, return-value]  # nothing is loaded, so nobody asks for the time
    holder.flip(Change(revision=1, store_id="s", bindings=[], unusable={}, complete=True))
    verifier = Verifier(
        token_id=tokens.token_id_of(SECRET) or "", secret_hash=tokens.hash_of(SECRET), role=Role.ADMIN, apps=frozenset(), environments=frozenset(), endpoints=frozenset(), rate_limit=None, expire_time=None
    )  # fmt: skip
    holder.take_tokens([verifier], complete=True)
    return Access(holder)


ACCESS = _access()


def check_headers(case: tuple[str, str, str]) -> None:
    """Only the right token is let in; a trace is one of the standard or none."""
    header, traceparent, state = case
    try:
        let_in = ACCESS.caller(header)
        assert let_in is not None
        assert header.strip().endswith(SECRET)
    except PointsmanError as error:
        assert error.reason_name == "UNAUTHENTICATED"
    trace = trace_of(traceparent, state)
    if trace is not None:
        assert len(trace.state) <= 512
        assert "\n" not in trace.trace_id + trace.span_id + trace.flags


TARGETS = [
    Target(name="json", cases=BODIES, opened=pure(check_body), share=20_000),
    Target(name="schemas", cases=st.tuples(SCHEMAS, JSON), opened=pure(check_schema), share=8_000),
    Target(name="structs", cases=messages(Struct.DESCRIPTOR, 6), opened=pure(check_struct), share=5_000),
    Target(name="headers", cases=st.tuples(HEADERS, TRACES, TEXT), opened=pure(check_headers), share=20_000),
]
