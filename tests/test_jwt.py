"""Which JWTs count, whose, and what they allow; and where their keys come from. Promise 11."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time

import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, RSAKey

from pointsman import jwt_keys
from pointsman.errors import PermissionDenied, Unauthenticated
from pointsman.jwt import JwtError, JwtRules, jwt_rules
from pointsman.jwt_judge import MAX_REMEMBERED, JwtJudge
from pointsman.jwt_keys import JwtKeys, KeysError, parse
from tests.eventually import eventually
from tests.jwt_issuer import AUDIENCE, ISSUER, KINDS, base64url, claims, jwks, signed
from tests.raw_upstream import answer, raw_upstream

EC = KINDS["ES256"]("ec")
RSA = KINDS["RS256"]("rsa")
NOW = time.time()


def rules(where, **changed):
    claim_names = {"role_claim": "pointsman_role", "apps_claim": "pointsman_apps", "environments_claim": "pointsman_environments"}
    return JwtRules(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks": str(where), **claim_names, **changed})


class Clock:
    """time.time(), which a test may move."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture
async def published(tmp_path):
    """The file of keys, and what reads it."""
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(EC, RSA))
    keys = JwtKeys(rules(path))
    await keys.start()
    return path, keys


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def judge(published, clock):
    path, keys = published
    return JwtJudge(rules(path), keys, lambda subject: subject, clock=clock)


def test_one_that_counts_says_who_and_what_it_may(judge):
    subject = judge.caller(signed(EC, claims(pointsman_apps=["shop"], pointsman_environments="staging", pointsman_role=["deployer"])))
    assert (subject.identity, subject.role) == ("jwt:ann", "DEPLOYER")
    assert (subject.apps, subject.environments) == (("shop",), ("staging",))
    unlimited = judge.caller(signed(EC, claims(aud=["other", AUDIENCE], exp=10**400, pointsman_role="Viewer")))
    assert (unlimited.apps, unlimited.environments, unlimited.role) == ((), (), "VIEWER")


@pytest.mark.parametrize("algorithm", KINDS)
async def test_every_algorithm_of_the_list_counts(tmp_path, algorithm):
    key = KINDS[algorithm]("k")
    (tmp_path / "jwks").write_bytes(jwks(key))
    keys = JwtKeys(rules(tmp_path / "jwks"))
    await keys.start()
    judge = JwtJudge(rules(tmp_path / "jwks"), keys, lambda subject: subject)
    assert judge.caller(signed(key, claims(), algorithm)).subject == "ann"
    # The only key for its algorithm needs no name.
    assert judge.caller(signed(key, claims(), algorithm, kid=None)).subject == "ann"


def by_hand(header, payload, signature=b""):
    return ".".join(base64url(part) for part in (json.dumps(header).encode(), json.dumps(payload).encode(), signature))


def confused():
    """Signed with HMAC, by the public key as the secret that it is not."""
    told = by_hand({"alg": "HS256", "kid": "rsa"}, claims()).rpartition(".")[0]
    return f"{told}.{base64url(hmac.digest(RSA.as_pem(private=False), told.encode(), hashlib.sha256))}"


def tampered():
    head, _, signature = signed(EC, claims(pointsman_role="viewer")).split(".")
    return f"{head}.{base64url(json.dumps(claims()).encode())}.{signature}"


FORGED = {
    "no algorithm": lambda: by_hand({"alg": "none", "kid": "ec"}, claims()),
    "none in other letters": lambda: by_hand({"alg": "nOnE"}, claims(), b"x"),
    "a shared secret": confused,
    "another's key of the same name": lambda: signed(KINDS["ES256"]("ec"), claims()),
    "a key of an unknown name": lambda: signed(KINDS["ES256"]("other"), claims()),
    "a key that it brings along": lambda: signed(key := KINDS["ES256"]("ec"), claims(), jwk=key.as_dict(private=False)),
    "a key for another algorithm": lambda: signed(RSA, claims(), "RS256", kid="ec"),
    "an algorithm that is not on the list": lambda: signed(RSA, claims(), "RS512"),
    "another payload": tampered,
    "no signature": lambda: signed(EC, claims()).rpartition(".")[0] + ".",
    "another issuer": lambda: signed(EC, claims(iss="https://elsewhere.example.com")),
    "another audience": lambda: signed(EC, claims(aud="elsewhere")),
    "no audience": lambda: signed(EC, claims(aud=None)),
    "an audience that is a part": lambda: signed(EC, claims(aud=[AUDIENCE + "x", AUDIENCE[:-1]])),
    "no end": lambda: signed(EC, claims(exp=None)),
    "an end in words": lambda: signed(EC, claims(exp="never")),
    "nobody": lambda: signed(EC, claims(sub=None)),
    "a name with a line break": lambda: signed(EC, claims(sub="ann\nok")),
    "a name without end": lambda: signed(EC, claims(sub="a" * 300)),
    "critical extensions": lambda: signed(EC, claims(), crit=["b64"], b64=False),
    "critical extensions that are null": lambda: by_hand({"alg": "ES256", "kid": "ec", "crit": None}, claims(), b"x" * 64),
    "another kind of thing": lambda: signed(EC, claims(), typ="dpop+jwt"),
    "no object": lambda: signed(EC, b"[1]"),
    "no JSON": lambda: signed(EC, b"\xff{"),
    "nesting": lambda: signed(EC, b'{"a":' + b"[" * 3000),
    "a nested header": lambda: base64url(b'{"a":' + b"[" * 3000) + ".e30.e30",
    "no base64": lambda: "!!!.???.###",
    "empty parts": lambda: "..",
}


