"""Names in a question that there are not, told where nothing was found. Filters take any name, since executions outlive what they name."""

from __future__ import annotations

from typing import Any

import click
import grpc

from control_plane.cli.client import Connection, metadata
from pointsman.v1 import apps_pb2, apps_pb2_grpc, environments_pb2, environments_pb2_grpc, releases_pb2, releases_pb2_grpc

CALL_SECONDS = 5.0


def tell_doubts(connection: Connection, app: str, environment: str = "", release: str = "") -> None:
    """On stderr, a line for each; an empty name is none that was asked for. A release is looked for where its app is named."""
    asked: list[tuple[Any, Any]] = []
    if app:
        asked.append((apps_pb2_grpc.AppServiceStub(connection.channel).GetApp, apps_pb2.GetAppRequest(app=app)))
    if environment:
        environments = environments_pb2_grpc.EnvironmentServiceStub(connection.channel)
        asked.append((environments.GetEnvironment, environments_pb2.GetEnvironmentRequest(environment=environment)))
    if release and app:
        releases = releases_pb2_grpc.ReleaseServiceStub(connection.channel)
        asked.append((releases.GetRelease, releases_pb2.GetReleaseRequest(app=app, tag=release)))
    for method, request in asked:
        try:
            method(request, timeout=CALL_SECONDS, metadata=metadata())
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is not grpc.StatusCode.NOT_FOUND:
                connection.fail(error)
            click.echo(f"pointsman: {failed.details()}", err=True)
