"""Every execution on record, with both planes as processes: counted by the load itself, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

from pointsman.v1 import apps_pb2, executions_pb2, executions_pb2_grpc
from tests.clients import OWN_CONNECTION, control_plane_client, gateway_client, grpc, refusal_of
from tests.eventually import eventually
from tests.processes import start_control_plane, start_gateway
from tests.sample_apps import marked
from tests.test_metrics import samples


def failing(mark):
    """A release whose last step fails for some inputs."""
    config = marked(mark)
    config["pipelines"][0]["stages"][1]["steps"][0]["transform"]["expression"] = "input.message == 'odd' ? input.missing : 'even'"
    return config


class Load:
    """Triggers one after the other on each gateway until it is stopped, and what came of each, by execution id."""

    def __init__(self, gates):
        self.gates = gates
        self.seen = {}
        self.stopping = False

    async def run(self, gate):
        number = 0
        while not self.stopping:
            number += 1
            try:
                answer = await gate.trigger("shop", given={"message": "odd" if number % 2 else "even"})
            except grpc.aio.AioRpcError as error:
                found = refusal_of(error)
                self.seen[found.metadata["execution_id"]] = (found.metadata.get("release", ""), found.reason, found.metadata["gateway_id"])
            else:
                self.seen[answer.execution_id] = (answer.release, "", answer.gateway_id)

    @contextlib.asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(self.run(gate)) for gate in self.gates]
        try:
            yield self
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)

    async def more(self, count, timeout_seconds=30):
        """Waits until so many more have ended."""
        wanted = len(self.seen) + count
        await eventually(lambda: len(self.seen) >= wanted, timeout_seconds=timeout_seconds)


def time_of(execution):
    return execution.start_time.ToNanoseconds() / 1e9


async def recorded(server):
    """What came of each execution that the control plane has, by id."""
    found = await listed(server)
    assert len({one.execution_id for one in found}) == len(found)
    return {one.execution_id: (one.release, one.error_reason, one.gateway_id) for one in found}


async def listed(server):
    """Every execution that the control plane has."""
    found = []
    async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
        stub = executions_pb2_grpc.ExecutionServiceStub(channel)
        request = executions_pb2.ListExecutionsRequest(app="shop", page_size=500)
        while True:
            page = await stub.ListExecutions(request, timeout=20)
            found += page.executions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


@contextlib.asynccontextmanager
async def installation(folder, *flags, store=None):
    """(control plane, its client, gateways, their clients), the app `shop` with the release `good` in production."""
    async with contextlib.AsyncExitStack() as running:
        server = await running.enter_async_context(start_control_plane(folder, *(("--store", store) if store else ())))
        gateways = [
            await running.enter_async_context(start_gateway(folder, server.grpc, *flags, gateway_id=name)) for name in ("east", "west")
        ]
        plane = await running.enter_async_context(control_plane_client(server))
        gates = [await running.enter_async_context(gateway_client(gateway)) for gateway in gateways]
        await plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="shop"))
        for tag, config in {"good": marked("good"), "bad": failing("bad")}.items():
            await plane.create_release("shop", tag, config)
        await synced(gates)
        await plane.deploy("shop", "good")
        yield server, plane, gateways, gates


async def synced(gates):
    async def all_connected():
        return all([(await gate.status()).connected for gate in gates])

    await eventually(all_connected, timeout_seconds=30)


def waiting_on_disk(folder):
    """How many executions the gateways have written down and not delivered."""
    paths = [path for name in ("east", "west") for path in (folder / name / "executions").iterdir()]
    return sum(int(path.stem.partition("-")[2]) for path in paths)


async def all_on_disk(folder, gates, load):
    """Waits until everything that has ended is on disk while nothing is delivered: a kill costs nothing then."""

    async def so():
        pages = [samples((await gate.http.get("/metrics")).text) for gate in gates]
        sealed = sum(value for page in pages for (name, _), value in page.items() if name == "pointsman_triggers_total")
        waiting = sum(page["pointsman_gateway_executions_waiting", ()] for page in pages)
        return (sealed, waiting) == (len(load.seen), waiting_on_disk(folder))

    await eventually(so)


async def test_the_report_of_a_rollback_matches_what_the_callers_counted(tmp_path):
    async with installation(tmp_path) as (server, plane, _, gates):
        async with Load(gates).running() as load:
            await load.more(50)
            bad = await plane.deploy("shop", "bad")
            await load.more(200)
            await plane.rollback("shop")
            acknowledged = time.time()
            await load.more(50)

        async def everything():
            return await recorded(server) == load.seen

        await eventually(everything)
        on_bad = [(reason, gateway) for release, reason, gateway in load.seen.values() if release == "bad"]
        async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
            request = executions_pb2.GetRollbackReportRequest(deployment_id=bad.deployment.deployment_id)
            report = await executions_pb2_grpc.ExecutionServiceStub(channel).GetRollbackReport(request, timeout=10)
        assert (report.release, report.executions) == ("bad", len(on_bad))
        assert report.failed == sum(reason == "STEP_FAILED" for reason, _ in on_bad) > 0
        assert {use.gateway_id: use.executions for use in report.gateways} == Counter(gateway for _, gateway in on_bad)
        began = [time_of(one) for one in (await listed(server)) if one.release == "bad"]
        # When the rollback was answered every gateway had flipped back; between its commit and that some began.
        assert max(began) < acknowledged
        replaced = report.replace_time.ToNanoseconds() / 1e9
        assert report.begun_after_replacement == sum(moment > replaced for moment in began)
        assert {one.execution_id for one in report.failed_executions} == {
            execution_id for execution_id, (release, reason, _) in load.seen.items() if (release, reason) == ("bad", "STEP_FAILED")
        }


async def test_every_execution_is_stored_once_although_both_planes_are_killed(tmp_path):
    async with installation(tmp_path) as (server, _, gateways, gates):
        async with Load(gates).running() as load:
            await load.more(30)
            await server.kill()
            # Nobody notices but the record.
            await load.more(300)
        await all_on_disk(tmp_path, gates, load)
        for gateway in gateways:
            await gateway.kill()
        await server.start()
        for gateway in gateways:
            await gateway.start()

        async def everything():
            return await recorded(server) == load.seen

        await eventually(everything, timeout_seconds=30)
        await eventually(lambda: not waiting_on_disk(tmp_path))


async def test_what_there_is_no_room_for_is_counted_and_told(tmp_path):
    async with installation(tmp_path, "--spool-mib", "1", "--capture", "all") as (server, _, _, gates):
        await server.kill()
        ran = 0

        async def dropped():
            nonlocal ran
            calls = [gates[0].trigger("shop", given={"message": "x" * 8000}) for _ in range(20)]
            ran += len(await asyncio.gather(*calls))
            return samples((await gates[0].http.get("/metrics")).text)["pointsman_gateway_executions_dropped", ()] > 0

        await eventually(dropped, timeout_seconds=30)
        await server.start()
        await synced(gates)

        async def told():
            async with grpc.aio.insecure_channel(server.grpc, OWN_CONNECTION) as channel:
                stub = executions_pb2_grpc.ExecutionServiceStub(channel)
                summary = await stub.SummarizeExecutions(executions_pb2.SummarizeExecutionsRequest(app="shop"), timeout=10)
            found = await recorded(server)
            assert (summary.dropped > 0, len(found) + summary.dropped) == (True, ran), (len(found), summary.dropped)
            return True

        await eventually(told, timeout_seconds=20)
