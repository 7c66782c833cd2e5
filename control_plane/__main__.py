"""Starts a control plane: the only place where its parts are put together. `pointsman control-plane` runs this."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import click
import msgspec

from control_plane.authority import Authority, token_of
from control_plane.config import Settings
from control_plane.console.app import Console
from control_plane.console.gateway_door import GatewayDoor
from control_plane.console.parts import Parts
from control_plane.console.terminal import Terminal
from control_plane.gateways import Gateways
from control_plane.http import make_app
from control_plane.hub import Hub
from control_plane.metrics import Metrics
from control_plane.rpc.apps import AppServicer
from control_plane.rpc.audit import AuditServicer, Refusals
from control_plane.rpc.authorisation import Authorisation
from control_plane.rpc.deployments import DeploymentServicer
from control_plane.rpc.environments import EnvironmentServicer
from control_plane.rpc.executions import ExecutionServicer
from control_plane.rpc.gateways import GatewayServicer
from control_plane.rpc.releases import ReleaseServicer
from control_plane.rpc.tokens import TokenServicer
from control_plane.service.apps import Apps
from control_plane.service.audit import Audit
from control_plane.service.calls import utc_now
from control_plane.service.deployments import Deployments
from control_plane.service.environments import Environments
from control_plane.service.executions import Executions
from control_plane.service.past import Past
from control_plane.service.releases import Releases
from control_plane.service.retention import Retention
from control_plane.service.tokens import Tokens, bootstrap
from control_plane.storage import CannotOpenStore, ExecutionStore, open_executions, open_peers, open_store
from control_plane.storage.base import Store
from control_plane.sweeper import Sweeper
from control_plane.tail import Tail
from pointsman.asgi import asgi
from pointsman.jwt import open_jwts
from pointsman.process import run
from pointsman.serving import GrpcServer, StartupError
from pointsman.settings import is_loopback, settings_options
from pointsman.tls import ServerTls, client_tls, server_tls
from pointsman.v1 import (
    apps_pb2,
    apps_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    executions_pb2,
    executions_pb2_grpc,
    gateways_pb2,
    gateways_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from pointsman.web import HttpServer

# All gateways may share one token.
OF_GATEWAYS = [f"/pointsman.v1.GatewayService/{method}" for method in ("Sync", "FetchSnapshot", "ReportExecutions")]


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serves until stop is set; then drains: health first, watchers and gateways next, running calls, the store last."""
    async with contextlib.AsyncExitStack() as closing:
        tls = _open_tls(settings, closing)
        try:
            store = await open_store(settings.store)
        except CannotOpenStore as error:
            raise StartupError(str(error)) from error
        closing.push_async_callback(store.close)
        kept = await _open_executions(settings, store.store_id, closing)
        if settings.bootstrap_token_file is not None:
            await _bootstrap(store, settings.bootstrap_token_file)
        hub = Hub(store)
        await hub.start()
        closing.push_async_callback(hub.close)

        peers = open_peers(settings.store, store.store_id)
        gateways = Gateways(utc_now, settings.prepare_timeout_seconds, peers)
        # Before anyone can call: from the first deploy on, each asks the gateways of all.
        peers.address = f"{socket.gethostname()} {settings.listen}"
        closing.push_async_callback(peers.close)
        await peers.start(gateways.answer, gateways.arrived_elsewhere)
        deployments = Deployments(store, gateways, utc_now)
        releases = Releases(store, deployments, utc_now)
        tail = Tail(kept)
        closing.callback(tail.close)
        executions = Executions(store, kept, tail, utc_now)

        metrics = Metrics()
        metrics.watch(hub, gateways, tls)
        authority = Authority(hub, store, utc_now, await closing.enter_async_context(open_jwts(settings.jwt_rules(), token_of)))
        _check_reach(settings, authority)
        closing.push_async_callback(_ended, asyncio.create_task(authority.run(), name="authority"))
        audit = Audit(store, utc_now)
        closing.push_async_callback(_ended, asyncio.create_task(audit.run(), name="audit"))
        admit, refused = Authorisation(authority), Refusals(audit)
        grpc_server = GrpcServer(authorise=admit, observe=metrics.observe, refused=refused, tls=tls, uncounted=OF_GATEWAYS)
        door = _open_door(settings)
        closing.push_async_callback(door.close)
        parts = Parts(
            apps=Apps(store, utc_now),
            environments=Environments(store, utc_now),
            releases=releases,
            deployments=deployments,
            past=Past(store),
            executions=executions,
            tail=tail,
            tokens=Tokens(store, hub, gateways, utc_now),
            retention=Retention(store, utc_now),
            gateways=gateways,
            gateway_door=door,
            hub=hub,
            authority=authority,
            audit=audit,
            clock=utc_now,
            terminal=Terminal(address=settings.listen, is_tls=tls is not None, asks_for_certificates=settings.tls_client_ca is not None),
        )
        await grpc_server.start(settings.listen, _add_services(grpc_server.services, parts, store))
        peers.address = f"{socket.gethostname()} {grpc_server.address}"
        closing.push_async_callback(grpc_server.stop, settings.drain_seconds)
        parts = msgspec.structs.replace(parts, terminal=msgspec.structs.replace(parts.terminal, address=grpc_server.address))
        http_server = HttpServer(asgi(make_app(store, metrics, authority, Console(parts, settings.console_hosts))), tls=tls)
        await http_server.start(settings.http)
        closing.push_async_callback(http_server.stop)

        click.echo(f"ready: control-plane grpc={grpc_server.address} http={http_server.address}")
        await stop.wait()
        await grpc_server.drain()
        tail.close()
        await hub.close()


