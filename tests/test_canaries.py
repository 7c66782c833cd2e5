"""Promise 11: planted secrets, of tokens and of releases, are looked for in everything that leaves the processes: answers, streams, pages,
commands, logs, metrics, files. Upstreams repeat what they are shown, callers send what they should not, tokens are mistyped."""

from __future__ import annotations

import base64
import contextlib
import html
import itertools
import json
import re
import uuid

import grpc
import httpx2
import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from starlette.responses import PlainTextResponse

from data_plane.config import Settings
from data_plane.loaded import compile_release
from data_plane.secrets import Secrets
from data_plane.steps.base import Compiling
from data_plane.steps.targets import Targets
from data_plane.steps.tools import compile_tool
from data_plane.sync_stream import Me
from pointsman.tls import Pems
from pointsman.tokens import hash_of, new_secret, token_id_of
from pointsman.v1 import executions_pb2, executions_pb2_grpc, gateways_pb2, gateways_pb2_grpc, trigger_pb2
from pointsman.v1.config_pb2 import AppConfig
from tests.clients import OWN_CONNECTION, cli
from tests.eventually import eventually
from tests.jwt_issuer import AUDIENCE, ISSUER, KINDS, claims, jwks, signed
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_upstream import ScriptedUpstream
from tests.test_pipeline import digest_of
from tests.test_promise_11_closed_by_default import bootstrap, closed_control_plane, make, methods, shown

# What JSON, HTML and URLs write otherwise is in them; the marks, which are looked for, are not changed by any.
TOOL_SECRET = 'planted "tool" & <canary> 0b5e77'
MODEL_SECRET = "sk-canary-93aa41"
MARKS = {"tool's secret": "0b5e77", "model's key": "93aa41"}
ECHOED = f"I know {TOOL_SECRET} and {MODEL_SECRET}"
READING = ("Get", "List", "Diff", "Summarize")
STREAM_SECONDS = 1.0
LINK = re.compile(r'href="(/[^"#]*)')
MAX_PAGES = 150
# Cut in the midst of the secret, were it cut first.
AT_THE_CUT = "x" * 190 + TOOL_SECRET
COMMANDS = """
app list|app show|release list|release show v1|release diff v1 v2|status|history production|gateways|logs|execution list|summary|token list
|audit list|audit verify|audit export|environment list|execution show {execution}|deploy v9 --to production|rollback production
|deploy v2 --to production|trigger late -d {data}|trigger broken -d {data}|trigger where --stream|trigger late --stream -d {data}|execution rerun {execution}
"""


def app(upstream):
    """Endpoints that succeed, and that fail in every way in which somebody else's words are told."""
    config = marked("v1", upstream + "/echo")
    config["tools"] = [
        {
            "name": name,
            "http": {
                "method": "POST",
                "url": f"{upstream}/{path}",
                "headers": {"x-key": "${secret:TOOL}"},
            },
        }
        for name, path in (("pause", "echo"), ("break", "broken"))
    ]
    config["models"] = [{"name": "m", "targets": [{"base_url": upstream + "/v1", "api_key": "${secret:MODEL}"}]}]
    call = {"tool_call": {"tool": "pause", "arguments": "{'said': input.message}"}}
    config["pipelines"][0]["stages"][1]["steps"][0] |= call
    steps = {
        "late": [{"name": "asked", **call}, {"name": "parse", "transform": {"expression": "input[steps.asked.body.said]"}}],
        "broken": [{"name": "ask", "tool_call": {"tool": "break", "arguments": "{}"}}],
        "ask": [{"name": "ask", "inference": {"model": "m", "prompt": "{{ input.message }}"}}],
    }
    for name, found in steps.items():
        config["endpoints"].append({"name": name, "pipeline": name})
        config["pipelines"].append({"name": name, "stages": [{"name": "s", "steps": found}]})
    return config


