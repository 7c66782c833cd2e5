"""The console over a real store, in this process: an ASGI app for httpx2, and the services that it stands on."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from google.protobuf import json_format

from control_plane.authority import Authority
from control_plane.console.app import Console
from control_plane.console.gateway_door import GatewayDoor
from control_plane.console.parts import Parts
from control_plane.console.terminal import Terminal
from control_plane.gateways import Gateways, Session
from control_plane.http import make_app
from control_plane.hub import Hub, Watcher
from control_plane.metrics import Metrics
from control_plane.model import Identity, Rejection
from control_plane.rpc.executions import report_of
from control_plane.service.apps import Apps
from control_plane.service.audit import Audit
from control_plane.service.calls import Call, utc_now
from control_plane.service.deployments import Deployments, Options
from control_plane.service.environments import Environments
from control_plane.service.executions import Executions
from control_plane.service.paging import PageRequest
from control_plane.service.past import Past
from control_plane.service.releases import Releases
from control_plane.service.retention import Retention
from control_plane.service.snapshots import snapshot_of
from control_plane.service.tokens import Tokens
from control_plane.storage import open_executions, open_store
from control_plane.storage.base import ExecutionStore, Store
from control_plane.tail import Tail
from pointsman.ids import new_id
from pointsman.settings import Address
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1.config_pb2 import AppConfig
from tests.sample_apps import marked

ANN = Call(actor="ann")
_EVERY = PageRequest(size=500)
FORM = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')


@dataclass
class Site:
    """A browser without scripts, and what is behind the pages."""

    http: httpx2.AsyncClient
    parts: Parts
    store: Store
    kept: ExecutionStore

    async def draft(self, app: str, mark: str, **changes: Any) -> None:
        """Fills the draft of an app, which is created when it is not there."""
        if app not in {found.app for found in (await self.parts.apps.list(_EVERY)).items}:
            await self.parts.apps.create(app, f"The {app}", ANN)
        config = json_format.ParseDict(marked(mark) | changes, AppConfig())
        await self.parts.apps.update_draft(app, snapshot_of(config), None, ANN)

    async def release(self, app: str, tag: str, *, description: str = "", deploy_to: str = "") -> None:
        """A release whose content has its tag for a mark."""
        await self.draft(app, tag)
        await self.parts.releases.create(app=app, tag=tag, description=description, config=None, deploy_to=deploy_to, call=ANN)

    async def deploy(self, app: str, tag: str, environment: str, **options: Any) -> None:
        """Makes it live."""
        await self.parts.deployments.deploy(app, environment, tag, Options(**options), ANN)

    async def ran(self, *executions: pb.Execution, gateway_id: str = "east", dropped: int = 0) -> None:
        """Puts executions on record, as a gateway would."""
        request = pb.ReportExecutionsRequest(gateway_id=gateway_id, instance_id=new_id(), executions=executions, dropped=dropped)
        await self.parts.executions.report(await report_of(request))

    async def live(self, app: str, environment: str) -> str:
        """What is live there; empty when nothing is."""
        binding = await self.parts.binding(app, environment)
        return binding.deployment.release if binding and binding.deployment else ""

    async def page(self, path: str, status: int = 200) -> str:
        """The page, with its entities as characters."""
        response = await self.http.get(path, headers={"accept": "text/html"})
        assert response.status_code == status, f"{path}: {response.status_code}\n{response.text}"
        return html.unescape(response.text)

    async def hidden(self, path: str) -> dict[str, str]:
        """The hidden fields of the forms of a page."""
        return {name: html.unescape(value) for name, value in FORM.findall((await self.http.get(path)).text)}

    async def send(self, path: str, /, *, form: str = "", **fields: str) -> httpx2.Response:
        """Fills in the form of a page (its own path unless `form` is another) and sends it."""
        return await self.http.post(path, data=await self.hidden(form or path) | fields)


def gateway(
    site: Site, gateway_id: str = "east", revision: int = 0, uptime_seconds: float | None = None
) -> tuple[contextlib.AbstractAsyncContextManager[Watcher], Callable[[Watcher], contextlib.AbstractContextManager[Session]]]:
    """A watcher, and what makes it a session of a gateway, as its stream would open one."""
    identity = Identity(
        gateway_id=gateway_id,
        instance_id=gateway_id,
        version="1",
        apps=frozenset(),
        environments=frozenset(),
        peer="ipv4:127.0.0.1:1",
        uptime_seconds=uptime_seconds,
    )
    return site.parts.hub.watcher(60.0), lambda watcher: site.parts.gateways.connected(identity, watcher, revision=revision, held=())


@contextlib.asynccontextmanager
async def refusing(site: Site, app: str, environment: str) -> AsyncIterator[None]:
    """Inside, a gateway is connected that is asked to prepare and cannot run what is for this binding."""
    watching, connected = gateway(site)
    async with watching as watcher:
        with connected(watcher) as session:

            async def refuse() -> None:
                while True:
                    await watcher.wait()
                    for prepare in session.prepares:
                        rejection = Rejection(app=app, environment=environment, digest="", reason="secret KEY is missing")
                        site.parts.gateways.prepared(session, prepare.prepare_id, [rejection])
                    session.prepares.clear()

            task = asyncio.create_task(refuse())
            try:
                yield
            finally:
                task.cancel()


@contextlib.asynccontextmanager
async def open_site(folder: Path, gateway_url: str = "", store_url: str = "") -> AsyncIterator[Site]:
    """An empty store, in the folder where no other is named, with a console."""
    url = store_url or f"sqlite:///{folder}/console.db"
    store = await open_store(url)
    kept = await asyncio.to_thread(open_executions, url, store.store_id)
    tail = Tail(kept)
    door = GatewayDoor(gateway_url)
    hub, gateways = Hub(store), Gateways(utc_now, prepare_timeout_seconds=0.5)
    await hub.start()
    authority = Authority(hub, store, utc_now)
    audit = Audit(store, utc_now)
    deployments = Deployments(store, gateways, utc_now)
    parts = Parts(
        apps=Apps(store, utc_now),
        environments=Environments(store, utc_now),
        releases=Releases(store, deployments, utc_now),
        deployments=deployments,
        past=Past(store),
        executions=Executions(store, kept, tail, utc_now),
        tail=tail,
        tokens=Tokens(store, hub, gateways, utc_now),
        retention=Retention(store, utc_now),
        gateways=gateways,
        gateway_door=door,
        hub=hub,
        authority=authority,
        audit=audit,
        clock=utc_now,
        terminal=Terminal(address=Address("127.0.0.1", 7400)),
    )
    transport = httpx2.ASGITransport(make_app(store, Metrics(), authority, Console(parts, "console.example")))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:7480") as http:
            yield Site(http, parts, store, kept)
    finally:
        tail.close()
        await door.close()
        await hub.close()
        await kept.close()
        await store.close()
