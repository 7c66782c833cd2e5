"""A console over a store that is full, and the pages that it is measured by: their size in a test with fewer executions, their speed in the benchmark with a million."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from control_plane.execution_model import Execution, Outcome, Report
from control_plane.model import App, Identity, Release, Role, digest_of
from control_plane.service.deployments import Options, Wanted
from control_plane.service.environments import EnvironmentChange
from control_plane.service.snapshots import snapshot_of
from control_plane.service.tokens import NewToken
from control_plane.storage.base import Transaction
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1.config_pb2 import AppConfig
from tests.console_app import ANN, Site, open_site
from tests.sample_apps import marked

RELEASES, ENVIRONMENTS, GATEWAYS, TOKENS, PIPELINES, APPS = 1000, 50, 500, 200, 50, 200
# Of the apps so many are deployed at once. Each is six statements, of a dry run too: all 200 take PostgreSQL longer than a page may.
TOGETHER = 50
MAX_SECONDS = 0.1
MAX_PAGE_BYTES = 150_000
BATCH = 1000
# A million a day. Lists do not care; a summary reads every one of its window, 10,000 of a quarter of an hour.
BETWEEN_MICROS = 86_400
PAGES = (
    "/apps",
    "/deploy",
    "/deploy?environment=production&step=look",
    "/deploy?environment=production&releases=shop%3Dv7+app-1%3Dv8",
    "/deploy?environment=production&releases=" + "+".join(f"app-{number}%3Dv8" for number in range(TOGETHER)),
    "/deploy/production/{together}",
    "/apps/shop/releases",
    "/apps/shop/releases?q=v99",
    "/apps/shop/releases?q=nothing-like-it",
    "/apps/shop/releases/v999",
    "/apps/shop/compare?from=v1&to=v999",
    "/apps/shop/new-release",
    "/apps/shop/prune?keep_newest=10&keep_deployed=2",
    "/apps/shop/environments",
    "/apps/shop/environments?as_of=1m",
    "/apps/shop/environments/staging",
    "/apps/shop/deploy",
    "/apps/shop/deploy?release=v1&environment=staging",
    "/apps/shop/promote?from=staging&to=production",
    "/apps/shop/rollback?environment=staging",
    "/apps/shop/draft",
    "/apps/shop/editor",
    "/apps/shop/changes",
    "/apps/wide/editor",
    "/apps/wide/editor?at=pipelines[49]",
    "/apps/wide/editor/form?at=pipelines[49].stages[3].steps[1]",
    "/apps/wide/changes",
    "/apps/shop/executions",
    "/apps/shop/executions?environment=staging&errors=yes",
    "/apps/shop/executions?outcome=FAILED&gateway_id=gateway-3&min_duration=200ms",
    "/apps/shop/executions?release=v48&endpoint=chat&since=10m",
    "/apps/shop/executions?release=none-like-it",
    "/apps/shop/executions/{execution}",
    "/apps/shop/summary",
    "/apps/shop/summary?environment=staging",
    "/apps/shop/reports/{deployment}",
    "/apps/shop/try",
    "/environments",
    "/environments/staging",
    "/tokens",
    "/audit",
    "/audit?actor=ann@example.org&since=2h",
    "/tokens/{token}",
    "/gateways",
    "/gateways?gateway=gateway-3",
)


@contextlib.asynccontextmanager
async def full_site(folder: Path, executions: int, store_url: str = "") -> AsyncIterator[tuple[Site, dict[str, str]]]:
    """The site, signed in as an admin, and the ids that PAGES name."""
    async with open_site(folder, "http://127.0.0.1:9", store_url) as site, contextlib.AsyncExitStack() as connected:
        for number in range(RELEASES):
            await site.release("shop", f"v{number}", description="What is in it, in a few words.")
        for number in range(ENVIRONMENTS - 3):
            await site.parts.environments.create(f"test-{number}", EnvironmentChange(description=""), ANN)
            await site.deploy("shop", f"v{number}", f"test-{number}")
        for number in range(50):
            await site.deploy("shop", f"v{number}", "staging", reason="tried by hand")
        await site.draft("shop", "next", tools=marked("x", "http://127.0.0.1:1/")["tools"])
        await _wide(site)
        together = await _many(site)
        secrets = [await site.parts.tokens.create(NewToken(name=f"t{number}", role=Role.ADMIN), ANN) for number in range(TOKENS)]
        await site.parts.hub.refresh()
        watcher = await connected.enter_async_context(site.parts.hub.watcher(60.0))
        for number in range(GATEWAYS):
            connected.enter_context(
                site.parts.gateways.connected(identity(number), watcher, revision=site.parts.hub.revision - number % 2, held=())
            )
        binding = await site.parts.binding("shop", "staging")
        assert binding is not None
        assert binding.deployment is not None
        newest = await _run(site, executions, binding.revision)
        await site.send("/sign-in", token=secrets[0][1])
        ids = {"deployment": binding.deployment.deployment_id, "token": secrets[1][0].token_id}
        yield site, ids | {"execution": str(newest), "together": str(together)}


async def _wide(site: Site) -> None:
    """An app with many pipelines of six stages of four steps, of which its draft has changed one."""
    wide = AppConfig()
    for number in range(PIPELINES):
        wide.endpoints.add(name=f"endpoint-{number}", pipeline=f"pipeline {number}")
        pipeline = wide.pipelines.add(name=f"pipeline {number}")
        for position in range(6):
            stage = pipeline.stages.add(name=f"stage {position}", gate="true")
            for index in range(4):
                stage.steps.add(name=f"s{position}_{index}", max_retries=1).transform.expression = "'Hello, ' + input.name"
    await site.parts.apps.create("wide", "", ANN)
    await site.parts.apps.update_draft("wide", snapshot_of(wide), None, ANN)
    await site.parts.releases.create(app="wide", tag="v1", description="", config=None, deploy_to="", call=ANN)
    wide.pipelines[49].stages[3].gate = "false"
    await site.parts.apps.update_draft("wide", snapshot_of(wide), None, ANN)


async def _many(site: Site) -> int:
    """Apps with eight releases each, of the same content, all of which are live in production since one revision, which it returns."""
    content, now = snapshot_of(AppConfig()), site.parts.clock()
    digest = digest_of(content)
    names = [f"app-{number}" for number in range(APPS)]

    async def work(tx: Transaction) -> None:
        await tx.insert_snapshot(digest, content)
        for name in names:
            await tx.insert_app(App(app=name, description="", create_time=now, created_by="ann"))
            for number in range(1, 9):
                known = {"app": name, "tag": f"v{number}", "digest": digest}
                await tx.insert_release(Release(**known, description="", size_bytes=len(content), create_time=now, created_by="ann"))

    await site.store.write(work)
    wanted = [Wanted(app=name, environment="production", release="v1", expected_revision=None) for name in names]
    return (await site.parts.deployments.deploy_many(wanted, Options(), ANN)).binding.revision


def identity(number: int) -> Identity:
    """Of one of many gateways."""
    return Identity(
        gateway_id=f"gateway-{number}",
        instance_id=f"0193a1b2-0000-7000-8000-{number:012}",
        version="0.1.0",
        apps=frozenset(),
        environments=frozenset(),
        peer="ipv4:127.0.0.1:50000",
    )


async def _run(site: Site, count: int, revision: int) -> uuid.UUID:
    """So many executions, the newest of now, on the releases that were live one after the other; the newest one's id."""
    chance, now = random.Random(2), time.time_ns() // 1000
    batch: list[Execution] = []
    for first in range(0, count, BATCH):
        batch = [_execution(chance, number, count, now, revision) for number in range(first, first + BATCH)]
        await site.kept.record(Report(gateway_id="gateway-1", instance_id="bench", executions=batch), now)
    return uuid.UUID(bytes=batch[-1].execution_id)


