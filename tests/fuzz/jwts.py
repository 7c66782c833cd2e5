"""JWTs that nobody should count, and some that one should; and sets of keys that an issuer should not publish.

Whether one counts is judged here once more, by `cryptography` alone: what is let in must be signed, and say what it must.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import strategies as st
from joserfc.jwk import Key
from structlog.testing import LogCapture

from pointsman.errors import PermissionDenied, Unauthenticated
from pointsman.jwt import JwtRules, Subject
from pointsman.jwt_judge import ROLES, JwtJudge
from pointsman.jwt_keys import JwtKeys, KeysError, KeySet, parse
from tests.fuzz.engine import Checker, Target
from tests.fuzz.strategies import JSON, ODD_TEXTS, SEEDS, TEXT, mutated
from tests.jwt_issuer import AUDIENCE, ISSUER, KINDS, base64url, claims, jwks, signed

ALGORITHMS = list(KINDS)
ODD_ALGORITHMS = [
    "none",
    "None",
    "nOnE",
    "HS256",
    "HS512",
    "RS512",
    "ES256K",
    "ES512",
    "dir",
    "RSA-OAEP",
    "",
    "RS256 ",
    "rs256",
    None,
    7,
    ["RS256"],
    {},
]
NOW = int(time.time())
TIMES = [0, -1, NOW - 1, NOW + 29, NOW + 1000, 2**53, 10**400, -(10**400), 1e308, 1.5, True, None, "never", [], "1", float(NOW + 500)]
HEADERS: dict[str, Any] = {
    "alg": st.sampled_from(ALGORITHMS + ODD_ALGORITHMS),
    "kid": st.sampled_from([*ALGORITHMS, "", "ghost", "../../etc/passwd", None, 7, "a" * 5000]),
    "typ": st.sampled_from(["JWT", "at+jwt", "JOSE", "dpop+jwt", "", None, 7]),
    "crit": st.sampled_from([["b64"], [], None, "exp"]),
    "b64": st.booleans(),
    "zip": st.just("DEF"),
    "jku": st.just("http://127.0.0.1:9/keys"),
    "x5u": st.just("http://127.0.0.1:9/chain"),
    "jwk": JSON,
    "cty": st.just("JWT"),
}
CLAIMS: dict[str, Any] = {
    "iss": st.sampled_from([ISSUER, ISSUER + "/", "", None, [ISSUER], 7]),
    "aud": st.sampled_from([AUDIENCE, [AUDIENCE], ["a", AUDIENCE], [], "", None, 7, [7], AUDIENCE * 2, {"a": AUDIENCE}]),
    "exp": st.sampled_from(TIMES),
    "nbf": st.sampled_from(TIMES),
    "iat": st.sampled_from(TIMES),
    "sub": st.sampled_from(["ann", "", None, 7, "a" * 300, "\0", "a\nb", "\u202e", "\ud800"]) | TEXT,
    "pointsman_role": st.sampled_from(["admin", "ADMIN", ["viewer"], ["viewer", "admin"], [], "root", "ROLE_UNSPECIFIED", "", None, 7, "\u0131dm\u0131n"]) | TEXT,
    "pointsman_apps": st.sampled_from([["shop"], "shop", [], "", [7], None, ["*"], ["SHOP"], ["a" * 64], {}, [["shop"]]]) | JSON,
    "pointsman_environments": st.sampled_from([["staging"], [], "", [None], "staging,production"]) | JSON,
}  # fmt: skip
SPLICES = [
    b',"crit":null',
    b',"alg":"none"',
    b'"alg":"none",',
    b'"kid":"ghost",',
    b',"b64":false',
    b'"typ":null,',
    b',"zip":"DEF"',
    b'"ALG":7,',
    b"\xef\xbb\xbf",
]
SIGNED_BY = ["right", "right", "right", "wrong", "hmac", "nothing", "noise"]


def some_of(fields: dict[str, Any]) -> Any:
    """A few of the fields, each with one of its values."""
    return st.lists(st.sampled_from(list(fields)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )


JWTS = st.one_of(
    st.tuples(st.just("made"), st.sampled_from(ALGORITHMS), some_of(HEADERS), some_of(CLAIMS), st.sampled_from(SIGNED_BY)),
    st.tuples(st.just("payload"), st.sampled_from(ALGORITHMS), st.binary(max_size=60) | JSON.map(lambda plain: json.dumps(plain).encode())),
    st.tuples(st.just("payload"), st.sampled_from(ALGORITHMS), st.sampled_from([b"[" * 5000, b'{"a":' * 1000, b"{}" * 4000, b"\xff\xfe{}"])),
    st.tuples(st.just("changed"), st.sampled_from(ALGORITHMS), SEEDS),
    st.tuples(st.just("head"), st.sampled_from(ALGORITHMS), SEEDS, st.sampled_from(SIGNED_BY)),
    st.tuples(st.just("text"), st.sampled_from([*ODD_TEXTS, "..", "a.b.c", "." * 9000, "=.=.=", "e30.e30.", "eyJ" * 5000]) | st.text(max_size=90)),
    st.tuples(st.just("text"), st.lists(st.binary(max_size=40).map(base64url), min_size=2, max_size=5).map(".".join)),
)  # fmt: skip
KEYS = st.dictionaries(
    st.sampled_from(["kty", "kid", "alg", "use", "key_ops", "n", "e", "crv", "x", "y", "d", "k", "x5c"]),
    st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "X448", "secp256k1", "sig", "enc", "AQAB", "AA", "", "_w" * 2000, ["verify"], None, 7, *ALGORITHMS]) | JSON,
    max_size=7,
)  # fmt: skip
JWKS = st.one_of(
    st.tuples(st.lists(KEYS | JSON, max_size=4).map(lambda keys: json.dumps({"keys": keys}).encode()), st.none()),
    st.tuples(st.sampled_from([b"", b"{}", b'{"keys":7}', b'{"keys":[' + b"{}," * 200 + b"{}]}", b"[" * 10_000, b'{"keys":' * 5000]), st.none()),
    st.tuples(st.just(b""), SEEDS),
)  # fmt: skip


@cache
def keys() -> dict[str, Key]:
    """Those that are published: one for each algorithm, by its name."""
    return {algorithm: make(algorithm) for algorithm, make in KINDS.items()}


@cache
def wrong_keys() -> dict[str, Key]:
    """Others, of the same names."""
    return {algorithm: make(algorithm) for algorithm, make in KINDS.items()}


class _Judging(Checker):
    """One judge for all cases: what it remembers of one must not let another in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(self._check)
        path = folder / "jwks.json"
        path.write_bytes(jwks(*keys().values()))
        names = {"role_claim": "pointsman_role", "apps_claim": "pointsman_apps", "environments_claim": "pointsman_environments"}
        rules = JwtRules(issuer=ISSUER, audience=AUDIENCE, jwks=str(path), **names)
        known = JwtKeys(rules)
        asyncio.run(known.start())
        self._judge: JwtJudge[Subject] = JwtJudge(rules, known, lambda subject: subject)

    def afterwards(self) -> None:
        """Whoever shows a good one is let in."""
        for algorithm, key in keys().items():
            assert self._judge.caller(signed(key, claims(), algorithm)).subject == "ann"

    def _check(self, case: Any) -> None:
        text = _text(*case)
        for _ in range(2):
            try:
                subject = self._judge.caller(text)
            except (Unauthenticated, PermissionDenied) as error:
                assert 0 < len(error.message) < 1000
                assert error.message.isprintable() or isinstance(error, PermissionDenied)
                continue
            _prove(text, subject)