class Gathered:
    """Everything that has left, by where."""

    def __init__(self):
        self.found: list[tuple[str, bytes]] = []

    def add(self, where, what):
        self.found.append((where, what if isinstance(what, bytes) else str(what).encode()))

    def check(self, marks):
        """None of the marks is anywhere."""
        seen = [f"{name} in {where}" for where, what in self.found for name, mark in marks.items() if mark.encode() in what]
        assert seen == []

    def of(self, where):
        """What came from places whose names begin so."""
        return b"".join(what for place, what in self.found if place.startswith(where))


class Scene:
    """Two servers with tokens, an upstream that repeats what it is shown, and all that they said."""

    def __init__(self, folder, plane, upstream, admin):
        self.folder, self.plane, self.upstream, self.admin = folder, plane, upstream, admin
        self.secrets = {"admin": admin}
        self.gateway = None
        self.gathered = Gathered()

    @property
    def marks(self):
        """What must not be seen, by what it is."""
        return MARKS | {f"token of {name}": secret[-52:] for name, secret in self.secrets.items()}

    async def command(self, line, **more):
        """One that may fail; what it prints is gathered."""
        words = line.split() if isinstance(line, str) else line
        servers = {"control_plane": self.plane, "gateway": self.gateway} if self.gateway else {"control_plane": self.plane}
        done = await cli(*words, **servers, **{"POINTSMAN_APP": "shop", "POINTSMAN_TOKEN": self.admin} | more)
        self.gathered.add(f"command {' '.join(words)}", done.stdout + done.stderr)
        return done

    async def called(self, address, method, request, shown_secret):
        """A unary call's answer, or its refusal with all details, and all metadata of both."""
        async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
            call = channel.unary_unary(f"/{method}")(request.SerializeToString(), metadata=shown(shown_secret), timeout=20)
            try:
                self.gathered.add(f"rpc {method}", await call)
            except grpc.aio.AioRpcError as error:
                status = rpc_status.from_call(error)
                assert status is not None
                self.gathered.add(f"refusal {method}", f"{status}{error.details()}{error!r}".encode() + status.SerializeToString())
            self.gathered.add(f"metadata {method}", f"{await call.initial_metadata()}{await call.trailing_metadata()}")

    async def watched(self, method, request):
        """What a stream of the control plane tells in a while."""
        async with grpc.aio.insecure_channel(self.plane.grpc, OWN_CONNECTION) as channel:
            call = channel.unary_stream(f"/{method}")
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for message in call(request.SerializeToString(), metadata=shown(self.admin), timeout=STREAM_SECONDS):
                    self.gathered.add(f"rpc {method.rpartition('/')[2]}", message)

    async def record(self, execution):
        """An execution, once it is on record."""
        request = executions_pb2.GetExecutionRequest(app="shop", execution_id=execution)
        async with grpc.aio.insecure_channel(self.plane.grpc, OWN_CONNECTION) as channel:
            stub = executions_pb2_grpc.ExecutionServiceStub(channel)

            async def recorded():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return (await stub.GetExecution(request, metadata=shown(self.admin), timeout=5)).execution

            return await eventually(recorded)

    def keep_files_and_logs(self):
        """Gathers what is on disk, and what the servers wrote."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                self.gathered.add(f"file {path.relative_to(self.folder)}", path.read_bytes())
        for server in (self.plane, self.gateway):
            self.gathered.add(f"log {server.what}", server.said())


@pytest.fixture
async def scene(tmp_path):
    folder = tmp_path / "installation"
    folder.mkdir()
    secrets_dir = tmp_path / "secrets"
    secrets_dir.mkdir()
    (secrets_dir / "MODEL").write_text(MODEL_SECRET + "\n")
    key = KINDS["ES256"]("issuer")
    (tmp_path / "jwks.json").write_bytes(jwks(key))
    judged = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks", str(tmp_path / "jwks.json"))
    async with ScriptedUpstream().running() as upstream, closed_control_plane(folder, *judged) as (plane, admin):
        found = Scene(folder, plane, upstream, admin)
        found.secrets["jwt"] = signed(key, claims())
        found.secrets["expired jwt"] = signed(key, claims(exp=1))
        for role in ("GATEWAY", "TRIGGER", "VIEWER"):
            found.secrets[role.lower()] = await make(plane, admin, role.lower(), role)
        mistyped = found.secrets["trigger"]
        found.secrets["mistyped"] = mistyped[:-4] + ("aaaa" if not mistyped.endswith("aaaa") else "bbbb")
        file = tmp_path / "app.json"
        file.write_text(json.dumps(app(upstream.url)))
        environment = {"POINTSMAN_TOKEN": found.secrets["gateway"], "POINTSMAN_SECRET_TOOL": TOOL_SECRET, "GRPC_VERBOSITY": "debug"}
        flags = ("--secrets-dir", str(secrets_dir), "--capture", "all", "--log-format", "json", *judged)
        async with start_gateway(folder, plane.grpc, *flags, **environment) as gateway:
            found.gateway = gateway
            for line in ("release create v1", "deploy v1 --to production", "release create v2"):
                if line.startswith("release"):
                    assert (await found.command(["app", "push", str(file), "--app", "shop"])).code == 0
                    file.write_text(json.dumps(app(upstream.url) | {"tools": app(upstream.url)["tools"][::-1]}))
                assert (await found.command(line)).code == 0
            yield found


async def triggers(scene):
    """Some of every kind, by both doors; the execution of one that failed."""
    address = scene.gateway.http
    failed = ""
    async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=30, trust_env=False) as http:
        for endpoint, stream in itertools.product(("late", "broken", "ask", "where", "nowhere"), (False, True)):
            for who in ("trigger", "viewer", "mistyped", "jwt", "expired jwt"):
                scene.upstream.script["POST /broken"] = [PlainTextResponse(AT_THE_CUT + MODEL_SECRET, 500)]
                scene.upstream.completions = [401 if stream else "Fine."]
                headers = {"X-App": "shop", "Authorization": f"Bearer {scene.secrets[who]}"}
                headers |= {"Accept": "text/event-stream"} if stream else {}
                # Not where it succeeds: what callers send may be in their own answers.
                said = "hello" if endpoint in ("where", "ask") else ECHOED
                answer = await http.post(f"/v1/trigger/{endpoint}", json={"message": said}, headers=headers)
                scene.gathered.add(f"http {endpoint} {who}", f"{answer.headers}{answer.text}")
                request = trigger_pb2.TriggerRequest(app="shop", endpoint=endpoint)
                request.input.update({"message": said})
                scene.upstream.script["POST /broken"] = [PlainTextResponse(AT_THE_CUT, 503)]
                scene.upstream.completions = ["Fine."]
                await scene.called(scene.gateway.grpc, "pointsman.v1.TriggerService/Trigger", request, scene.secrets[who])
                if (endpoint, who, stream) == ("late", "trigger", False):
                    failed = answer.headers["x-execution-id"]
                    assert answer.status_code == 502
        for path in ("/v1/status", "/v1/endpoints", "/v1/openapi.json", "/metrics", "/livez", "/readyz", "/nothing"):
            for who in ("viewer", "mistyped", "jwt", "expired jwt"):
                answer = await http.get(path, headers={"Authorization": f"Bearer {scene.secrets[who]}"})
                scene.gathered.add(f"http {path} {who}", f"{answer.headers}{answer.text}")
        # A token and a secret where neither belongs.
        for path in (f"/v1/trigger/{scene.secrets['mistyped']}", f"/{scene.secrets['mistyped']}"):
            await http.post(path, json={"message": ECHOED}, headers={"X-App": scene.secrets["mistyped"]})
    return failed


async def reads(scene, execution):
    """Every RPC that reads, with every request that can be filled in; every stream for a while."""
    digest = re.search(rb"sha256:[0-9a-f]{64}", scene.gathered.of("command release show"))
    assert digest
    fields = {
        "app": "shop",
        "tag": "v1",
        "environment": "production",
        "execution_id": execution,
        "from_tag": "v1",
        "to_tag": "v2",
        "digest": digest[0].decode(),
        "token_id": token_id_of(scene.secrets["viewer"]),
        "page_size": 100,
    }
    pool = descriptor_pool.Default()
    for service, name, streams_in, streams_out in methods():
        if streams_in or not (streams_out or name.startswith(READING)):
            continue
        request = GetMessageClass(pool.FindServiceByName(service).FindMethodByName(name).input_type)()
        for field in fields.keys() & request.DESCRIPTOR.fields_by_name.keys():
            if request.DESCRIPTOR.fields_by_name[field].message_type is None:
                setattr(request, field, fields[field])
        if streams_out:
            await scene.watched(f"{service}/{name}", request)
        else:
            for who in ("admin", "mistyped", "jwt"):
                await scene.called(scene.plane.grpc, f"{service}/{name}", request, scene.secrets[who])


async def synced(scene):
    """What a new gateway is told."""
    hello = gateways_pb2.SyncRequest.Hello(gateway_id="looker", instance_id=str(uuid.uuid4()), version="1")
    async with grpc.aio.insecure_channel(scene.plane.grpc, OWN_CONNECTION) as channel:
        sync = gateways_pb2_grpc.GatewayServiceStub(channel).Sync(metadata=shown(scene.secrets["gateway"]))
        await sync.write(gateways_pb2.SyncRequest(hello=hello))
        async for message in sync:
            scene.gathered.add("rpc Sync", message.SerializeToString())
            if message.update.synced:
                break


async def reflected(scene):
    """Every file that describes a service of either server."""
    ask, metadata = reflection_pb2.ServerReflectionRequest, shown(scene.admin)
    for address in (scene.plane.grpc, scene.gateway.grpc):
        async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            listed = stub.ServerReflectionInfo(iter([ask(list_services="")]), metadata=metadata, timeout=10)
            names = [one.name for one in (await anext(aiter(listed))).list_services_response.service]
            asked = iter([ask(file_containing_symbol=name) for name in names])
            async for answer in stub.ServerReflectionInfo(asked, metadata=metadata, timeout=10):
                scene.gathered.add("reflection", answer.SerializeToString())


async def pages(scene):
    """Every page of the console that a link leads to, signed in as an admin, and /metrics."""
    async with httpx2.AsyncClient(base_url=f"http://{scene.plane.http}", timeout=30, trust_env=False) as http:
        form = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', (await http.get("/sign-in")).text)
        wrong = await http.post("/sign-in", data=dict(form) | {"token": scene.secrets["mistyped"]})
        scene.gathered.add("page /sign-in", wrong.text)
        signed = await http.post("/sign-in", data=dict(form) | {"token": scene.admin})
        # The browser's cookie is the only place.
        scene.gathered.add("page /sign-in", f"{signed.text}{[item for item in signed.headers.items() if item[0] != 'set-cookie']}")
        assert signed.status_code == 303
        waiting, seen = ["/apps", "/tokens", "/audit", "/gateways", "/environments", "/apps/shop/try"], set()
        while waiting and len(seen) < MAX_PAGES:
            path = waiting.pop(0)
            if path in seen or path.startswith(("/static", "/sign-")):
                continue
            seen.add(path)
            if path.endswith(("/tail", "/rollout")):
                continue
            page = await http.get(path, headers={"accept": "text/html"})
            scene.gathered.add(f"page {path}", f"{page.headers}{html.unescape(page.text)}")
            waiting += map(html.unescape, LINK.findall(page.text))
        assert len(seen) > 30
        for path in ("/metrics", "/apps/shop/nothing"):
            scene.gathered.add(f"page {path}", (await http.get(path)).text)
        async with http.stream("GET", "/apps/shop/executions/tail") as events:
            lines = events.aiter_lines()
            assert await anext(lines) == "event: all"
            failed = await triggers(scene)
            async for line in lines:
                scene.gathered.add("live stream", html.unescape(line))
                if failed in line:
                    break
        return failed


async def test_nothing_that_leaves_has_a_secret(scene):
    failed = await triggers(scene)
    execution = await scene.record(failed)
    assert "I know [secret TOOL] and " in execution.input, "they are looked for in the right place"
    data = json.dumps({"message": ECHOED})
    for line in COMMANDS.replace("\n", "").split("|"):
        await scene.command([word.format(execution=failed, data=data) for word in line.split()])
    for who in ("mistyped", "jwt", "expired jwt"):
        await scene.command("token list -o json", POINTSMAN_TOKEN=scene.secrets[who])
        done = await scene.command("deploy v1 --to production", POINTSMAN_TOKEN=scene.secrets[who])
        assert (done.code == 0) == (who == "jwt"), done
    await scene.command(["app", "show", scene.secrets["mistyped"][:-1]])
    await pages(scene)
    await reads(scene, failed)
    await synced(scene)
    await reflected(scene)
    backup = scene.folder / "backup.db"
    assert (await scene.command(["backup", "--store", f"sqlite:///{scene.folder / 'pointsman.db'}", str(backup)])).code == 0
    # What nobody fetches any more is on disk, and stays there.
    await scene.plane.kill()
    await triggers(scene)
    spool = scene.folder / "gateway-1" / "executions"
    await eventually(lambda: any(path.stat().st_size for path in spool.iterdir()))
    await scene.gateway.stop()
    scene.keep_files_and_logs()

    scene.gathered.check(scene.marks)
    kept = hash_of(scene.secrets["trigger"])
    for where in ("file pointsman.db", "file backup.db", "file gateway-1", "rpc Sync"):
        data = scene.gathered.of(where)
        assert kept in data or base64.b64encode(kept) in data, f"tokens are told and kept as hashes: {where}"
    for where in (
        "file gateway-1/executions",
        "page /apps/shop/executions/",
        "command execution show",
        "rpc pointsman.v1.ExecutionService/GetExecution",
    ):
        assert b"[secret TOOL]" in scene.gathered.of(where), where
    for where in ("refusal pointsman.v1.TriggerService", "http broken trigger", "http late trigger", "command trigger late"):
        assert b"[secret" in scene.gathered.of(where), where
    for where in (
        "live stream",
        "log control-plane",
        "log gateway",
        "reflection",
        "http /metrics",
        "page /metrics",
        "rpc FetchSnapshot",
        "command audit",
    ):
        assert len(scene.gathered.of(where)) > 50, where


def test_the_repr_of_what_has_a_secret_does_not_show_it():
    secrets = Secrets(environment={"POINTSMAN_SECRET_TOOL": TOOL_SECRET, "POINTSMAN_SECRET_MODEL": MODEL_SECRET})
    config = json_format.ParseDict(app("http://127.0.0.1:9"), AppConfig())
    compiling = Compiling(secrets=secrets, tools={tool.name: tool for tool in config.tools}, models={})
    token = new_secret()
    shown = [
        compile_release(digest_of(data := config.SerializeToString()), data, secrets),
        [compile_tool(tool.name, compiling) for tool in config.tools],
        (targets := Targets(config.models[0], compiling)),
        targets._targets,
        compiling,
        Settings(token=token),
        Me(gateway_id="g", instance_id="i", version="1", token=token),
        Pems(key=token.encode()),
    ]
    told = repr(shown)
    assert [mark for mark in (*MARKS.values(), token[-52:]) if mark in told] == []
    assert TOOL_SECRET in secrets.resolve("${secret:TOOL}")


async def test_only_the_bootstrap_file_has_the_first_token(tmp_path):
    secret = await bootstrap(tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [name for name, data in kept.items() if secret[-52:].encode() in data] == []
    assert any(hash_of(secret) in data for data in kept.values())
