"""Executions told as they go, over SSE and over gRPC: order, text as a model writes it, failures, callers who leave, slow readers."""

import json
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf import json_format

from data_plane.access import Access
from data_plane.events import JOIN_DELTAS_BEYOND, Event, Events, output_delta
from data_plane.rpc import TriggerServicer
from pointsman.serving import GrpcServer
from pointsman.settings import Address
from pointsman.v1 import trigger_pb2, trigger_pb2_grpc
from pointsman.v1.config_pb2 import AppConfig
from pointsman.values import to_struct
from tests.eventually import eventually
from tests.raw_upstream import raw_upstream
from tests.test_http_door import Door, bare

__all__ = ["bare"]
EVENT_STREAM = {"Accept": "text/event-stream"}


def chatting(upstream: str) -> AppConfig:
    steps = [
        {"name": "name", "transform": {"expression": "input.?name.orValue('you')"}},
        {"name": "skipped", "when": "false", "transform": {"expression": "1"}},
        {"name": "ask", "inference": {"model": "m", "prompt": "Greet {{ steps.name }}", "tools": ["find"]}},
    ]
    broken = [{"name": "ok", "transform": {"expression": "1"}}, {"name": "bad", "transform": {"expression": "input.missing"}}]
    return json_format.ParseDict(
        {
            "endpoints": [{"name": "chat", "pipeline": "chat"}, {"name": "broken", "pipeline": "broken"}],
            "pipelines": [
                {"name": "chat", "stages": [{"name": "s", "steps": steps}], "output": "{'said': steps.ask}"},
                {"name": "broken", "stages": [{"name": "s", "steps": broken}]},
            ],
            "tools": [{"name": "find", "http": {"url": upstream + "/echo/{{ arguments.id }}"}}],
            "models": [{"name": "m", "targets": [{"base_url": upstream + "/v1"}]}],
        },
        AppConfig(),
    )


@pytest.fixture
async def door(bare):
    await bare.bind(7, ("shop", "production", "v1"), config=chatting(bare.upstream.url))
    return bare


