"""Starts a gateway: the only place where its parts are put together. `pointsman gateway` runs this."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, ParamSpec

import click
import structlog

import pointsman
from data_plane.access import Access, verifier_of
from data_plane.config import Settings
from data_plane.disk import Disk
from data_plane.executions import Capture, Recorder
from data_plane.gateway import Gateway
from data_plane.heard import HeardFile
from data_plane.holder import Holder
from data_plane.hosts import HostPolicy
from data_plane.http import HttpApp
from data_plane.loading import Compiler
from data_plane.lookup import Here
from data_plane.metrics import Metrics
from data_plane.rpc import GatewayStatusServicer, TriggerServicer
from data_plane.secrets import Secrets
from data_plane.spool import MIB, Spool
from data_plane.staleness import Staleness
from data_plane.status import Status
from data_plane.steps.base import Clients
from data_plane.sync import Sync
from data_plane.sync_report import Reporter
from data_plane.sync_stream import Me
from data_plane.tracing import name_execution
from data_plane.workers import WORKER_VARIABLE, serve_by_workers, watch_parent
from pointsman.jwt import open_jwts
from pointsman.process import run
from pointsman.serving import GrpcServer, StartupError
from pointsman.settings import is_loopback, settings_options
from pointsman.tls import ServerTls, server_tls
from pointsman.v1 import trigger_pb2, trigger_pb2_grpc
from pointsman.web import HttpServer

if TYPE_CHECKING:
    from data_plane.spans import Spans

P = ParamSpec("P")
# For a control plane that takes its time.
LAST_REPORT_SECONDS = 3.0

log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event, *, is_worker: bool = False) -> None:
    """Serves until stop is set; then drains: unready first, then no new connections and calls, then what still runs is finished."""
    async with contextlib.AsyncExitStack() as closing:
        tls = _open_tls(settings, closing)
        to_control_plane = settings.control_plane_tls()
        disk, holder, secrets = _open_disk(settings, closing), Holder(_utc_now), Secrets(settings.secrets_dir)
        compiler = Compiler(secrets)
        closing.callback(compiler.close)
        # Who can reach this machine's own addresses anyway may do so through a release; who comes from elsewhere may not.
        private = is_loopback(settings.listen) and is_loopback(settings.http)
        clients = Clients.open(HostPolicy(settings.allow_host, loopback=private))
        closing.push_async_callback(clients.aclose)
        me = Me(
            gateway_id=settings.gateway_id,
            instance_id=str(uuid.uuid4()),
            version=pointsman.__version__,
            apps=settings.app,
            environments=settings.environment,
            token=settings.token,
        )
        jwts = await closing.enter_async_context(open_jwts(settings.jwt_rules(), verifier_of))
        access = Access(holder, open_without_tokens=settings.insecure or private, jwts=jwts)
        grpc_server = GrpcServer(reuse_port=is_worker, authorise=access.authorise, tls=tls, has_deadline=False, asks_again=False)
        heard_file = HeardFile(settings.state_dir) if settings.state_dir is not None else None
        staleness = Staleness(holder)
        readiness = _Readiness(staleness, grpc_server)
        staleness.on_change = readiness.check
        flipped = _each(staleness.check, readiness.check, disk.changed if disk else None)
        heard = _each(staleness.heard, heard_file.heard if heard_file else None)
        sync = Sync(holder, me, settings.control_planes(), compiler, tls=to_control_plane, blobs=disk, on_flip=flipped, on_heard=heard)
        status = Status(holder, staleness, sync, me, control_plane=settings.control_plane, default_environment=settings.default_environment)
        spool = _open_spool(settings)
        metrics = Metrics(os.environ.get(WORKER_VARIABLE, ""))
        spans = _open_spans(settings, secrets, closing)
        sealed = _each(metrics.observe, spans.observe if spans else None)
        recorder = Recorder(spool, settings.gateway_id, Capture(settings.capture), secrets.redact, sealed)
        here = Here(gateway_id=settings.gateway_id, default_environment=settings.default_environment, control_plane=settings.control_plane)
        gateway = Gateway(holder, staleness, clients, here, on_end=recorder.add, trace=spans.begin if spans else None)
        metrics.watch(gateway, holder, sync, staleness, spool, [one for one in (tls, to_control_plane) if one is not None])
        trigger_pb2_grpc.add_TriggerServiceServicer_to_server(TriggerServicer(gateway, access), grpc_server.services)
        siblings = watch_parent(stop, sync.outage.simulate) if is_worker else None
        statuses = GatewayStatusServicer(status, _each(sync.outage.simulate, siblings), settings.gateway_id)
        trigger_pb2_grpc.add_GatewayStatusServiceServicer_to_server(statuses, grpc_server.services)

        if disk is not None and heard_file is not None:
            await disk.load(holder, compiler)
            if holder.table.synced:
                staleness.resume(await heard_file.seconds_ago())
            _beside(closing, "disk", partial(disk.keep, holder))
            _beside(closing, "heard", heard_file.keep)
        services = [service.full_name for service in trigger_pb2.DESCRIPTOR.services_by_name.values()]
        await grpc_server.start(settings.listen, services, serving=staleness.ready)
        closing.push_async_callback(grpc_server.stop, 0)
        http_server = HttpServer(HttpApp(gateway, access, status, metrics, grpc_server.calls), reuse_port=is_worker, tls=tls)
        await http_server.start(settings.http)
        closing.push_async_callback(http_server.stop, 0)
        _beside(closing, "sync", sync.run)
        _beside(closing, "recorder", recorder.run)
        _beside(closing, "reporter", Reporter(spool, sync, me).run)
        if disk is not None:
            _beside(closing, "warm", partial(disk.warm, holder, compiler))

        click.echo(f"ready: gateway grpc={grpc_server.address} http={http_server.address}")
        await stop.wait()
        gateway.unready = True
        await grpc_server.drain()
        await asyncio.sleep(settings.drain_delay_seconds)
        log.info("stopping", running=gateway.in_flight, at_most_seconds=settings.drain_seconds)
        await asyncio.gather(grpc_server.stop(settings.drain_seconds), http_server.stop(settings.drain_seconds))
        await _last_report(recorder, spool, sync)


async def _last_report(recorder: Recorder, spool: Spool, sync: Sync) -> None:
    """What ran is on record before the end, if the control plane is there; else it stays on disk for the next start."""
    recorder.flush()
    if sync.connected:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPORT_SECONDS):
                await spool.drained()
    await spool.keep()
    if spool.depth:
        log.warning("executions were not delivered", count=spool.depth, kept=spool.is_kept)


def _open_tls(settings: Settings, closing: contextlib.AsyncExitStack) -> ServerTls | None:
    tls = server_tls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    if tls is not None:
        _beside(closing, "tls", tls.watch)
    return tls


def _open_spool(settings: Settings) -> Spool:
    folder = None if settings.state_dir is None else settings.state_dir / "executions"
    try:
        return Spool(folder, settings.spool_mib * MIB)
    except OSError as error:
        raise StartupError(f"cannot use {folder}: {error.strerror}") from None


def _open_spans(settings: Settings, secrets: Secrets, closing: contextlib.AsyncExitStack) -> Spans | None:
    """Raises StartupError when they were asked for by --otel and cannot be exported."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not (settings.otel or endpoint):
        return None
    try:
        # An extra, and half a second of start that only those pay who want it.
        from data_plane.spans import CannotExportError, Spans
    except ModuleNotFoundError:
        problem = "the extra otel is not installed: pip install 'pointsman[otel]'"
    else:
        try:
            spans = Spans(settings.gateway_id, secrets.redact)
        except CannotExportError as error:
            problem = str(error)
        else:
            closing.push_async_callback(spans.close)
            log.info("spans are exported", endpoint=endpoint or "http://localhost:4318")
            return spans
    if settings.otel:
        raise StartupError(f"--otel: {problem}")
    log.warning("spans are not exported, although OTEL_EXPORTER_OTLP_ENDPOINT is set", problem=problem)
    return None


