"""One request to the console: what was typed, who asks, and the only way to a `Call` that may change something."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from control_plane.authority import Authority
from control_plane.console.pages import SECURITY_HEADERS, Pages
from control_plane.console.session import Browser, authorization_of, caller_of, named
from control_plane.model import Attempt, Role, Token
from control_plane.roles import check_method, check_place
from control_plane.roles import check_request as check_request_of
from control_plane.service.calls import Call, attempt_of, fingerprint_of
from pointsman.errors import AppNotFound, InvalidField, PermissionDenied, PointsmanError, TooLarge, Violation
from pointsman.rules import check_request

MAX_FORM_BYTES = 64 * 1024
MAX_FORM_FIELDS = 100
CHECK_ON_THREAD_BYTES = 16 * 1024
FORM_TOKEN = "form_token"  # noqa: S105 -- the name of a field
# The field of a form that an error is about, where the error names no field.
_FIELD_OF = {"APP_EXISTS": "app", "RELEASE_CONFLICT": "tag"}


class Problem(msgspec.Struct, frozen=True):
    """A refusal as a page shows it: the sentence on top, and for each field what is wrong with it."""

    error: PointsmanError

    @property
    def message(self) -> str:
        """What, which value, what to do."""
        return self.error.message

    @property
    def reason(self) -> str:
        """E.g. `RELEASE_CONFLICT`."""
        return self.error.reason_name

    def of(self, field: str) -> str:
        """What is wrong with this field, empty when nothing is."""
        if _FIELD_OF.get(self.reason) == field:
            return self.message
        return "; ".join(violation.description for violation in self.error.violations if violation.field == field)


def path(*parts: str) -> str:
    """A path of the console; parts are escaped."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def with_query(where: str, **query: object) -> str:
    """A path with a query, without what is empty."""
    kept = {key: str(value) for key, value in query.items() if value not in ("", None)}
    return f"{where}?{urlencode(kept)}" if kept else where


