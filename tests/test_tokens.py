"""The secret of a token: its shape, and that what has another is told apart at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.tokens import hash_of, matches, new_secret, secret_of, token_id_of


def test_a_secret_has_an_id_that_may_be_shown_and_a_hash_that_may_be_kept():
    secrets = {new_secret() for _ in range(200)}
    assert len({token_id_of(secret) for secret in secrets}) == 200
    for secret in secrets:
        assert len(secret) == 3 + 16 + 1 + 52
        assert matches(secret, hash_of(secret))
        assert not matches(new_secret(), hash_of(secret))
        assert not matches(secret, b"")
        assert len(hash_of(secret)) == 32


@pytest.mark.parametrize(
    "change", [str.upper, lambda s: s + "a", lambda s: s[:-1], lambda s: s[3:], lambda s: s.replace("_", "-"), lambda s: s + "\n"]
)
def test_what_does_not_look_like_one_has_no_id(change):
    assert token_id_of(change(new_secret())) is None


@given(st.text(max_size=200))
def test_any_text_is_taken(text):
    assert token_id_of(text) is None
    assert isinstance(secret_of(text), str)


@pytest.mark.parametrize(
    ("header", "secret"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("", ""), ("Bearer", ""), ("Bearer ", ""), ("abc", "")],
)
def test_the_header(header, secret):
    assert secret_of(header) == secret
