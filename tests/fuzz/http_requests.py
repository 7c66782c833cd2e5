"""HTTP to both servers as raw bytes: heads and bodies that are broken, lie, or are too much; then what is well-formed and odd: queries, forms, JSON."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from tests.fuzz.app_files import FILES
from tests.fuzz.engine import Target
from tests.fuzz.site import Site, on_site
from tests.fuzz.strategies import JSON, ODD_TEXTS, SEEDS, TEXT, mutated
from tests.fuzz.values import BODIES, ODD_JSON
from tests.fuzz.wire import talk

# Requests that are whole are answered without an end of the sending; streams of events end by it.
WHOLE_SECONDS = 1.0
COOKIE = "A" * 43
PAGES = ["/", "/livez", "/readyz", "/metrics", "/apps", "/deploy", "/deploy/staging/1", "/deploy/staging/1/rollout", "/apps/shop", "/apps/shop/releases", "/apps/shop/new-release", "/apps/shop/check-tag", "/apps/shop/releases/v1", "/apps/shop/compare", "/apps/shop/environments", "/apps/shop/environments/staging", "/apps/shop/environments/staging/rollout", "/apps/shop/deploy", "/apps/shop/promote", "/apps/shop/rollback", "/apps/shop/draft", "/apps/shop/editor", "/apps/shop/editor/change", "/apps/shop/editor/form", "/apps/shop/changes", "/apps/shop/executions", "/apps/shop/executions/018f2b1e-0000-7000-8000-000000000000", "/apps/shop/try", "/apps/shop/summary", "/apps/shop/reports/018f2b1e-0000-7000-8000-000000000000", "/environments", "/environments/staging", "/environments/staging/delete", "/gateways", "/audit", "/tokens", "/tokens/aaaaaaaaaaaaaaaa", "/sign-in", "/sign-out", "/static/console.css", "/static/..%2f..%2fpyproject.toml"]  # fmt: skip
GATEWAY_PAGES = [
    "/v1/trigger/where",
    "/v1/trigger/where",
    "/v1/trigger/",
    "/v1/trigger/nothing",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/status",
    "/v1/endpoints",
    "/v1/openapi.json",
    "*",
    "http://other/v1/trigger/where",
]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "CONNECT", "TRACE", "PRI", "get", "G\0ET", "", "A" * 5000]
NAMES = ["Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "Authorization", "Cookie", "Accept", "Content-Type", "Content-Encoding", "X-App", "X-Environment", "X-Min-Revision", "X-Release", "Idempotency-Key", "traceparent", "tracestate", "Range", "Origin", "Sec-Fetch-Site", "If-None-Match", "X-Forwarded-For", "Forwarded", "TE", "Trailer", "Bad Name", "", "\xff", "A" * 70_000]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(
        [
            "0",
            "-1",
            "+5",
            "0x5",
            "5, 5",
            "99999999999999999999",
            "chunked",
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "close",
            "keep-alive",
            "upgrade",
            "h2c",
            "websocket",
            "100-continue",
            "text/event-stream",
            "application/json",
            "application/x-www-form-urlencoded",
            "gzip",
            "Bearer pm_",
            "shop",
            "staging",
            "v1",
            "pointsman_token=x; pointsman_browser=" + "A" * 43,
            "a=b; " * 3000,
            "\u0661\u0662",
            "x\x00y",
            "x\r\n y",
            "x\ny",
            "http://127.0.0.1",
            "bytes=0-1,2-3",
            "A" * 70_000,
        ]
    ),
    TEXT,
)
BODY = st.one_of(
    BODIES,
    st.sampled_from(
        [
            b"",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\nx",
            b"-1\r\n",
            b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
            b"1\r\na\r\n" * 3000 + b"0\r\n\r\n",
            b"0\r\nX: y\r\n" * 50,
            b"g\r\n",
            b"5\r\nhel",
            gzip.compress(b"0" * 5_000_000),
        ]
    ),
)
HEADS = st.builds(
    lambda method, page, version, headers, ending, body: (
        f"{method} {page} {version}\r\n".encode("latin-1", "replace")
        + b"".join(f"{name}: {value}".encode("utf-8", "replace") + ending for name, value in headers)
        + b"\r\n"
        + body
    ),
    st.sampled_from(METHODS[:3]) | st.sampled_from(METHODS),
    st.sampled_from(PAGES + GATEWAY_PAGES)
    | st.sampled_from([quote(text) for text in ODD_TEXTS] + ["/" + "a" * 70_000, "/%", "/%zz", "/\xff", "/a b", "//", "/../..", "?"]),
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "", "ICY"]),
    st.lists(st.tuples(st.sampled_from(NAMES[:-4] * 4 + NAMES), VALUES), max_size=6),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""]),
    BODY,
)
GOOD = (
    b"POST /v1/trigger/where HTTP/1.1\r\nHost: localhost\r\nX-App: shop\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
    b'{"message":"abc"}'
)
RAW = st.one_of(
    HEADS,
    HEADS,
    st.builds(mutated, HEADS, SEEDS),
    st.builds(mutated, st.just(GOOD), SEEDS),
    st.binary(max_size=100),
    st.sampled_from(
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50,
            b"\r\n" * 3000,
            b"GET / HTTP/1.1\r\n" * 2,
            GOOD * 50,
            b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        ]
    ),
)


def check_heads(site: Site, cases: list[tuple[bool, bytes]]) -> None:
    """Every connection ends, with answers or without; none is a 500."""
    for at_gateway in (False, True):
        server = site.gateway if at_gateway else site.control_plane
        for one in talk(server.http, [data for gateway, data in cases if gateway is at_gateway]):
            one.check()


def request_bytes(site: Site, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    told = {
        "Host": "localhost",
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Cookie": f"pointsman_token={site.secret}; pointsman_browser={COOKIE}",
        "Authorization": f"Bearer {site.secret}",
    }
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in {**told, **headers}.items())]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


QUERY_NAMES = ["app", "environment", "release", "tag", "page", "page_token", "from", "to", "since", "until", "before", "after", "endpoint", "outcome", "gateway", "min_duration", "q", "next", "revision", "window", "at", "kind", "path", "pipeline", "stage", "step", "index", "part", "message", "execution", "method", "actor", "name", "limit", "draft_version", "x"]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD_TEXTS), st.sampled_from(["shop", "staging", "v1", "v2", "where", "draft", "pipelines[0]", "pipelines[0].stages[0].steps[0]", "pipelines[99]", "endpoints[0]", "pipelines[-1]", "pipelines[" + "9" * 30 + "]", "2024-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01", "-1", "1e3", "SUCCEEDED", "1h", "http://evil.example/", "//evil.example", "018f2b1e-0000-7000-8000-000000000000"]), TEXT)  # fmt: skip
QUERIES = st.lists(st.tuples(st.sampled_from(QUERY_NAMES), TEXTS), max_size=4).map(urlencode) | st.sampled_from(
    ["&" * 500, "=" * 500, "a=%ff&b=%zz", "app=%00", "a=1&" * 2000, "%", "app[]=1", "page_token=" + "A" * 9000]
)
FIELDS = ["app", "description", "tag", "environment", "release", "reason", "to_environment", "from_environment", "to_release", "request_id", "expected_revision", "draft_version", "expected_draft_version", "config", "text", "path", "kind", "name", "deploy_to", "role", "apps", "environments", "endpoints", "expire", "expires", "requests_per_second", "burst", "max_staleness", "stale_action", "secret", "next", "force", "wait", "endpoint", "input", "message", "min_revision", "action", "confirm", "steps", "transform.expression", "inference.prompt", "timeout", "move", "index", "field.message"]  # fmt: skip
TAKES_FORMS = ["/apps", "/deploy", "/apps/shop/releases", "/apps/shop/deploy", "/apps/shop/promote", "/apps/shop/rollback", "/apps/shop/draft", "/apps/shop/editor/change", "/apps/shop/editor/form", "/apps/shop/try", "/environments", "/environments/staging", "/environments/odd/delete", "/tokens", "/tokens/aaaaaaaaaaaaaaaa", "/sign-in", "/sign-out"]  # fmt: skip
FORMS = st.dictionaries(st.sampled_from(FIELDS), TEXTS | FILES.map(lambda text: text[:20_000]), max_size=8)
ACCEPTS = st.sampled_from(["text/html", "*/*", "application/json", ""])
PAGE_PATHS = st.sampled_from(PAGES) | st.builds(
    lambda page, odd: page.replace("shop", quote(odd, safe="")).replace("staging", quote(odd, safe="")), st.sampled_from(PAGES), TEXTS
)
LOOKS = st.lists(st.tuples(PAGE_PATHS, QUERIES, ACCEPTS), min_size=3, max_size=8)
SENDS = st.lists(
    st.tuples(st.sampled_from(TAKES_FORMS) | PAGE_PATHS, QUERIES, FORMS, st.sampled_from([True, True, True, False])), min_size=3, max_size=8
)


def check_looks(site: Site, cases: list[Any]) -> None:
    """Every page is answered, whatever its address says."""
    for one in talk(
        site.control_plane.http,
        [request_bytes(site, "GET", f"{path}?{query}", {"Accept": accept}, b"") for path, query, accept in cases],
        WHOLE_SECONDS,
    ):
        one.check()
        assert one.statuses, f"no answer: {one.data!r}"


def check_sends(site: Site, cases: list[Any]) -> None:
    """Every form is taken or refused, whatever is in it."""
    token = hmac.new(COOKIE.encode(), b"a form of the console", hashlib.sha256).hexdigest()
    payloads = []
    for path, query, fields, sound in cases:
        body = urlencode({**fields, "form_token": token if sound else "x"}).encode()
        payloads.append(request_bytes(site, "POST", f"{path}?{query}", {"Content-Type": "application/x-www-form-urlencoded"}, body))
    for one in talk(site.control_plane.http, payloads, WHOLE_SECONDS):
        one.check()
        assert one.statuses, f"no answer: {one.data!r}"


INPUTS = st.one_of(
    BODIES,
    JSON.map(lambda value: json.dumps({"message": value}).encode()),
    st.sampled_from(ODD_JSON).map(lambda odd: b'{"message": ' + odd + b"}"),
    st.sampled_from([gzip.compress(b'{"message": "a"}'), gzip.compress(b"0" * 30_000_000), b"\x1f\x8b", b"x" * 5_000_000]),
)
MORE = st.dictionaries(st.sampled_from(["Accept", "Content-Encoding", "Content-Type", "X-App", "X-Environment", "X-Min-Revision", "X-Release", "Idempotency-Key", "traceparent", "Transfer-Encoding"]), st.sampled_from(["text/event-stream", "gzip", "deflate", "br", "application/json", "text/plain", "shop", "nowhere", "staging", "0", "-1", "\xb2", "1" * 18, "9" * 400, "v1", "v9", "a b", "", "k" * 300, "00-" + "1" * 32 + "-" + "2" * 16 + "-01"]), max_size=3)  # fmt: skip
TRIGGERS = st.lists(
    st.tuples(
        st.sampled_from(["/v1/trigger/where"] * 5 + GATEWAY_PAGES[:10]),
        QUERIES,
        MORE,
        INPUTS,
        st.sampled_from(["POST", "POST", "POST", "GET"]),
    ),
    min_size=3,
    max_size=8,
)


def check_triggers(site: Site, cases: list[Any]) -> None:
    """Every trigger is answered; what is refused, is so in the one shape of errors."""
    payloads = [
        request_bytes(site, method, f"{path}?{query}", {"X-App": "shop", "Content-Type": "application/json", **more}, body)
        for path, query, more, body, method in cases
    ]
    for one in talk(site.gateway.http, payloads, WHOLE_SECONDS):
        one.check()
        head, _, body = bytes(one.got).partition(b"\r\n\r\n")
        if one.statuses and one.statuses[0] >= 400 and b"application/json" in head:
            found = json.loads(body)
            assert set(found) == {"error", "message", "details", "status_code", "timestamp"}, found


TARGETS = [
    Target(name="http_heads", cases=st.lists(st.tuples(st.booleans(), RAW), min_size=6, max_size=16), opened=on_site(check_heads), share=15_000, alone=False, case_seconds=30),
    Target(name="http_triggers", cases=TRIGGERS, opened=on_site(check_triggers), share=20_000, alone=False, case_seconds=30),
    Target(name="console_pages", cases=LOOKS, opened=on_site(check_looks), share=8_000, alone=False, case_seconds=30),
    Target(name="console_forms", cases=SENDS, opened=on_site(check_sends), share=8_000, alone=False, case_seconds=30),
]  # fmt: skip