def _open_disk(settings: Settings, closing: contextlib.AsyncExitStack) -> Disk | None:
    if settings.state_dir is None:
        log.info("no --state-dir: nothing is kept, and a restart needs the control plane")
        return None
    disk = Disk(settings.state_dir, _utc_now, apps=settings.app, environments=settings.environment)
    closing.push_async_callback(disk.close)
    return disk


class _Readiness:
    """Tells the health service whether the gateway is ready."""

    def __init__(self, staleness: Staleness, server: GrpcServer) -> None:
        self._staleness = staleness
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self) -> None:
        task = asyncio.create_task(self._server.set_serving(serving=self._staleness.ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _each(*calls: Callable[P, None] | None) -> Callable[P, None]:
    """Calls those that are there, in their order."""

    def call_each(*arguments: P.args, **named: P.kwargs) -> None:
        for call in calls:
            if call is not None:
                call(*arguments, **named)

    return call_each


def _beside(closing: contextlib.AsyncExitStack, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs it beside the servers until they close. A defect in it is told, and serving goes on."""

    async def run_it() -> None:
        try:
            await work()
        except Exception:
            log.exception("a part of the gateway failed; it serves on without it", part=name)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    task = asyncio.create_task(run_it(), name=name)
    closing.push_async_callback(end)


def _utc_now() -> datetime:
    return datetime.now(UTC)


@click.command("gateway")
@settings_options(Settings)
def main(settings: Settings) -> None:
    """Serve triggers on the active release of each environment.

    Example: pointsman gateway --control-plane cp.internal:7400 --state-dir /var/lib/pointsman-gateway
    """
    if settings.workers > 1:
        run(lambda stop: serve_by_workers(settings, stop), settings.log_format)
    is_worker = WORKER_VARIABLE in os.environ
    run(lambda stop: serve(settings, stop, is_worker=is_worker), settings.log_format, name_execution)


if __name__ == "__main__":
    main(prog_name="pointsman gateway")
