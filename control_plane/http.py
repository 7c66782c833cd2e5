"""The control plane's HTTP door: whether it lives, and whether it is ready."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from control_plane.storage.base import Store
from pointsman.errors import PointsmanError
from pointsman.web import error_body, error_headers


def make_app(store: Store) -> Any:
    """An ASGI app."""

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_request: Request) -> Response:
        """Ready means that the store answers."""
        try:
            await store.read(lambda tx: tx.revision())
        except PointsmanError as error:
            headers = {key.decode(): value.decode() for key, value in error_headers(error)}
            return Response(error_body(error), error.http_status, headers)
        return PlainTextResponse("ready\n")

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz)])
