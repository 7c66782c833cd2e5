"""pointsman watch: follows what is live, over a connection that breaks too, and ends quietly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import uuid

from tests.clients import cli
from tests.eventually import eventually
from tests.processes import BIN, clean_environment
from tests.proxy import Proxy
from tests.sample_apps import marked


class Watching:
    """A running `pointsman watch`; its lines so far."""

    def __init__(self, process):
        self.process = process
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]

    async def _read(self, stream, lines):
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))

    async def interrupt(self):
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(self.process.wait(), 10)
        await asyncio.gather(*self.readers)
        return code


@contextlib.asynccontextmanager
async def watching(server, *arguments):
    process = await asyncio.create_subprocess_exec(
        *(BIN / "pointsman", "watch", "--server", server, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    watch = Watching(process)
    try:
        yield watch
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.gather(*watch.readers)


async def test_it_tells_what_is_live_then_every_change_and_ends_with_ctrl_c(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    first = (await stack.plane.deploy(app, "v1", "staging", reason="one\ntwo")).binding.revision
    async with watching(stack.control_plane.grpc, "--app", app) as watch:
        await eventually(lambda: len(watch.stdout) == 2)
        assert watch.stdout[0].startswith(f"{first}  {app} in staging serves v1")
        assert watch.stdout[0].endswith(": one")
        assert watch.stdout[1].startswith("-- in sync at revision ")
        second = (await stack.plane.deploy(app, "v2", "staging")).binding.revision
        await eventually(lambda: len(watch.stdout) == 3)
        assert watch.stdout[2].startswith(f"{second}  {app} in staging serves v2")
        assert await watch.interrupt() == 0
    assert watch.stderr == []


async def test_it_goes_on_where_it_was_when_the_connection_breaks(stack):
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await stack.plane.deploy(app, "v1", "staging")
    async with Proxy(stack.control_plane.grpc) as proxy, watching(proxy.address, "--app", app, "-o", "json") as watch:
        messages = lambda: [json.loads(line) for line in watch.stdout]  # noqa: E731 -- asked anew each time
        await eventually(lambda: any(message.get("bookmark", {}).get("synced") for message in messages()))
        await proxy.stop()
        await eventually(lambda: watch.stderr)
        second = (await stack.plane.deploy(app, "v2", "staging")).binding.revision
        third = (await stack.plane.deploy(app, "v1", "production")).binding.revision
        await proxy.restart()
        await eventually(lambda: messages()[-1].get("bookmark", {}).get("synced") and int(messages()[-1]["revision"]) >= third, 20)
        assert await watch.interrupt() == 0
    bindings = [(int(message["revision"]), message["binding"]["release"]) for message in messages() if "binding" in message]
    # Nothing is told twice and nothing is missed.
    assert [release for _, release in bindings] == ["v1", "v2", "v1"]
    assert [revision for revision, _ in bindings[1:]] == [second, third]
    assert "broke; trying again from revision" in watch.stderr[0]
    assert watch.stderr[-1] == "pointsman: connected again"


async def test_a_removal_is_told(stack):
    name = f"gone-{uuid.uuid4().hex[:8]}"
    assert (await cli("environment", "create", name, control_plane=stack.control_plane)).code == 0
    app = await stack.plane.create_app(v1=marked("v1"))
    await stack.plane.deploy(app, "v1", name)
    async with watching(stack.control_plane.grpc, "--app", app) as watch:
        await eventually(lambda: len(watch.stdout) == 2)
        assert (await cli("environment", "delete", name, "--force", control_plane=stack.control_plane)).code == 0
        await eventually(lambda: len(watch.stdout) == 3)
        assert f"{app} in {name} is gone" in watch.stdout[2]


async def test_what_cannot_be_watched_ends_it(stack):
    unknown = await cli("watch", "--app", "no-such-app", control_plane=stack.control_plane)
    assert (unknown.code, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("APP_NOT_FOUND: ")
    unreachable = await cli("watch", POINTSMAN_SERVER="127.0.0.1:1")
    assert (unreachable.code, len(unreachable.stderr.splitlines())) == (3, 1)