@pytest.mark.parametrize("kind", FORGED)
def test_what_does_not_count_is_not_told_why(judge, kind):
    with pytest.raises(Unauthenticated) as refusal:
        judge.caller(FORGED[kind]())
    assert (
        refusal.value.message
        == "The JWT that was shown does not count here; get one of the issuer that this server trusts, made for this server."
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: signed(EC, claims(exp=NOW - 1)), "has expired"),
        (lambda: signed(EC, claims(nbf=NOW + 3600)), "not valid yet"),
        (lambda: signed(EC, claims(iat=NOW + 3600)), "not valid yet"),
        (lambda: signed(EC, claims(more="x" * 9000)), "characters; at most 8192"),
        (lambda: "a.b", "neither a token"),
        (lambda: "a.b.c.d.e", "neither a token"),
        (lambda: "ä.b.c", "neither a token"),
    ],
)
def test_what_its_owner_can_repair_is_told(judge, make, words):
    with pytest.raises(Unauthenticated, match=words):
        judge.caller(make())


def test_a_clock_that_is_a_little_ahead_is_no_matter(judge):
    assert judge.caller(signed(EC, claims(nbf=NOW + 20, iat=NOW + 20))).subject == "ann"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pointsman_role": None}, "there is none"),
        ({"pointsman_role": "root"}, "'root' is no role"),
        ({"pointsman_role": ["admin", "viewer"]}, "there is none"),
        ({"pointsman_role": "role_unspecified"}, "is no role"),
        ({"pointsman_apps": []}, "'pointsman_apps' must be an id or a list of ids"),
        ({"pointsman_apps": ["shop", 7]}, "'pointsman_apps' must be"),
        ({"pointsman_environments": {"staging": True}}, "'pointsman_environments' must be"),
        ({"pointsman_environments": "*"}, "'pointsman_environments' must be"),
    ],
)
def test_a_limit_or_a_role_that_cannot_be_read_allows_nothing(judge, changed, words):
    with pytest.raises(PermissionDenied, match=words):
        judge.caller(signed(EC, claims(**changed)))


async def test_the_claims_may_have_other_names(published):
    path, keys = published
    judge = JwtJudge(rules(path, role_claim="https://a.example.com/role"), keys, lambda subject: subject)
    subject = judge.caller(signed(EC, claims(pointsman_role="admin", **{"https://a.example.com/role": "viewer"})))
    assert subject.role == "VIEWER"


def test_one_that_is_remembered_ends_with_its_time(judge, clock):
    text = signed(EC, claims())
    assert judge.caller(text) is judge.caller(text)
    clock.ahead = 3601
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="has expired"):
            judge.caller(text)


async def test_one_that_is_remembered_ends_with_its_key(tmp_path, published, judge, monkeypatch):
    monkeypatch.setattr(jwt_keys._File, "seconds", 0.02)
    path, keys = published
    text, newer = signed(EC, claims()), KINDS["ES256"]("newer")
    judge.caller(text)
    async with refreshing(keys):
        path.write_bytes(jwks(newer))
        await eventually(lambda: keys.generation == 2)
        with pytest.raises(Unauthenticated, match="does not count"):
            judge.caller(text)
        assert judge.caller(signed(newer, claims())).subject == "ann"


def test_the_memory_is_bounded(judge, monkeypatch):
    monkeypatch.setattr("pointsman.jwt_judge.MAX_REMEMBERED", 2)
    assert MAX_REMEMBERED > 2
    texts = [signed(EC, claims(sub=name)) for name in "abc"]
    first = [judge.caller(text) for text in texts]
    again = [judge.caller(text) for text in reversed(texts)]
    assert [one is other for one, other in zip(first, reversed(again), strict=True)] == [False, True, True]


@contextlib.asynccontextmanager
async def refreshing(keys):
    task = asyncio.create_task(keys.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"[" * 100_000, json.dumps({"keys": [{}] * 101}).encode()])
def test_what_is_no_set_of_keys(data):
    with pytest.raises(KeysError, match="it is no JWKS"):
        parse(data)