async def events_of(response: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; checks the ids on the way."""
    found: list[tuple[str, dict[str, Any]]] = []
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            assert line == f"id: {len(found) + 1}"
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))
    return found


async def streamed(door: Door, endpoint: str, **given: Any) -> list[tuple[str, dict[str, Any]]]:
    async with door.http.stream("POST", f"/v1/trigger/{endpoint}", json=given, headers=EVENT_STREAM) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        assert (response.headers["x-release"], response.headers["x-revision"], response.headers["x-app"]) == ("v1", "7", "shop")
        return await events_of(response)


async def test_events_come_in_order_with_the_text_as_it_is_written(door):
    door.upstream.completions = ["Hello |dear |Ann"]
    found = await streamed(door, "chat", name="Ann")
    assert [name for name, _ in found] == [
        "execution.started",
        "step.started",
        "step.finished",
        "step.started",
        "output.delta",
        "output.delta",
        "output.delta",
        "step.finished",
        "execution.completed",
    ]
    assert [data["text"] for name, data in found if name == "output.delta"] == ["Hello ", "dear ", "Ann"]
    assert found[-1][1] == {"output": {"said": "Hello dear Ann"}}
    assert found[0][1]["release"] == "v1"
    finished = found[-2][1]
    assert (finished["step"], finished["outcome"], finished["attempts"]) == ("ask", "SUCCEEDED", 1)


async def test_tool_calls_in_pieces_are_put_together(door):
    call = {"id": "c1", "function": {"name": "find", "arguments": '{"id": "77"}'}}
    door.upstream.completions = [{"tool_calls": [call]}, "Found |it"]
    found = await streamed(door, "chat")
    assert found[-1][1] == {"output": {"said": "Found it"}}
    assert door.upstream.calls["/echo/77"] == 1


async def test_a_failure_after_the_start_is_the_last_event(door):
    found = await streamed(door, "broken")
    assert [name for name, _ in found][-2:] == ["step.finished", "execution.failed"]
    assert found[-2][1]["outcome"] == "FAILED"
    assert (found[-1][1]["error"], found[-1][1]["details"]["step"]) == ("STEP_FAILED", "bad")


async def test_a_model_that_is_cut_fails_the_step_after_what_it_told(door):
    door.upstream.completions = ["half |<cut>"]
    found = await streamed(door, "chat")
    assert [data["text"] for name, data in found if name == "output.delta"] == ["half "]
    assert "cut before its end" in found[-1][1]["message"]


async def test_what_is_refused_before_the_start_is_answered_as_ever(door):
    await door.refused(404, "ENDPOINT_NOT_FOUND", "POST", "/v1/trigger/none", json={}, headers=EVENT_STREAM)
    await door.refused(400, "INVALID_INPUT", "POST", "/v1/trigger/chat", content=b"[]", headers=EVENT_STREAM)


async def test_a_caller_who_leaves_ends_the_work_upstream_within_a_second(door):
    door.upstream.completions = ["Hello |<hang>|never"]
    async with door.http.stream("POST", "/v1/trigger/chat", json={}, headers=EVENT_STREAM) as response:
        lines = response.aiter_lines()
        while "Hello" not in await anext(lines):
            pass
        await eventually(lambda: door.upstream.hanging == 1)
    await eventually(lambda: door.upstream.hanging == 0 and door.gateway.in_flight == 0, 1.0)


async def test_a_slow_reader_gets_all_the_text_in_fewer_events():
    events = Events()
    for number in range(10_000):
        events.put(output_delta("ask", f"{number},"))
    events.put(Event("execution_completed", {}))
    found = []
    while not found or found[-1].name != "execution_completed":
        found += await events.take()
    assert len(found) <= JOIN_DELTAS_BEYOND + 3
    assert "".join(event.data["text"] for event in found[:-1]) == "".join(f"{number}," for number in range(10_000))


async def test_text_of_several_steps_at_once_is_joined_too_and_never_across_other_events():
    events = Events()
    for turn in range(3):
        for number in range(2000):
            for step in ("one", "two"):
                events.put(output_delta(step, f"{turn}.{number},"))
        events.put(Event("step_started", {"step": str(turn)}))
    found = await events.take()
    assert len(found) <= JOIN_DELTAS_BEYOND + 10
    starts = [index for index, event in enumerate(found) if event.name == "step_started"]
    for turn, (begin, end) in enumerate(zip([-1, *starts], starts, strict=False)):
        for step in ("one", "two"):
            text = "".join(event.data["text"] for event in found[begin + 1 : end] if event.data["step"] == step)
            assert text == "".join(f"{turn}.{number}," for number in range(2000))
    events.put(output_delta("one", "at once"))
    assert (await events.take())[0].data["text"] == "at once"


@pytest.fixture
async def stub(door):
    server = GrpcServer()
    trigger_pb2_grpc.add_TriggerServiceServicer_to_server(TriggerServicer(door.gateway, Access(door.holder)), server.services)
    await server.start(Address("127.0.0.1", 0), ["pointsman.v1.TriggerService"])
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        yield trigger_pb2_grpc.TriggerServiceStub(channel)
    await server.stop(0)


async def test_the_same_over_grpc(door, stub):
    door.upstream.completions = ["Hello |Ann"]
    request = trigger_pb2.TriggerStreamRequest(app="shop", endpoint="chat", input=to_struct({"name": "Ann"}))
    found = [event async for event in stub.TriggerStream(request)]
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    kinds = [event.WhichOneof("event") for event in found]
    assert (kinds[0], kinds[-1], kinds.count("output_delta")) == ("execution_started", "execution_completed", 2)
    assert found[0].execution_started.revision == 7
    assert json_format.MessageToDict(found[-1].execution_completed.output) == {"said": "Hello Ann"}


async def test_a_failure_over_grpc_is_an_event_and_then_the_status(door, stub):
    found: list[Any] = []
    call = stub.TriggerStream(trigger_pb2.TriggerStreamRequest(endpoint="broken"))
    while not found or found[-1].WhichOneof("event") != "execution_failed":
        found.append(await call.read())
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.ABORTED
    assert found[-1].execution_failed.error == "STEP_FAILED"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(stub.TriggerStream(trigger_pb2.TriggerStreamRequest(endpoint="none"))))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_leaving_over_grpc_ends_the_work_too(door, stub):
    door.upstream.completions = ["Hello |<hang>|never"]
    call = stub.TriggerStream(trigger_pb2.TriggerStreamRequest(endpoint="chat"))
    async for event in call:
        if event.WhichOneof("event") == "output_delta":
            break
    await eventually(lambda: door.upstream.hanging == 1)
    call.cancel()
    await eventually(lambda: door.upstream.hanging == 0 and door.gateway.in_flight == 0, 1.0)


async def all_of(events: Any) -> list[Any]:
    return [event async for event in events]


async def test_a_deadline_over_grpc_ends_the_work_too(door, stub):
    async with raw_upstream() as upstream:
        await door.bind(8, ("shop", "production", "v2"), config=chatting(upstream.url + "/hang"))
        for call in (
            lambda: stub.Trigger(trigger_pb2.TriggerRequest(endpoint="chat"), timeout=0.5),
            lambda: all_of(stub.TriggerStream(trigger_pb2.TriggerStreamRequest(endpoint="chat"), timeout=0.5)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await call()
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: upstream.connections == 0 and door.gateway.in_flight == 0, 1.0)
        assert upstream.requests == 2
