"""Two real servers as processes, with tokens, that every target against the network shares, and what they must answer whatever came before."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import http.client
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format

from pointsman.v1 import (
    apps_pb2,
    apps_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    environments_pb2,
    environments_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from tests.fuzz.engine import Checker
from tests.postgres_server import running_postgres
from tests.processes import Server, start_control_plane, start_gateway
from tests.sample_apps import marked

T = TypeVar("T")
GOOD_SECONDS = 20
# What a server writes to its log when something was raised that nobody expected.
UNEXPECTED = ("Traceback (most recent call last)", "Fatal Python error", "exception in callback", "Task exception was never retrieved")


class Loop:
    """An event loop on a thread of its own, so that what is checked may wait."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        """The result. Raises what the work raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Site:
    """A control plane and a gateway; the app `steady` in the environment `calm` is nobody's to touch."""

    def __init__(self, folder: Path, *flags: str) -> None:
        """The flags are the control plane's."""
        self.loop = Loop()
        self._closing = contextlib.AsyncExitStack()
        secret_file = folder / "token"
        self.control_plane: Server = self._open(start_control_plane(folder, "--bootstrap-token-file", str(secret_file), *flags))
        self.secret = secret_file.read_text().strip()
        self.metadata = (("authorization", f"Bearer {self.secret}"),)
        self.channel = grpc.insecure_channel(self.control_plane.grpc)
        secret = self._prepare()
        self.gateway: Server = self._open(
            start_gateway(
                folder, self.control_plane.grpc, "--default-environment", "staging", "--drain-seconds", "1", POINTSMAN_TOKEN=secret
            )
        )
        self.gateway_channel = grpc.insecure_channel(self.gateway.grpc)
        self._seen = {server.pid: 0 for server in self.servers}
        self.check_good(patient=True)

    @property
    def servers(self) -> tuple[Server, Server]:
        """Both."""
        return self.control_plane, self.gateway

    def _open(self, server: Any) -> Any:
        return self.loop.run(self._closing.enter_async_context(server))

    def _prepare(self) -> str:
        """Apps and releases; the secret of the gateway's token."""
        told: dict[str, Any] = {"metadata": self.metadata, "timeout": GOOD_SECONDS}
        releases, deployments = releases_pb2_grpc.ReleaseServiceStub(self.channel), deployments_pb2_grpc.DeploymentServiceStub(self.channel)
        environments_pb2_grpc.EnvironmentServiceStub(self.channel).CreateEnvironment(
            environments_pb2.CreateEnvironmentRequest(environment="calm"), **told
        )
        for app, environments in (("steady", ["calm"]), ("shop", ["staging", "production"])):
            apps_pb2_grpc.AppServiceStub(self.channel).CreateApp(apps_pb2.CreateAppRequest(app=app), **told)
            for tag in ("v1", "v2"):
                request = releases_pb2.CreateReleaseRequest(app=app, tag=tag)
                json_format.ParseDict(marked(tag), request.config)
                releases.CreateRelease(request, **told)
                for environment in environments:
                    deployments.Deploy(deployments_pb2.DeployRequest(app=app, environment=environment, release=tag), **told)
        request = tokens_pb2.CreateTokenRequest(name="gateway", role=tokens_pb2.Token.GATEWAY)
        return str(tokens_pb2_grpc.TokenServiceStub(self.channel).CreateToken(request, **told).secret)

    def check_good(self, *, patient: bool = False) -> None:
        """Good requests are answered, and nothing unexpected stands in the logs. Raises AssertionError."""
        for server in self.servers:
            news, self._seen[server.pid] = server.stderr[self._seen[server.pid] :], len(server.stderr)
            wrong = [at for at, line in enumerate(news) if any(sign in line for sign in UNEXPECTED)]
            assert not wrong, f"{server.what} logged:\n" + "\n".join(news[max(0, wrong[0] - 3) : wrong[0] + 80])
        apps = apps_pb2_grpc.AppServiceStub(self.channel)
        assert apps.GetApp(apps_pb2.GetAppRequest(app="steady"), metadata=self.metadata, timeout=GOOD_SECONDS).app.app == "steady"
        assert self.get(self.control_plane, "/readyz")[0] == 200
        assert self.get(self.control_plane, "/apps/steady/releases")[0] == 200
        if patient:
            from tests.eventually import eventually

            self.loop.run(eventually(lambda: self._trigger()[0] == 200))
        status, body = self._trigger()
        assert (status, b'"first":"v2"' in body) == (200, True), (status, body)

    def _trigger(self) -> tuple[int, bytes]:
        headers = {"X-App": "steady", "X-Environment": "calm", "Content-Type": "application/json"}
        return self._request(self.gateway, "POST", "/v1/trigger/where", b'{"message": "still there?"}', headers)

    def get(self, server: Server, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._request(server, "GET", path, None, {})

    def _request(self, server: Server, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(server.http, timeout=GOOD_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {self.secret}", **headers})
            response = connection.getresponse()
            return response.status, response.read()

    def close(self) -> None:
        """Stops both."""
        self.channel.close()
        self.gateway_channel.close()
        self.loop.run(self._closing.aclose())
        self.loop.close()


@functools.cache
def site(*, on_postgres: bool = False) -> Site:
    """Opened once in a process, closed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="pointsman-fuzz-")
    atexit.register(folder.cleanup)
    flags = []
    if on_postgres:
        running = contextlib.ExitStack()
        server = running.enter_context(running_postgres("fsync=off"))
        atexit.register(running.close)
        flags = ["--store", server.url(server.new_database())]
    found = Site(Path(folder.name), *flags)
    atexit.register(found.close)
    return found


class SiteChecker(Checker):
    """A property of both servers. An example is several cases, at the same time."""

    def __init__(self, found: Site, check: Callable[[Site, Any], None], settled: Callable[[Site], None]) -> None:
        self._site = found
        self._settled = settled
        super().__init__(functools.partial(check, self._site))

    def pids(self) -> list[int]:
        """Of the servers."""
        return [server.pid for server in self._site.servers]

    def count(self, case: Any) -> int:
        """How many."""
        return len(case)

    def afterwards(self) -> None:
        """See Site."""
        self._site.check_good()
        self._settled(self._site)


def on_site(
    check: Callable[[Site, Any], None], settled: Callable[[Site], None] = lambda _site: None
) -> Callable[[], AbstractContextManager[Checker]]:
    """For a target's `opened`; `settled` is what must be so after each batch, too."""

    @contextlib.contextmanager
    def opened() -> Iterator[Checker]:
        yield SiteChecker(site(), check, settled)

    return opened


def on_postgres(check: Callable[[Site, Any], None]) -> Callable[[], AbstractContextManager[Checker]]:
    """The same with a control plane on PostgreSQL."""

    @contextlib.contextmanager
    def opened() -> Iterator[Checker]:
        yield SiteChecker(site(on_postgres=True), check, lambda _site: None)

    return opened