def _execution(chance: random.Random, number: int, count: int, now: int, revision: int) -> Execution:
    began = now - (count - number) * BETWEEN_MICROS
    failed = chance.random() < 0.01
    detail = pb.Execution()
    for name in ("read", "think", "answer"):
        step = detail.steps.add(stage="main", name=name, kind="transform", outcome=pb.Execution.StepExecution.SUCCEEDED, attempts=1)
        step.start_time.FromMicroseconds(began)
        step.duration.FromMilliseconds(4)
    # The last ten thousand are of the live release, those before it of the one before.
    is_new = count - number <= 10_000
    return Execution(
        execution_id=(began // 1000 << 80 | chance.getrandbits(76)).to_bytes(16),
        app="shop",
        environment="production" if chance.random() < 0.2 else "staging",
        endpoint=chance.choice(("chat", "talk", "find")),
        release="v49" if is_new else "v48",
        digest="sha256:" + "0" * 64,
        revision=revision if is_new else revision - 1,
        gateway_id=f"gateway-{chance.randrange(GATEWAYS)}",
        start_time=began,
        duration=int(chance.lognormvariate(10, 1)),
        outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
        error_reason="STEP_FAILED" if failed else "",
        error_message="it broke" if failed else "",
        token_id="",
        trace_id="",
        input_tokens=10,
        output_tokens=20,
        detail=detail.SerializeToString(),
    )
