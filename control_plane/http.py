"""The control plane's HTTP door: whether it lives, whether it is ready, and the console."""

from __future__ import annotations

import uuid
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from control_plane.authority import Authority
from control_plane.console.app import Console
from control_plane.metrics import Metrics
from control_plane.roles import check_method
from control_plane.storage.base import Store
from pointsman.errors import EndpointNotFound, Internal, PointsmanError, Unauthenticated
from pointsman.metrics import CONTENT_TYPE
from pointsman.web_errors import error_body, error_headers

log = structlog.get_logger()

PAGES = ("/livez", "/readyz", "/metrics")


def make_app(store: Store, metrics: Metrics, authority: Authority, console: Console) -> Any:
    """An ASGI app. A refusal is a page for a browser, and has the one JSON shape of errors for everyone else."""

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_request: Request) -> Response:
        """Ready means that the store answers."""
        try:
            await store.read(lambda tx: tx.revision())
        except PointsmanError as error:
            return _refused(error)
        return PlainTextResponse("ready\n")

    async def show_metrics(request: Request) -> Response:
        try:
            caller = authority.caller(request.headers.get("authorization", ""))
            if caller is not None:
                check_method(caller, "ListGateways")
        except PointsmanError as error:
            return _refused(error)
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    async def unknown(request: Request, _error: Exception) -> Response:
        known = request.url.path in PAGES
        what = f"{request.url.path} takes GET, not {request.method}." if known else f"There is no {request.url.path!r} here."
        there = f"There are {', '.join(PAGES)} and the console, /apps; the API is gRPC, on the other port."
        error = EndpointNotFound(f"{what} {there}", endpoint=request.url.path)
        return console.refuse(request, error) if "text/html" in request.headers.get("accept", "") else _refused(error)

    async def broken(request: Request, error: Exception) -> Response:
        request_id = str(uuid.uuid4())
        log.error("request failed", path=request.url.path, request_id=request_id, exc_info=error)
        return _refused(Internal(request_id))

    async def gone(_request: Request, _error: Exception) -> Response:
        """Nobody reads it: the caller has left, or was told already that its request came too slowly."""
        return Response()

    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", show_metrics), *console.routes()]
    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown, ClientDisconnect: gone, Exception: broken})


def _refused(error: PointsmanError) -> Response:
    headers = {key.decode(): value.decode() for key, value in error_headers(error)}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error), error.http_status, headers)
