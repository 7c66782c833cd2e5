"""The console's routes, and the door that every one of them goes through: who may come in, what refusals look like."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from control_plane.console.apps import AppPages
from control_plane.console.audit import AuditPage
from control_plane.console.changes import ChangePages
from control_plane.console.compare import ComparePage
from control_plane.console.draft import MAX_DRAFT_FORM_BYTES, DraftPage
from control_plane.console.editor import EditorPages
from control_plane.console.environments import EnvironmentPages
from control_plane.console.executions import ExecutionPages
from control_plane.console.gateways import GatewaysPage
from control_plane.console.pages import Pages
from control_plane.console.parts import Parts
from control_plane.console.pruning import PrunePage
from control_plane.console.releases import ReleasePages
from control_plane.console.rollouts import Rollouts
from control_plane.console.session import Browser, caller_of
from control_plane.console.shared_environments import SharedEnvironmentPages
from control_plane.console.signing import SigningPages
from control_plane.console.summary import SummaryPages
from control_plane.console.together import TogetherPages
from control_plane.console.tokens import TokenPages
from control_plane.console.trying import MAX_FORM_BYTES as MAX_TRIGGER_FORM_BYTES
from control_plane.console.trying import TryPages
from control_plane.console.visit import MAX_FORM_BYTES, Visit, read_form, with_query
from control_plane.model import Token
from control_plane.roles import check_method, check_place
from pointsman.errors import EndpointNotFound, Internal, PermissionDenied, PointsmanError, Unauthenticated

log = structlog.get_logger()

Handler = Callable[[Visit], Awaitable[Response]]


class Page(msgspec.Struct, frozen=True):
    """A path, what shows it, and what takes its form."""

    path: str
    show: Handler
    take: Handler | None = None
    max_form_bytes: int = MAX_FORM_BYTES


class Console:
    """All pages. `hosts` are the names, divided by commas, by which browsers may reach it, beside localhost and addresses."""

    def __init__(self, parts: Parts, hosts: str) -> None:
        self._pages = Pages(parts.clock, parts.terminal)
        self._authority = parts.authority
        self._audit = parts.audit
        signing = SigningPages(parts)
        self._signing = [Page("/sign-in", signing.show, signing.take), Page("/sign-out", signing.show, signing.leave)]
        self._hosts = {host.strip().lower() for host in hosts.split(",")}
        rollouts = Rollouts(parts)
        apps, releases, compare = AppPages(parts), ReleasePages(parts, rollouts), ComparePage(parts)
        environments, gateways, prune = EnvironmentPages(parts, rollouts), GatewaysPage(parts), PrunePage(parts)
        changes, draft = ChangePages(parts, rollouts), DraftPage(parts)
        editor, together = EditorPages(parts), TogetherPages(parts, rollouts)
        executions, summary = ExecutionPages(parts), SummaryPages(parts)
        trying = TryPages(parts)
        tokens, shared = TokenPages(parts), SharedEnvironmentPages(parts)
        self._all = [
            Page("/apps", apps.list, apps.create),
            Page("/deploy", together.show, together.take),
            Page("/deploy/{environment}/{revision}", together.one),
            Page("/deploy/{environment}/{revision}/rollout", together.rollout),
            Page("/apps/{app}/releases", releases.list, releases.create),
            Page("/apps/{app}/new-release", releases.new),
            Page("/apps/{app}/check-tag", releases.check),
            Page("/apps/{app}/releases/{tag}", releases.snapshot),
            Page("/apps/{app}/prune", prune.show, prune.prune),
            Page("/apps/{app}/compare", compare.show),
            Page("/apps/{app}/environments", environments.list),
            Page("/apps/{app}/environments/{environment}", environments.one),
            Page("/apps/{app}/environments/{environment}/rollout", environments.rollout),
            Page("/apps/{app}/deploy", changes.show_deploy, changes.deploy),
            Page("/apps/{app}/promote", changes.show_promote, changes.promote),
            Page("/apps/{app}/rollback", changes.show_rollback, changes.rollback),
            Page("/apps/{app}/draft", draft.show, draft.save, MAX_DRAFT_FORM_BYTES),
            Page("/apps/{app}/editor", editor.show),
            Page("/apps/{app}/editor/change", editor.show, editor.change),
            Page("/apps/{app}/editor/form", editor.form, editor.save, MAX_DRAFT_FORM_BYTES),
            Page("/apps/{app}/changes", editor.changes),
            Page("/apps/{app}/executions", executions.list),
            Page("/apps/{app}/executions/tail", executions.tail),
            Page("/apps/{app}/executions/{execution}", executions.one),
            Page("/apps/{app}/try", trying.show, trying.send, MAX_TRIGGER_FORM_BYTES),
            Page("/apps/{app}/summary", summary.show),
            Page("/apps/{app}/reports/{deployment}", summary.report),
            Page("/environments", shared.list, shared.create),
            Page("/environments/{environment}", shared.show, shared.change),
            Page("/environments/{environment}/delete", shared.show, shared.delete),
            Page("/gateways", gateways.show, gateways.rebalance),
            Page("/audit", AuditPage(parts).list),
            Page("/tokens", tokens.list, tokens.create),
            Page("/tokens/{token}", tokens.show, tokens.revoke),
        ]

    def routes(self) -> list[Route]:
        """For the HTTP server."""
        routes = [Route("/", _home), Route("/apps/{app}", _app_home), Route("/static/{name}", self._static)]
        pages = [(page, True) for page in self._all] + [(page, False) for page in self._signing]
        return routes + [
            Route(page.path, self._door(page, is_closed=is_closed), methods=["GET", "POST"] if page.take else ["GET"])
            for page, is_closed in pages
        ]

    def refuse(self, request: Request, error: PointsmanError) -> Response:
        """The page of an error that no other page shows."""
        return Visit(request, self._pages, Browser(request), {}).error(error)

    def _door(self, page: Page, *, is_closed: bool) -> Callable[[Request], Awaitable[Response]]:
        async def come_in(request: Request) -> Response:
            browser = Browser(request)
            visit = Visit(request, self._pages, browser, {})
            try:
                self._check_host(request)
                caller = self._admit(request) if is_closed else None
                visit = Visit(request, self._pages, browser, {}, caller)
                if request.method == "POST" and page.take is not None:
                    _check_origin(request)
                    visit = Visit(request, self._pages, browser, await read_form(request, page.max_form_bytes), caller)
                    response = await page.take(visit)
                else:
                    response = await page.show(visit)
            except Unauthenticated as error:
                visit.problem = error
                response = self._ask_to_sign_in(request, browser, error)
            except PointsmanError as error:
                response = visit.error(error)
            except Exception:
                request_id = str(uuid.uuid4())
                log.exception("page failed", path=request.url.path, request_id=request_id)
                response = visit.error(Internal(request_id))
            if request.method == "POST" and visit.problem is not None:
                self._note_refusal(visit, visit.problem)
            browser.remember(response)
            return response

        return come_in

    def _note_refusal(self, visit: Visit, problem: PointsmanError) -> None:
        """For the audit log: a change that was refused, and a form that nobody may send. Others are only to be filled in better."""
        if visit.wish is not None or isinstance(problem, PermissionDenied | Unauthenticated):
            self._audit.refused(visit.refused(), problem)

    def _admit(self, request: Request) -> Token | None:
        """Whose token is shown, if it may look at what the path names; None while there are no tokens.

        Raises:
            Unauthenticated: it shows none that counts.
            PermissionDenied: it is not for reading, or not for this app or environment.
        """
        caller = caller_of(request, self._authority)
        if caller is not None:
            check_method(caller, "ListReleases")
            check_place(caller, request.path_params.get("app", ""), request.path_params.get("environment", ""))
        return caller

    def _ask_to_sign_in(self, request: Request, browser: Browser, error: Unauthenticated) -> Response:
        """A form that was sent is not lost: the browser has it still, one page back."""
        if request.method == "GET":
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(with_query("/sign-in", next=wanted), 303)
        return Visit(request, self._pages, browser, {}).page("sign_in.html", problem=error, tab="", next="/apps")

    def _check_host(self, request: Request) -> None:
        """A name that somebody else points at our address (DNS rebinding) is not ours.

        Raises:
            PermissionDenied: when the browser was led here by such a name.
        """
        host = (request.url.hostname or "").lower()
        if host in self._hosts or host == "localhost" or host.endswith(".localhost") or _is_address(host):
            return
        raise PermissionDenied(
            f"This console is not served under the name {host!r}. Use an address or localhost, or start the control plane with "
            f"--console-hosts {host}.",
            host=host,
        )

    async def _static(self, request: Request) -> Response:
        found = self._pages.static(request.path_params["name"])
        return found or self.refuse(request, EndpointNotFound(f"There is no file {request.url.path!r}.", endpoint=request.url.path))


async def _home(_request: Request) -> Response:
    return RedirectResponse("/apps", 303)


async def _app_home(request: Request) -> Response:
    return RedirectResponse(f"{request.url.path}/releases", 303)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _check_origin(request: Request) -> None:
    """A form comes from a page of ours. Raises PermissionDenied."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
    if not own or site not in ("same-origin", "none"):
        raise PermissionDenied(
            f"The form came from {origin or site}, not from this console, so nothing was changed. Open the console and do it there.",
            origin=origin or site,
        )
