"""Never "start over": a watch gives the present state first, then changes, and resumes from any revision."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from pointsman.v1 import deployments_pb2, environments_pb2
from tests.clients import control_plane_client
from tests.processes import start_control_plane
from tests.sample_apps import marked


@contextlib.asynccontextmanager
async def watching(plane, **fields):
    """The stream of a watch; cancelled at the end."""
    call = plane.deployments.WatchBindings(deployments_pb2.WatchBindingsRequest(**fields))
    try:
        yield call
    finally:
        call.cancel()


async def until_synced(call):
    """The releases by environment, and the revision of the bookmark that ends the present state."""
    seen, last = {}, 0
    while True:
        message = await asyncio.wait_for(call.read(), 10)
        assert message.revision >= last, "revisions never go back"
        last = message.revision
        if message.WhichOneof("kind") == "bookmark":
            assert message.bookmark.synced
            return seen, message.revision
        seen[message.binding.environment] = message.binding.release


async def next_binding(call):
    """The next binding; bookmarks between are passed over."""
    while True:
        message = await asyncio.wait_for(call.read(), 10)
        if message.WhichOneof("kind") == "binding":
            assert message.revision == message.binding.revision
            return message.binding


async def drain(call):
    """Reads to the end of the stream."""
    while await call.read() is not grpc.aio.EOF:
        continue


async def test_the_present_state_then_changes(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1", "staging")
    await stack.plane.deploy(app, "v1", "production")
    async with watching(stack.plane, app=app) as call:
        seen, revision = await until_synced(call)
        assert seen == {"staging": "v1", "production": "v1"}
        deployed = await stack.plane.deploy(app, "v2", "staging")
        changed = await next_binding(call)
        assert (changed.environment, changed.release, changed.revision) == ("staging", "v2", deployed.binding.revision)
        assert changed.revision > revision


async def test_it_resumes_with_only_what_is_newer(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1", "staging")
    seen_until = (await stack.plane.deploy(app, "v1", "production")).binding.revision
    for tag in ("v2", "v1", "v2"):
        await stack.plane.deploy(app, tag, "staging")
    async with watching(stack.plane, app=app, after_revision=seen_until) as call:
        seen, _ = await until_synced(call)
        # Latest wins: one message for the binding that changed three times, none for the one that did not.
        assert seen == {"staging": "v2"}


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_it_resumes_over_a_restart_and_sees_removals(tmp_path, end):
    async with start_control_plane(tmp_path) as server:
        async with control_plane_client(server) as plane:
            app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
            await plane.environments.CreateEnvironment(environments_pb2.CreateEnvironmentRequest(environment="canary"))
            await plane.deploy(app, "v1", "canary")
            await plane.deploy(app, "v1")
            async with watching(plane) as call:
                seen, revision = await until_synced(call)
                assert seen == {"canary": "v1", "production": "v1"}
                await (server.kill() if end == "kill" else server.stop())
                # Bookmarks may still be on their way; then the stream ends with an error that says: try again.
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await drain(call)
                assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        await server.start()
        async with control_plane_client(server) as plane:
            await plane.environments.DeleteEnvironment(environments_pb2.DeleteEnvironmentRequest(environment="canary", force=True))
            await plane.deploy(app, "v2")
            async with watching(plane, after_revision=revision) as call:
                seen, _ = await until_synced(call)
                assert seen == {"canary": "", "production": "v2"}
            # A new watcher is told nothing of what is gone.
            async with watching(plane) as call:
                assert (await until_synced(call))[0] == {"production": "v2"}


async def test_a_hundred_watchers_all_see_the_last_change(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1")
    async with contextlib.AsyncExitStack() as watches:
        calls = [await watches.enter_async_context(watching(stack.plane, app=app)) for _ in range(100)]
        await asyncio.gather(*[until_synced(call) for call in calls])
        revision = 0
        for tag in ("v2", "v1", "v2", "v1", "v2"):
            revision = (await stack.plane.deploy(app, tag)).binding.revision

        async def sees_the_last(call):
            while (binding := await next_binding(call)).revision < revision:
                assert binding.app == app
            assert (binding.release, binding.revision) == ("v2", revision)

        await asyncio.gather(*map(sees_the_last, calls))