def _add_services(server: Any, parts: Parts, store: Store) -> list[str]:
    """Every gRPC service; their full names."""
    releases, executions = parts.releases, parts.executions
    deployments = DeploymentServicer(parts.deployments, parts.past, parts.hub)
    apps_pb2_grpc.add_AppServiceServicer_to_server(AppServicer(parts.apps), server)
    environments_pb2_grpc.add_EnvironmentServiceServicer_to_server(EnvironmentServicer(parts.environments), server)
    releases_pb2_grpc.add_ReleaseServiceServicer_to_server(ReleaseServicer(releases, parts.retention), server)
    deployments_pb2_grpc.add_DeploymentServiceServicer_to_server(deployments, server)
    gateways = GatewayServicer(parts.gateways, parts.hub, releases, executions, parts.audit, store.store_id)
    gateways_pb2_grpc.add_GatewayServiceServicer_to_server(gateways, server)
    executions_pb2_grpc.add_ExecutionServiceServicer_to_server(ExecutionServicer(executions, parts.tail), server)
    tokens_pb2_grpc.add_TokenServiceServicer_to_server(TokenServicer(parts.tokens), server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(parts.audit), server)
    files = (apps_pb2, environments_pb2, releases_pb2, deployments_pb2, gateways_pb2, executions_pb2, tokens_pb2, audit_pb2)
    return [service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values()]


def _open_tls(settings: Settings, closing: contextlib.AsyncExitStack) -> ServerTls | None:
    tls = server_tls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    if tls is not None:
        closing.push_async_callback(_ended, asyncio.create_task(tls.watch(), name="tls"))
    return tls


def _open_door(settings: Settings) -> GatewayDoor:
    """Where the console sends triggers. Raises StartupError."""
    tls = client_tls("--gateway-", None, None, settings.gateway_ca)
    try:
        return GatewayDoor(settings.gateway_url, tls.context() if tls is not None else None)
    except ValueError as error:
        raise StartupError(f"--gateway-url {error}") from error


async def _bootstrap(store: Store, path: Path) -> None:
    """Writes the first admin token's secret, when there is no token yet. Raises StartupError."""
    secret = await bootstrap(store, utc_now())
    if secret is None:
        return
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        again = "`pointsman token bootstrap --force` makes another"
        raise StartupError(f"the first admin token was made and cannot be written to {path}: {error.strerror}; {again}") from error


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _check_reach(settings: Settings, authority: Authority) -> None:
    """Raises StartupError when other machines could do everything here, and nobody said that they may."""
    reached = [str(address) for address in (settings.listen, settings.http) if not is_loopback(address)]
    if reached and authority.is_open and not settings.insecure:
        raise StartupError(
            f"other machines could reach {' and '.join(reached)}, and there are no tokens yet: make one with `pointsman token bootstrap` "
            "(or --bootstrap-token-file), listen on 127.0.0.1, or start with --insecure"
        )


async def _open_executions(settings: Settings, store_id: str, closing: contextlib.AsyncExitStack) -> ExecutionStore:
    """What ran; what is old is swept away from then on."""
    try:
        kept = await asyncio.to_thread(open_executions, settings.store, store_id)
    except CannotOpenStore as error:
        raise StartupError(str(error)) from error
    closing.push_async_callback(kept.close)
    sweeper = Sweeper(kept, utc_now, keep_days=settings.keep_executions_days, keep_rows=settings.keep_executions_rows)
    sweeping = asyncio.create_task(sweeper.run(), name="sweeper")
    closing.callback(sweeping.cancel)
    return kept


@click.command("control-plane")
@settings_options(Settings)
def main(settings: Settings) -> None:
    """Serve the control plane: apps, releases, environments, deployments, and the streams of the gateways.

    Example: pointsman control-plane --store sqlite:////var/lib/pointsman/pointsman.db
    """
    run(lambda stop: serve(settings, stop), settings.log_format)


if __name__ == "__main__":
    main(prog_name="pointsman control-plane")