class Visit:
    """What a page's handler is given."""

    def __init__(self, request: Request, pages: Pages, browser: Browser, form: Mapping[str, str], caller: Token | None = None) -> None:
        """`caller` is whose token is shown; None while there are no tokens."""
        self._request = request
        self._caller = caller
        self._pages = pages
        self._browser = browser
        self._form = form
        self.actor = named(caller)
        self.wish: Attempt | None = None
        """What the form was to change, once that is known; for the audit log."""
        self.problem: PointsmanError | None = None
        """What the page that was made told."""

    def part(self, name: str) -> str:
        """A part of the path, without the zeros that PostgreSQL does not take."""
        return str(self._request.path_params[name]).replace("\0", "")

    def asked(self, name: str) -> str:
        """A value of the query, without surrounding spaces, and without the zeros that PostgreSQL does not take."""
        return self._request.query_params.get(name, "").replace("\0", "").strip()

    def asked_each(self, prefix: str) -> dict[str, str]:
        """The values of the query whose names begin so, by the rest of their names; without those that are empty."""
        names = [name for name in self._request.query_params if name.startswith(prefix)]
        return {name.removeprefix(prefix): value for name in names if (value := self.asked(name))}

    def typed(self, name: str, default: str = "") -> str:
        """A field of the form, without surrounding spaces."""
        return self._form.get(name, default).strip()

    def text(self, name: str) -> str:
        """A field of the form as it is."""
        return self._form.get(name, "")

    def number(self, name: str, given: str | None = None) -> int | None:
        """A whole number of the form, or the one that is given; None when the field is absent or empty. Raises InvalidField."""
        given = self.typed(name) if given is None else given
        if given and not re.fullmatch(r"[0-9]{1,18}", given):
            raise InvalidField([Violation(name, f"{given[:40]!r} is not a whole number")])
        return int(given) if given else None

    @property
    def is_secure(self) -> bool:
        """Whether the browser came by https."""
        return self._request.url.scheme == "https"

    @property
    def is_of_this_browser(self) -> bool:
        """Whether the form was made for it."""
        return self._browser.made(self.text(FORM_TOKEN))

    def command(self, *words: str) -> str:
        """The `pointsman` command with these words, which asks this control plane wherever it is pasted."""
        return self._pages.terminal.command(self._host, *words)

    def grpcurl(self, method: str, request: Mapping[str, Any]) -> str:
        """The call of an RPC such as `DeploymentService/Deploy` by grpcurl."""
        return self._pages.terminal.grpcurl(self._host, method, request, token=self._caller is not None)

    @property
    def _host(self) -> str:
        return self._request.url.hostname or "localhost"

    async def call(self, request: Message) -> Call:
        """Leave to do what a form asked for. The request is the one that the same wish over gRPC would be, and is checked as there.

        Raises:
            PermissionDenied: when the form was not made for this browser, or the token does not allow this.
            InvalidField: with every rule that the request breaks.
        """
        self.wish = attempt_of(request, actor=self.actor, token_id=self._token_id, peer=self._peer)
        self.check_form()
        await self.check(request)
        request_id = self.typed("request_id")
        fingerprint = fingerprint_of(request) if request_id else ""
        return Call(actor=self.actor, request_id=request_id, fingerprint=fingerprint, attempt=self.wish)

    def refused(self) -> Attempt:
        """What was refused: what the form was to change, or where it was sent before that was known."""
        where = json.dumps({"path": self._request.url.path})
        return self.wish or Attempt(actor=self.actor, token_id=self._token_id, peer=self._peer, method="console", detail=where)

    @property
    def _token_id(self) -> str:
        return self._caller.token_id if self._caller is not None else ""

    @property
    def _peer(self) -> str:
        client = self._request.client
        return f"{client.host}:{client.port}" if client is not None else ""

    def check_form(self) -> None:
        """Raises PermissionDenied when the form was not made for this browser."""
        if self._request.method != "POST" or not self.is_of_this_browser:
            raise PermissionDenied(
                "This form was not made for this browser session, so nothing was changed: its cookie is missing or another. "
                "What you typed is still here; send it again, with cookies allowed.",
                actor=self.actor,
            )

    async def check(self, request: Message) -> None:
        """Whether the request, sent over gRPC, would be let in.

        Raises:
            PermissionDenied: the token does not allow it.
            InvalidField: with every rule that it breaks.
        """
        large = request.ByteSize() > CHECK_ON_THREAD_BYTES
        violations = await asyncio.to_thread(check_request, request) if large else check_request(request)
        if violations:
            raise InvalidField(violations)
        if self._caller is not None:
            method = type(request).__name__.removesuffix("Request")
            check_method(self._caller, method)
            check_request_of(self._caller, method, request)

    def check_method(self, method: str) -> None:
        """Raises PermissionDenied when the token's role may not call it."""
        if self._caller is not None:
            check_method(self._caller, method)

    def check_place(self, app: str, environment: str) -> None:
        """Raises PermissionDenied when the token is not for it; an empty environment is not asked about."""
        if self._caller is not None:
            check_place(self._caller, app, environment)

    def check_still_in(self, authority: Authority) -> None:
        """For what goes on for long. Raises Unauthenticated when the token has ended meanwhile."""
        caller_of(self._request, authority)

    def authorization(self, authority: Authority) -> str:
        """For a call elsewhere in the name of who asks; empty while there are no tokens."""
        return authorization_of(self._request) if not authority.is_open else ""

    @property
    def role(self) -> Role | None:
        """Of the token that is shown; None while there are no tokens."""
        return self._caller.role if self._caller is not None else None

    @property
    def wants_events(self) -> bool:
        """Whether the answer shall come as server-sent events."""
        return "text/event-stream" in self._request.headers.get("accept", "")

    def is_of_token(self, token_id: str) -> bool:
        """Whether this is the token that is shown."""
        return self._caller is not None and self._caller.token_id == token_id

    @property
    def own_environments(self) -> tuple[str, ...]:
        """Those that the token is for; empty: all."""
        return self._caller.environments if self._caller is not None else ()

    def preview(self) -> Call:
        """Asks what would happen; changes nothing."""
        return Call(actor=self.actor, validate_only=True)

    def page(self, template: str, *, status: int = 200, problem: PointsmanError | None = None, **shown: Any) -> Response:
        """A page; with a problem it has that one's status. `again`: where the page of a form that was sent is, without sending it."""
        common = {
            "form_token": self._browser.form_token,
            "actor": self.actor,
            "signed_in": self._caller is not None,
            "is_admin": self._caller is None or self._caller.role is Role.ADMIN,
            "new_request_id": lambda: str(uuid.uuid4()),
            "command": self.command,
            "server": self._pages.terminal.server(self._host),
            "again": "" if self._request.method == "GET" else self._request.url.path,
        }
        self.problem = problem
        told = None if problem is None else Problem(problem)
        return self._pages.respond(template, status if problem is None else problem.http_status, problem=told, **(common | shown))

    def error(self, problem: PointsmanError) -> Response:
        """The page of an error that no other page shows, with the way back to the app that it is about."""
        app = "" if isinstance(problem, AppNotFound | PermissionDenied) else self._request.path_params.get("app", "")
        return self.page("error.html", problem=problem, app=app)

    def fragment(self, template: str, **shown: Any) -> str:
        """Part of a page, for the script that shows what changes."""
        return self._pages.render(template, form_token=self._browser.form_token, **shown)

    @staticmethod
    def stream(events: AsyncIterator[str]) -> Response:
        """Server-sent events, as they come."""
        headers = SECURITY_HEADERS | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    @staticmethod
    def to(where: str) -> Response:
        """Elsewhere, by GET: a reload repeats nothing."""
        return RedirectResponse(where, status_code=303)


async def read_form(request: Request, limit: int) -> dict[str, str]:
    """The fields of an urlencoded form, with line feeds alone for line ends.

    Raises:
        InvalidField: when it is no such form.
        TooLarge: when it has more than `limit` bytes.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidField([Violation("content-type", f"{kind!r} is not taken; send a form, application/x-www-form-urlencoded")])
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge("The form", limit=limit, given=f"more than {limit}")
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidField([Violation("", f"the form cannot be read: {error}")]) from error
    return {name: value.replace("\r\n", "\n").replace("\0", "") for name, value in fields}
