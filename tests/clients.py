"""The callers of end-to-end tests: typed stubs, HTTP, the command line, and the real grpcurl and buf curl."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pointsman.v1 import (
    apps_pb2,
    apps_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    environments_pb2_grpc,
    executions_pb2_grpc,
    gateways_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
    trigger_pb2,
    trigger_pb2_grpc,
)
from tests.processes import BIN, Finished, Server, run
from tests.sample_apps import Config

# Channels to the same address share a connection, and its backoff after a server that was killed, unless told otherwise.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True)
class Refusal:
    """One refusal, whoever reported it."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Which google.rpc details came, by their short names."""


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """What a gRPC client reads from the status and its details."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status came with {error}"
    kinds = tuple(detail.TypeName().rpartition(".")[2] for detail in status.details)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "pointsman"
    violations = tuple(violation.field for violation in bad.field_violations)
    return Refusal(error.code().name, info.reason, status.message, dict(info.metadata), violations, kinds)


async def refused(call: Any) -> Refusal:
    """Awaits a call that must be refused, and returns how."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"not refused: {answer}")


class ControlPlane:
    """Typed stubs of a control plane, and the few calls that most tests make."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.apps = apps_pb2_grpc.AppServiceStub(channel)
        self.releases = releases_pb2_grpc.ReleaseServiceStub(channel)
        self.environments = environments_pb2_grpc.EnvironmentServiceStub(channel)
        self.deployments = deployments_pb2_grpc.DeploymentServiceStub(channel)
        self.gateways = gateways_pb2_grpc.GatewayServiceStub(channel)
        self.executions = executions_pb2_grpc.ExecutionServiceStub(channel)

    async def create_app(self, **configs: Config) -> str:
        """A new app with a release for each tag (underscores for dots); its id."""
        app = f"app-{uuid.uuid4().hex[:12]}"
        await self.apps.CreateApp(apps_pb2.CreateAppRequest(app=app))
        for tag, config in configs.items():
            await self.create_release(app, tag, config)
        return app

    async def create_release(self, app: str, tag: str, config: Config) -> releases_pb2.Release:
        """A release of the config."""
        request = releases_pb2.CreateReleaseRequest(app=app, tag=tag)
        json_format.ParseDict(config, request.config)
        return (await self.releases.CreateRelease(request)).release

    async def deploy(self, app: str, release: str, environment: str = "production", **more: Any) -> deployments_pb2.DeployResponse:
        """Binds the release."""
        return await self.deployments.Deploy(
            deployments_pb2.DeployRequest(app=app, environment=environment, release=release, **more), timeout=30
        )

    async def rollback(self, app: str, environment: str = "production", **more: Any) -> deployments_pb2.RollbackResponse:
        """Walks back, or to to_release."""
        return await self.deployments.Rollback(deployments_pb2.RollbackRequest(app=app, environment=environment, **more), timeout=30)

    async def binding(self, app: str, environment: str = "production") -> deployments_pb2.Binding:
        """What is bound now."""
        request = deployments_pb2.GetBindingRequest(app=app, environment=environment)
        return (await self.deployments.GetBinding(request)).binding


class Gateway:
    """Both doors of a gateway."""

    def __init__(self, channel: grpc.aio.Channel, http: httpx2.AsyncClient) -> None:
        self.triggers = trigger_pb2_grpc.TriggerServiceStub(channel)
        self.statuses = trigger_pb2_grpc.GatewayStatusServiceStub(channel)
        self.http = http

    async def trigger(self, app: str, endpoint: str = "where", *, given: dict[str, Any] | None = None, **more: Any) -> Any:
        """A trigger over gRPC; TriggerResponse."""
        request = trigger_pb2.TriggerRequest(app=app, endpoint=endpoint, **more)
        request.input.update({"message": "hello"} if given is None else given)
        return await self.triggers.Trigger(request, timeout=40)

    async def post(self, app: str, endpoint: str = "where", *, json: Any = None, **headers: str) -> httpx2.Response:
        """A trigger over HTTP; header names with underscores for hyphens."""
        sent = {"X-App": app} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(f"/v1/trigger/{endpoint}", json={"message": "hello"} if json is None else json, headers=sent)

    async def status(self) -> trigger_pb2.GetStatusResponse:
        """What it holds."""
        return await self.statuses.GetStatus(trigger_pb2.GetStatusRequest(), timeout=10)


def value(message: struct_pb2.Value) -> Any:
    """A google.protobuf.Value as a plain value."""
    return json_format.MessageToDict(message)


@asynccontextmanager
async def control_plane_client(server: Server, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[ControlPlane]:
    """Stubs on a channel of their own; over TLS with credentials."""
    channel = (
        grpc.aio.secure_channel(server.grpc, credentials, OWN_CONNECTION)
        if credentials
        else grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION)
    )
    async with channel:
        yield ControlPlane(channel)


@asynccontextmanager
async def gateway_client(server: Server) -> AsyncIterator[Gateway]:
    """Stubs on a channel of their own, and an HTTP client."""
    async with (
        grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel,
        httpx2.AsyncClient(base_url=f"http://{server.http}", timeout=40, trust_env=False) as http,
    ):
        yield Gateway(channel, http)


async def cli(*arguments: str, control_plane: Server | None = None, gateway: Server | None = None, **environment: str) -> Finished:
    """Runs `pointsman ...` to its end."""
    if control_plane:
        environment["POINTSMAN_SERVER"] = control_plane.grpc
    if gateway:
        environment["POINTSMAN_GATEWAY"] = gateway.grpc
    return await run(BIN / "pointsman", *arguments, environment=environment)


async def cli_done(*arguments: str, **servers: Any) -> str:
    """The same for a command that must succeed; what it printed."""
    done = await cli(*arguments, **servers)
    assert done.code == 0, f"pointsman {' '.join(arguments)}: {done.code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documents(text: str) -> list[Any]:
    """The JSON documents that stand one after the other in a text."""
    decoder, found = json.JSONDecoder(), []
    text = text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


class Grpcurl:
    """The real grpcurl, with nothing but reflection."""

    def __init__(self, program: Path, address: str) -> None:
        self._program = program
        self._address = address

    async def raw(self, *arguments: str) -> Finished:
        """Runs it with these arguments; flags before, a method after the address."""
        flags = [argument for argument in arguments if argument.startswith("-")]
        rest = [argument for argument in arguments if not argument.startswith("-")]
        return await run(self._program, "-plaintext", *flags, self._address, *rest)

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of a unary call, as JSON with the names of the proto file."""
        done = await run(self._program, "-plaintext", "-d", json.dumps(fields), self._address, f"pointsman.v1.{method}")
        assert done.code == 0, done.stderr
        return documents(done.stdout)[0]

    async def refused(self, method: str, **fields: Any) -> str:
        """What it says of a call that must be refused."""
        done = await run(self._program, "-plaintext", "-d", json.dumps(fields), self._address, f"pointsman.v1.{method}")
        assert done.code != 0, done.stdout
        return done.stderr


class BufCurl:
    """`buf curl`: another gRPC implementation, with nothing but reflection."""

    def __init__(self, program: Path, address: str) -> None:
        self._program = program
        self._address = address

    async def run(self, method: str, **fields: Any) -> Finished:
        """Runs one call."""
        flags = ["--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(fields)]
        return await run(self._program, "curl", *flags, f"http://{self._address}/pointsman.v1.{method}")

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of a unary call, by the proto JSON mapping."""
        done = await self.run(method, **fields)
        assert done.code == 0, done.stderr
        return documents(done.stdout)[0]

    async def refused(self, method: str, **fields: Any) -> Refusal:
        """The refusal as buf read it; its code in buf's spelling, such as not_found."""
        done = await self.run(method, **fields)
        assert done.code != 0, done.stdout
        error = documents(done.stderr[done.stderr.index("{") :])[0]
        values = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in error["details"]}
        info = error_details_pb2.ErrorInfo.FromString(values["google.rpc.ErrorInfo"])
        assert info.domain == "pointsman"
        kinds = tuple(name.rpartition(".")[2] for name in values)
        return Refusal(error["code"], info.reason, error["message"], dict(info.metadata), kinds=kinds)
