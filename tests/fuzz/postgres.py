"""The same against a control plane on PostgreSQL, which takes other texts and numbers than SQLite does."""

from __future__ import annotations

from tests.fuzz.engine import Target
from tests.fuzz.grpc_calls import CALLS, METHODS, check_calls
from tests.fuzz.http_requests import LOOKS, SENDS, check_looks, check_sends
from tests.fuzz.page_tokens import CASES, PINNED, check_tokens
from tests.fuzz.site import on_postgres
from tests.postgres_server import available

ZEROS = [(method, data) for name, data in (("RevokeToken", b"\n\x01\0\x18\x01"), ("CreateApp", b"\n\x01a\x12\x03a\0b"), ("GetApp", b"\n\x01\0"), ("ListExecutions", b"\n\x01\0")) for method in METHODS if method.path.endswith(f"/{name}")]  # fmt: skip

ALL = [
    Target(name="postgres_calls", cases=CALLS, opened=on_postgres(check_calls), share=4_000, alone=False, case_seconds=30, pinned=[ZEROS]),
    Target(name="postgres_tokens", cases=CASES, opened=on_postgres(check_tokens), share=4_000, alone=False, pinned=PINNED),
    Target(name="postgres_pages", cases=LOOKS, opened=on_postgres(check_looks), share=3_000, alone=False, case_seconds=30),
    Target(name="postgres_forms", cases=SENDS, opened=on_postgres(check_sends), share=2_000, alone=False, case_seconds=30),
]
# Where there are no binaries of it, the header of every test run says so.
TARGETS = ALL if available() else []
