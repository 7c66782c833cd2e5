"""ExecutionService and ReportExecutions: what gateways report is stored once, found by every filter, and told to who follows."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.execution_model import Report, Wanted
from control_plane.sweeper import SLICE_ROWS, Sweeper
from control_plane.tail import RING_BYTES, RING_EXECUTIONS, Tail
from pointsman.v1 import environments_pb2
from pointsman.v1 import executions_pb2 as pb
from tests.clients import control_plane_client, refused
from tests.eventually import eventually
from tests.executions import GATEWAY, ran, report
from tests.processes import start_control_plane
from tests.sample_apps import marked
from tests.test_storage_executions import opened
from tests.test_storage_executions import ran as kept_one


@pytest.fixture
async def kept(tmp_path):
    found = await opened(f"sqlite:///{tmp_path}/pointsman.db")
    yield found
    await found.close()


def an_app() -> str:
    return f"app-{uuid.uuid4().hex[:12]}"


def told_by(gateway: str, execution: pb.Execution) -> pb.Execution:
    """As it is shown: of the gateway that reported it, its times to the microsecond."""
    found = pb.Execution()
    found.CopyFrom(execution)
    found.gateway_id = gateway
    return found


async def listed(plane, **wanted) -> list[str]:
    return [e.execution_id for e in (await plane.executions.ListExecutions(pb.ListExecutionsRequest(**wanted))).executions]


async def test_a_report_is_stored_once_and_read_back_whole(stack):
    plane, app = stack.plane, an_app()
    one = ran(
        app, error_reason="STEP_FAILED", error_message="it\0broke", trace_id="f" * 32, token_id="t", input='{"a": 1}', digest="sha256:1"
    )
    assert await report(plane, one, ran(app)) == 2
    assert await report(plane, one) == 0
    found = (await plane.executions.GetExecution(pb.GetExecutionRequest(execution_id=one.execution_id))).execution
    expected = pb.Execution()
    expected.CopyFrom(one)
    # Who reports is who ran it, and times are kept to the microsecond.
    expected.gateway_id, expected.error_message = GATEWAY, "it\N{REPLACEMENT CHARACTER}broke"
    assert found == expected
    again = (await plane.executions.ListExecutions(pb.ListExecutionsRequest(app=app))).executions[1]
    expected.ClearField("steps")
    expected.ClearField("input")
    assert again == expected
    for request in (
        pb.GetExecutionRequest(execution_id=str(uuid.uuid4())),
        pb.GetExecutionRequest(execution_id=one.execution_id, app="other"),
    ):
        missing = await refused(plane.executions.GetExecution(request))
        assert (missing.code, missing.reason) == ("NOT_FOUND", "EXECUTION_NOT_FOUND")
        assert missing.metadata["execution_id"] == request.execution_id


async def test_what_no_gateway_sends_is_refused_as_a_whole(stack):
    plane, app = stack.plane, an_app()
    good, wrong = ran(app), ran(app, execution_id="1", outcome="OUTCOME_UNSPECIFIED")
    wrong.start_time.seconds = 10**15
    wrong.duration.seconds = -1
    answer = await refused(report(plane, good, wrong))
    assert answer.reason == "INVALID_FIELD"
    assert answer.violations == tuple(f"executions[1].{field}" for field in ("execution_id", "outcome", "start_time", "duration"))
    assert await listed(plane, app=app) == []
    large = [ran(app, input="x" * 1_000_000) for _ in range(13)]
    too_large = await refused(report(plane, *large))
    assert (too_large.reason, too_large.metadata["limit"]) == ("TOO_LARGE", str(12 * 1024 * 1024))


async def test_lists_page_and_filter(stack):
    plane, app = stack.plane, an_app()
    executions = [ran(app, ago=number, seconds=number, outcome="FAILED" if number % 2 else "SUCCEEDED") for number in range(7)]
    await report(plane, *executions)
    ids = [e.execution_id for e in executions]
    request, pages = pb.ListExecutionsRequest(app=app, page_size=3), []
    while not pages or request.page_token:
        page = await plane.executions.ListExecutions(request)
        pages.append([e.execution_id for e in page.executions])
        request.page_token = page.next_page_token
    assert pages == [ids[:3], ids[3:6], ids[6:]]
    assert await listed(plane, app=app, outcome="FAILED") == ids[1::2]
    assert await listed(plane, app=app, min_duration=Duration(seconds=5)) == ids[5:]
    assert await listed(plane, app=app, endpoint="/where", gateway_id=GATEWAY, start_time=executions[2].start_time) == ids[:3]
    assert await listed(plane, app=app, end_time=executions[2].start_time) == ids[3:]
    assert await listed(plane, app=app, release="v2") == []
    first = await plane.executions.ListExecutions(pb.ListExecutionsRequest(app=app, page_size=1))
    other = pb.ListExecutionsRequest(app=app, page_size=1, release="v1", page_token=first.next_page_token)
    assert (await refused(plane.executions.ListExecutions(other))).violations == ("page_token",)
    now = Timestamp(seconds=1_700_000_000)
    for wrong, field in (
        ({"start_time": now, "end_time": now}, "start_time"),
        ({"start_time": Timestamp(seconds=10**15)}, "start_time"),
        ({"min_duration": Duration(seconds=-1)}, "min_duration"),
        ({"app": "Not An Id"}, "app"),
    ):
        assert (await refused(listed(plane, **wrong))).violations == (field,)


async def test_a_tail_tells_what_passes_its_filters_as_it_is_stored(stack):
    plane, app = stack.plane, an_app()
    before, wanted, other = ran(app), ran(app, outcome="FAILED"), ran(app)
    await report(plane, before)
    call = plane.executions.TailExecutions(pb.TailExecutionsRequest(app=app, outcome="FAILED"))
    await call.initial_metadata()
    await report(plane, other, wanted)
    await report(plane, wanted)
    last = ran(app, outcome="FAILED")
    await report(plane, last)
    told = [await call.read(), await call.read()]
    call.cancel()
    assert [m.execution.execution_id for m in told] == [wanted.execution_id, last.execution_id]
    assert [len(m.execution.steps) for m in told] == [1, 1]


async def test_a_slow_reader_is_told_how_many_it_missed_and_delays_nobody(kept):
    tail = Tail(kept)
    async with tail.reader(Wanted(app="shop")) as slow, tail.reader(Wanted()) as quick:
        for _ in range(3):
            tail.publish([kept_one() for _ in range(RING_EXECUTIONS // 2)])
            found, missed = await quick.next(1)
            assert (len(found), missed) == (RING_EXECUTIONS // 2, 0)
        newest = kept_one()
        tail.publish([newest, kept_one(app="other")])
        found, missed = await slow.next(1)
        assert (len(found), missed) == (RING_EXECUTIONS, RING_EXECUTIONS // 2 + 1)
        assert found[-1] == newest
        assert await slow.next(0.01) == ([], 0)


async def test_what_a_slow_reader_holds_is_bounded_in_bytes_too(kept):
    tail = Tail(kept)
    async with tail.reader(Wanted()) as slow:
        large = [kept_one(detail=b"x" * (RING_BYTES // 4)) for _ in range(10)]
        for one in large:
            tail.publish([one])
        assert await slow.next(1) == (large[6:], 6)
        # What was taken counts no more, and one that is larger than all is told still.
        huge = kept_one(detail=b"x" * (RING_BYTES + 1))
        tail.publish([kept_one(), huge])
        assert await slow.next(1) == ([huge], 1)
        tail.publish(large[:4])
        assert await slow.next(1) == (large[:4], 0)


async def test_a_reader_that_is_stuck_holds_up_neither_reports_nor_other_readers(stack):
    plane, app = stack.plane, an_app()
    stuck, quick = (plane.executions.TailExecutions(pb.TailExecutionsRequest(app=app)) for _ in range(2))
    await asyncio.gather(stuck.initial_metadata(), quick.initial_metadata())
    # Much more than fits into the connection's buffers and the reader's ring together.
    batches = [[ran(app, input="x" * 8000) for _ in range(250)] for _ in range(4 * RING_EXECUTIONS // 250)]
    for batch in batches:
        assert await asyncio.wait_for(report(plane, *batch), 10) == len(batch)
        assert [(await asyncio.wait_for(quick.read(), 10)).execution for _ in batch] == [told_by(GATEWAY, one) for one in batch]
    shown, missed = [], 0
    while not shown or shown[-1] != batches[-1][-1].execution_id:
        message = await asyncio.wait_for(stuck.read(), 10)
        missed += message.missed
        shown += [message.execution.execution_id] if message.HasField("execution") else []
    assert missed > 0
    assert len(shown) + missed == sum(map(len, batches))
    stuck.cancel()
    quick.cancel()


async def test_a_tail_ends_when_the_control_plane_does(tmp_path):
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane:
        call = plane.executions.TailExecutions(pb.TailExecutionsRequest())
        await call.initial_metadata()
        ending = asyncio.create_task(refused(call.read()))
        await server.stop()
        assert (await ending).reason == "SHUTTING_DOWN"


async def test_what_was_reported_survives_a_kill(tmp_path):
    async with start_control_plane(tmp_path) as server:
        executions = [ran("shop") for _ in range(50)]
        async with control_plane_client(server) as plane:
            assert await report(plane, *executions) == 50
        await server.kill()
        await server.start()
        async with control_plane_client(server) as plane:
            assert await report(plane, *executions, ran("shop")) == 1
            assert len(await listed(plane, page_size=100)) == 51


async def test_summaries_set_the_live_release_beside_the_one_before(stack):
    plane = stack.plane
    app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await plane.deploy(app, "v1")
    await plane.deploy(app, "v2")
    instance_id = str(uuid.uuid4())
    await report(
        plane,
        *(ran(app, "v1", ago=60 + number, seconds=number) for number in range(1, 11)),
        *(ran(app, "v2", ago=number, seconds=2, outcome="FAILED" if number < 3 else "SUCCEEDED") for number in range(6)),
        ran(app, "v2", outcome="CANCELLED", seconds=99, input_tokens=5, output_tokens=7),
        ran(app, "v2", outcome="REFUSED", ago=0.5),
        ran(app, "v1", ago=4000),
        instance_id=instance_id,
    )
    found = await plane.executions.SummarizeExecutions(pb.SummarizeExecutionsRequest(app=app))
    new, old = found.summaries
    assert (new.release, new.live, new.previous_release) == ("v2", True, "v1")
    assert (new.executions, new.failed, new.cancelled, new.refused) == (8, 3, 1, 1)
    assert new.error_rate == pytest.approx(0.5)
    assert (new.p99_duration.seconds, new.input_tokens, new.output_tokens) == (2, 5, 7)
    assert (old.release, old.live, old.previous_release, old.executions) == ("v1", False, "", 10)
    assert [d.seconds for d in (old.p50_duration, old.p95_duration, old.p99_duration)] == [5, 10, 10]
    assert found.end_time.seconds - found.start_time.seconds == 3600
    await report(plane, instance_id=instance_id, dropped=4)
    later = await plane.executions.SummarizeExecutions(pb.SummarizeExecutionsRequest(app=app, endpoint="nowhere"))
    assert later.dropped - found.dropped == 4
    assert not later.summaries
    wrong = pb.SummarizeExecutionsRequest(start_time=found.end_time, end_time=found.start_time)
    assert (await refused(plane.executions.SummarizeExecutions(wrong))).violations == ("start_time",)


async def test_a_rollback_report_tells_what_the_bad_release_did(stack):
    plane = stack.plane
    app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await plane.deploy(app, "v1")
    bad = (await plane.deploy(app, "v2")).deployment
    failed = ran(app, "v2", revision=bad.revision, outcome="FAILED")
    await report(plane, failed, ran(app, "v2", revision=bad.revision), ran(app, "v1", revision=bad.revision - 1))
    await report(plane, ran(app, "v2", revision=bad.revision), gateway_id="west", instance_id=str(uuid.uuid4()))

    async def told(deployment_id: str) -> pb.GetRollbackReportResponse:
        return await plane.executions.GetRollbackReport(pb.GetRollbackReportRequest(deployment_id=deployment_id))

    live = await told(bad.deployment_id)
    assert (live.release, live.replaced_by, live.replace_revision, live.HasField("replace_time")) == ("v2", "", 0, False)
    rollback = (await plane.rollback(app)).deployment
    await report(plane, ran(app, "v2", revision=bad.revision, ago=-5))
    found = await told(bad.deployment_id)
    assert found == await told(rollback.deployment_id)
    assert (found.app, found.environment, found.release, found.revision) == (app, "production", "v2", bad.revision)
    assert (found.deployment_id, found.live_time) == (bad.deployment_id, bad.create_time)
    assert (found.replaced_by, found.replace_time, found.replace_revision) == (
        rollback.deployment_id,
        rollback.create_time,
        rollback.revision,
    )
    assert [(g.gateway_id, g.executions, g.failed) for g in found.gateways] == [("east", 3, 1), ("west", 1, 0)]
    assert (found.executions, found.failed, found.begun_after_replacement) == (4, 1, 1)
    assert [e.execution_id for e in found.failed_executions] == [failed.execution_id]
    unknown = await refused(told(str(uuid.uuid4())))
    assert (unknown.reason, unknown.violations) == ("INVALID_FIELD", ("deployment_id",))


async def test_the_report_of_what_a_deleted_environment_ran_ends_with_it(stack):
    plane, place = stack.plane, f"e-{uuid.uuid4().hex[:8]}"
    app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
    await plane.environments.CreateEnvironment(environments_pb2.CreateEnvironmentRequest(environment=place))
    first = (await plane.deploy(app, "v1", place)).deployment
    bad = (await plane.deploy(app, "v2", place)).deployment
    await report(plane, ran(app, "v2", environment=place, revision=bad.revision), ran(app, environment=place, revision=first.revision))
    before = datetime.now(UTC)
    await plane.environments.DeleteEnvironment(environments_pb2.DeleteEnvironmentRequest(environment=place, force=True))
    await report(plane, ran(app, "v2", environment=place, revision=bad.revision, ago=-5))

    async def told(deployment: Any) -> pb.GetRollbackReportResponse:
        return await plane.executions.GetRollbackReport(pb.GetRollbackReportRequest(deployment_id=deployment.deployment_id))

    found = await told(bad)
    assert (found.executions, found.begun_after_replacement, found.replaced_by) == (2, 1, "")
    assert before <= found.replace_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert found.replace_revision > bad.revision
    # Made again it is another one: what is live there now did not replace what was.
    await plane.environments.CreateEnvironment(environments_pb2.CreateEnvironmentRequest(environment=place))
    await plane.deploy(app, "v1", place)
    assert await told(bad) == found
    assert (await told(first)).replaced_by == bad.deployment_id


async def test_environments_that_callers_make_up_are_kept_as_one(stack):
    plane, app = stack.plane, an_app()
    made_up = [ran(app, release="", outcome="REFUSED", environment=f"made-up-{number}") for number in range(3)]
    real = [ran(app, release="", outcome="REFUSED", environment="staging"), ran(app, environment="gone-since")]
    await report(plane, *made_up, *real)
    found = (await plane.executions.ListExecutions(pb.ListExecutionsRequest(app=app))).executions
    assert {e.execution_id: e.environment for e in found} == {
        **{e.execution_id: "" for e in made_up},
        **{e.execution_id: e.environment for e in real},
    }


async def test_what_is_old_or_too_much_is_swept_away(kept, tmp_path):
    now = datetime.now(UTC)
    micros = int(now.timestamp() * 1_000_000)
    old = [kept_one(start_time=micros - 3 * 86_400_000_000 + number) for number in range(2 * SLICE_ROWS + 1)]
    new = [kept_one(start_time=micros - number) for number in range(10)]
    await kept.record(Report(gateway_id="g", instance_id="i", executions=old + new), micros)
    assert await Sweeper(kept, lambda: now, keep_days=2, keep_rows=100).sweep() == len(old)
    assert await Sweeper(kept, lambda: now, keep_days=2, keep_rows=4).sweep() == 6
    left = await kept.executions(Wanted(), before=None, limit=100)
    assert [e.execution_id for e in left] == [e.execution_id for e in new[:4]]


async def test_a_running_control_plane_sweeps(tmp_path):
    async with start_control_plane(tmp_path) as server, control_plane_client(server) as plane:
        await report(plane, ran("shop", ago=3 * 86_400), ran("shop"))
        await server.stop()
    async with start_control_plane(tmp_path, "--keep-executions-days", "2") as server, control_plane_client(server) as plane:

        async def swept() -> bool:
            return len(await listed(plane)) == 1

        await eventually(swept)


async def test_a_file_of_another_store_is_refused(tmp_path):
    async with start_control_plane(tmp_path):
        pass
    for path in tmp_path.glob("pointsman.db*"):
        if "-executions" not in path.name:
            path.unlink()
    with pytest.raises(AssertionError, match="holds the executions of another store"):
        async with start_control_plane(tmp_path):
            pass