def _text(kind: str, *made: Any) -> str:
    if kind == "text":
        return str(made[0])
    key = keys()[made[0]]
    if kind == "changed":
        return mutated(signed(key, claims(), made[0]).encode(), made[1]).decode("latin-1")
    if kind == "payload":
        return signed(key, made[1], made[0])
    if kind == "head":
        algorithm, seed, by = made
        head = mutated(json.dumps({"alg": algorithm, "kid": algorithm}).encode(), seed, SPLICES)
        told = f"{base64url(head)}.{base64url(json.dumps(claims()).encode())}"
        return f"{told}.{base64url(_signature(told, algorithm, by))}"
    algorithm, headers, changed, by = made
    header = {"alg": algorithm, "kid": algorithm, "typ": "JWT", **headers}
    payload = {name: value for name, value in {**claims(), **changed}.items() if value is not None}
    told = ".".join(base64url(json.dumps(part).encode()) for part in (header, payload))
    return f"{told}.{base64url(_signature(told, algorithm, by))}"


def _signature(told: str, algorithm: str, by: str) -> bytes:
    """Of these very bytes, whatever they say of themselves."""
    key = keys()[algorithm] if by == "right" else wrong_keys()[algorithm]
    if by == "hmac":
        return hmac.digest(json.dumps(keys()[algorithm].as_dict(private=False)).encode(), told.encode(), hashlib.sha256)
    if by in ("nothing", "noise"):
        return random.Random(told).randbytes(64) if by == "noise" else b""
    private: Any = key.get_op_key("sign")
    data = told.encode()
    if algorithm == "ES256":
        r, s = decode_dss_signature(private.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)
    found: bytes = private.sign(data) if algorithm == "EdDSA" else private.sign(data, _padding(algorithm), SHA256())
    return found