def test_keys_that_are_of_no_use_take_no_others_with_them():
    with pytest.warns(SecurityWarning):
        short = RSAKey.generate_key(1024, {"kid": "short"})
    other_curve = ECKey.generate_key("P-384", {"kid": "curve"})
    shared = {"kty": "oct", "kid": "shared", "k": base64.b64encode(b"x" * 32).decode()}
    public = EC.as_dict(private=False)
    entries = [
        short.as_dict(private=False),
        other_curve.as_dict(private=False),
        shared,
        {**public, "kid": "broken", "x": "AAAA"},
        {**public, "kid": "for secrets", "use": "enc"},
        {**public, "kid": "to sign", "key_ops": ["sign"]},
        {**public, "kid": "other", "alg": "ES512"},
        "no key",
        None,
        {"kid": 7},
        public,
    ]
    assert parse(json.dumps({"keys": entries}).encode()).ids == ["ec"]


def test_of_two_keys_with_one_name_none_counts():
    found = parse(jwks(KINDS["ES256"]("same"), KINDS["ES256"]("same")))
    assert found.find("same", "ES256") is None
    assert found.find(None, "ES256") is None


async def test_keys_of_a_url_are_fetched_anew_for_a_name_that_is_not_known(monkeypatch):
    monkeypatch.setattr(jwt_keys, "RETRY_SECONDS", 0.05)
    older, newer = KINDS["ES256"]("older"), KINDS["ES256"]("newer")
    async with raw_upstream(jwks=answer(jwks(older))) as upstream:
        where = rules(f"{upstream.url}/jwks")
        keys = JwtKeys(where)
        await keys.start()
        judge = JwtJudge(where, keys, lambda subject: subject)
        async with refreshing(keys):
            assert judge.caller(signed(older, claims())).subject == "ann"
            upstream.answers["jwks"] = answer(jwks(older, newer))

            def counts():
                with contextlib.suppress(Unauthenticated):
                    return judge.caller(signed(newer, claims()))
                return None

            assert counts() is None
            await eventually(counts)
            for broken in (
                answer(b"", status="500 No"),
                answer(b"", status=f"302 Found\r\nlocation: {upstream.url}/other"),
                answer(b"{}"),
                answer(b"x" * (jwt_keys.MAX_JWKS_BYTES + 1)),
                b"",
            ):
                upstream.answers["jwks"] = broken
                asked = upstream.requests
                with pytest.raises(Unauthenticated):
                    judge.caller(signed(KINDS["ES256"]("unknown"), claims()))
                # The second one was asked for when the first had been looked at.
                await eventually(lambda asked=asked: upstream.requests > asked + 1)
                # Those from before go on.
                assert judge.caller(signed(newer, claims())).subject == "ann"


async def test_an_issuer_that_is_not_there_yet_stops_no_server(monkeypatch):
    monkeypatch.setattr(jwt_keys, "RETRY_SECONDS", 0.05)
    async with raw_upstream(jwks=answer(b"", status="503 Later")) as upstream:
        where = rules(f"{upstream.url}/jwks")
        keys = JwtKeys(where)
        await keys.start()
        judge = JwtJudge(where, keys, lambda subject: subject)
        with pytest.raises(Unauthenticated, match="could not read the keys of JWTs yet"):
            judge.caller(signed(EC, claims()))
        upstream.answers["jwks"] = answer(jwks(EC))
        async with refreshing(keys):
            await eventually(lambda: keys.known)
        assert judge.caller(signed(EC, claims())).subject == "ann"


async def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path):
    with pytest.raises(JwtError, match=r"--jwt-jwks .*: No such file"):
        await JwtKeys(rules(tmp_path / "none")).start()
    (tmp_path / "no").write_text("no")
    with pytest.raises(JwtError, match="it is no JWKS"):
        await JwtKeys(rules(tmp_path / "no")).start()


GIVEN = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "https://a.example.com/jwks", "claims": ("r", "a", "e"), "insecure": False}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"audience": ""}, "JWTs need --jwt-audience too"),
        ({"issuer": "", "jwks": ""}, "JWTs need --jwt-issuer and --jwt-jwks too"),
        ({"claims": ("r", "r", "e")}, "three different names"),
        ({"claims": ("r", "", "e")}, "three different names"),
        ({"jwks": "http://a.example.com/jwks"}, "take https, a file, or start with --insecure"),
        ({"jwks": "ftp://a.example.com/jwks"}, "neither a file nor a URL"),
        ({"jwks": "https://"}, "neither a file nor a URL"),
        ({"jwks": "https://a:b@a.example.com/"}, "a JWKS is public"),
        ({"jwks": "https://a.example.com:x/"}, "is no URL"),
    ],
)
def test_settings_that_cannot_be_used(changed, words):
    with pytest.raises(JwtError, match=words):
        jwt_rules(**{**GIVEN, **changed})


def test_settings_that_can():
    assert jwt_rules(**{**GIVEN, "issuer": "", "audience": "", "jwks": ""}) is None
    for where, insecure in (("http://127.0.0.1:80/jwks", False), ("http://a.example.com/jwks", True), ("/etc/jwks.json", False)):
        assert jwt_rules(**{**GIVEN, "jwks": where, "insecure": insecure}).jwks == where
