"""Who the caller is, and the secret that binds a form to the browser it was made for.

The one place that decides whom the history names: every page and every form asks `caller_of`. Who has signed in is known by a cookie that
holds the token's secret, which no script can read and no other site can have sent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from starlette.requests import Request
from starlette.responses import Response

from control_plane.authority import Authority, actor_of
from control_plane.model import Token
from control_plane.service.calls import ANONYMOUS
from pointsman.errors import TooLarge

COOKIE = "pointsman_browser"
TOKEN_COOKIE = "pointsman_token"  # noqa: S105 -- the name of a cookie
SECRET_BYTES = 32
# Browsers keep cookies of 4,096 bytes, name and attributes included.
MAX_SECRET_CHARS = 3_900
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


def caller_of(request: Request, authority: Authority) -> Token | None:
    """Whose token the browser, or another client, shows; None while there are no tokens.

    Raises:
        Unauthenticated: it shows none that counts.
    """
    if authority.is_open:
        return None
    secret = request.cookies.get(TOKEN_COOKIE)
    return authority.owner(secret) if secret else authority.caller(request.headers.get("authorization", ""))


def authorization_of(request: Request) -> str:
    """What the browser, or another client, shows, as an `authorization` header."""
    secret = request.cookies.get(TOKEN_COOKIE)
    return f"Bearer {secret}" if secret else request.headers.get("authorization", "")


def named(caller: Token | None) -> str:
    """The actor of everything that a request does: the same as over gRPC."""
    return ANONYMOUS if caller is None else actor_of(caller)


def check_fits(secret: str) -> None:
    """Raises TooLarge for a JWT that is too long for a cookie: a browser would drop it without a word."""
    if len(secret) > MAX_SECRET_CHARS:
        raise TooLarge("The JWT, which must fit into a cookie,", limit=MAX_SECRET_CHARS, given=len(secret), unit="characters")


def sign_in(response: Response, secret: str, *, secure: bool) -> None:
    """The browser shows this token from now on, until it is closed."""
    response.set_cookie(TOKEN_COOKIE, secret, path="/", httponly=True, samesite="strict", secure=secure)


def sign_out(response: Response) -> None:
    """The browser shows none any more."""
    response.delete_cookie(TOKEN_COOKIE, path="/", httponly=True, samesite="strict")


class Browser:
    """What is known of the browser: a random secret in a cookie that no script can read.

    A form carries a hash of it, so the server keeps nothing and any replica can check a form that another one made.
    """

    def __init__(self, request: Request) -> None:
        given = request.cookies.get(COOKIE, "")
        self._known = bool(_SECRET.fullmatch(given))
        self._secret = given if self._known else secrets.token_urlsafe(SECRET_BYTES)
        self._secure = request.url.scheme == "https"

    @property
    def form_token(self) -> str:
        """For the hidden field of each form."""
        return hmac.new(self._secret.encode(), b"a form of the console", hashlib.sha256).hexdigest()

    def made(self, form_token: str) -> bool:
        """Whether the form was made for this browser."""
        return self._known and hmac.compare_digest(form_token.encode(), self.form_token.encode())

    def remember(self, response: Response) -> None:
        """Sets the cookie where there is none yet."""
        if not self._known:
            response.set_cookie(COOKIE, self._secret, path="/", httponly=True, samesite="strict", secure=self._secure)