def _padding(algorithm: str) -> Any:
    return padding.PKCS1v15() if algorithm == "RS256" else padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _prove(text: str, subject: Subject) -> None:
    """Raises AssertionError when it should not have been let in."""
    head, payload, signature = text.split(".")
    header, said, raw = json.loads(_decoded(head)), json.loads(_decoded(payload)), _decoded(signature)
    algorithm, data = header["alg"], f"{head}.{payload}".encode()
    # Of the id it names; without one, of the only key for the algorithm.
    kid = header.get("kid")
    assert kid in (None, algorithm)
    public: Any = keys()[algorithm].get_op_key("verify")
    try:
        if algorithm == "ES256":
            public.verify(encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])), data, ec.ECDSA(SHA256()))
        elif algorithm == "EdDSA":
            public.verify(raw, data)
        else:
            public.verify(raw, data, _padding(algorithm), SHA256())
    except InvalidSignature:
        raise AssertionError("it counted without a signature") from None
    assert "crit" not in header or header["crit"] is None
    assert said["iss"] == ISSUER
    assert AUDIENCE in (said["aud"] if isinstance(said["aud"], list) else [said["aud"]])
    assert said["exp"] > NOW
    assert max(said.get("nbf") or 0, said.get("iat") or 0) <= time.time() + 60
    assert subject.subject == said["sub"]
    assert subject.subject.isprintable()
    assert subject.role in ROLES
    role = said["pointsman_role"]
    assert subject.role == (role if isinstance(role, str) else role[0]).upper()
    for name, limits in (("apps", subject.apps), ("environments", subject.environments)):
        given = said.get(f"pointsman_{name}", [])
        assert list(limits) == ([given] if isinstance(given, str) else given)


def check_jwks(case: tuple[bytes, int | None]) -> None:
    """They are keys of the right kinds, or it is no JWKS."""
    data, seed = case
    try:
        found: KeySet = parse(data if seed is None else mutated(jwks(*keys().values()), seed))
    except KeysError as error:
        assert len(str(error)) < 200
        return
    for kid in found.ids:
        for algorithm in (*ALGORITHMS, "none", "HS256"):
            key = found.find(kid, algorithm)
            assert key is None or (algorithm in ALGORITHMS and not key.is_private)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Refusals are told to whoever runs a server."""
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[LogCapture()])
    try:
        yield
    finally:
        structlog.configure(processors=before)


@contextlib.contextmanager
def judging() -> Iterator[Checker]:
    """With keys of its own."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="pointsman-jwts-") as folder:
        yield _Judging(Path(folder))


@contextlib.contextmanager
def reading_keys() -> Iterator[Checker]:
    """Keys that are made before the memory is measured."""
    with _quiet():
        keys()
        yield Checker(check_jwks)


TARGETS = [
    Target(name="jwts", cases=JWTS, opened=judging, share=15_000, pinned=[("made", "RS256", {"crit": None}, {}, "right")]),
    Target(name="jwks", cases=JWKS, opened=reading_keys, share=5_000),
]
