"""Idempotency-Key: a repeat is answered as the first was, and nothing runs twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from data_plane.lookup import Asked
from data_plane.record import Answer
from data_plane.replays import MEMORY_SECONDS, Replays
from pointsman.errors import InvalidField, RateLimited, StepFailed
from pointsman.v1.trigger_pb2 import TriggerRequest
from tests.clients import gateway_client, refusal_of
from tests.processes import start_gateway
from tests.sample_apps import marked
from tests.scripted_control_plane import ScriptedControlPlane
from tests.scripted_upstream import ScriptedUpstream

ANSWER = Answer(execution_id="e1", active=SimpleNamespace(), output={"n": 1})


def asked(key="k1", **more):
    return Asked(**({"endpoint": "chat", "input": {"n": 1}, "app": "shop", "environment": "production"} | more), idempotency_key=key)


class Work:
    """What would run; how often it did."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.runs = 0

    async def __call__(self):
        self.runs += 1
        end = self.ends.pop(0) if self.ends else ANSWER
        if isinstance(end, asyncio.Event):
            await end.wait()
            end = ANSWER
        if isinstance(end, Exception):
            raise end
        return end


async def test_a_repeat_gets_the_first_answer():
    replays, work = Replays(), Work()
    assert not (await replays.once(asked(), work)).replayed
    again = await replays.once(asked(), work)
    assert (again.replayed, again.execution_id, again.output, work.runs) == (True, "e1", {"n": 1}, 1)


@pytest.mark.parametrize("other", [{"key": "k2"}, {"app": "other"}, {"environment": "staging"}, {"endpoint": "sum"}])
async def test_another_key_or_place_is_another_trigger(other):
    replays, work = Replays(), Work()
    await replays.once(asked(), work)
    assert not (await replays.once(asked(**other), work)).replayed
    assert work.runs == 2


@pytest.mark.parametrize("other", [{"input": {"n": 2}}, {"release": "v2"}, {"min_revision": 7}, {"method": "GET"}])
async def test_the_same_key_with_another_request_is_refused(other):
    replays, work = Replays(), Work()
    await replays.once(asked(), work)
    with pytest.raises(InvalidField, match="was used within the last 10 minutes with another request"):
        await replays.once(asked(**other), work)
    assert work.runs == 1


async def test_a_repeat_that_comes_too_early_waits_for_the_first():
    replays, goes_on = Replays(), asyncio.Event()
    work = Work(goes_on)
    first = asyncio.create_task(replays.once(asked(), work))
    repeats = [asyncio.create_task(replays.once(asked(), work)) for _ in range(3)]
    await asyncio.sleep(0)
    goes_on.set()
    assert [answer.replayed for answer in await asyncio.gather(first, *repeats)] == [False, True, True, True]
    assert work.runs == 1


async def test_when_the_first_is_cancelled_one_of_the_repeats_runs():
    replays, work = Replays(), Work(asyncio.Event())
    first = asyncio.create_task(replays.once(asked(), work))
    await asyncio.sleep(0)
    repeats = [asyncio.create_task(replays.once(asked(), work)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert sorted(answer.replayed for answer in await asyncio.gather(*repeats)) == [False, True, True]
    assert work.runs == 2


async def test_failed_steps_are_remembered_and_refusals_are_not():
    failed = StepFailed("It failed.", stage="s", step="t", cause="c")
    replays, work = Replays(), Work(RateLimited("Too many.", limit=1), failed)
    with pytest.raises(RateLimited):
        await replays.once(asked(), work)
    with pytest.raises(StepFailed) as first:
        await replays.once(asked(), work)
    assert "replayed" not in first.value.metadata
    with pytest.raises(StepFailed) as again:
        await replays.once(asked(), work)
    assert again.value.metadata == {**first.value.metadata, "replayed": "true"}
    assert work.runs == 2


async def test_after_ten_minutes_it_runs_again():
    now = [0.0]
    replays, work = Replays(lambda: now[0]), Work()
    await replays.once(asked(), work)
    now[0] = MEMORY_SECONDS - 1
    assert (await replays.once(asked(), work)).replayed
    now[0] = MEMORY_SECONDS + 1
    assert not (await replays.once(asked(), work)).replayed


async def test_the_oldest_go_when_they_are_too_many_or_too_large(monkeypatch):
    monkeypatch.setattr("data_plane.replays.MAX_REMEMBERED", 2)
    replays, work = Replays(), Work()
    for key in ("a", "b", "c"):
        await replays.once(asked(key), work)
    assert (await replays.once(asked("c"), work)).replayed
    assert not (await replays.once(asked("a"), work)).replayed
    monkeypatch.setattr("data_plane.replays.MAX_REMEMBERED_BYTES", 4000)
    large = Answer(execution_id="e2", active=SimpleNamespace(), output="x" * 3000)
    await replays.once(asked("large"), Work(large))
    assert not (await replays.once(asked("c"), work)).replayed


@pytest.mark.parametrize("key", ["k" * 256, "a\tb"])
async def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(InvalidField, match="1 to 255 printable characters"):
        await Replays().once(asked(key), Work())


async def test_through_both_doors(tmp_path):
    async with (
        ScriptedControlPlane().running() as plane,
        ScriptedUpstream().running() as upstream,
        start_gateway(tmp_path, plane.address) as server,
        gateway_client(server) as gate,
    ):
        stream = await plane.stream()
        await stream.update(1, ("shop", "production", "v1", plane.release(marked("v1", upstream.url + "/echo"))), synced=True)
        first = await gate.post("shop", Idempotency_Key="k1")
        again = await gate.post("shop", Idempotency_Key="k1")
        assert ("x-replayed" in first.headers, again.headers["x-replayed"]) == (False, "true")
        assert (first.json(), first.headers["x-execution-id"]) == (again.json(), again.headers["x-execution-id"])
        other = await gate.post("shop", json={"message": "another"}, Idempotency_Key="k1")
        assert (other.status_code, other.json()["error"]) == (400, "INVALID_FIELD")
        assert other.json()["details"]["violations"][0]["field"] == "Idempotency-Key"
        streamed = await gate.post("shop", Idempotency_Key="k2", Accept="text/event-stream")
        assert (streamed.status_code, "stream" in streamed.json()["message"]) == (400, True)

        def call():
            return gate.triggers.Trigger(request(), metadata=(("idempotency-key", "k3"),), timeout=20)

        def request():
            found = TriggerRequest(app="shop", endpoint="where")
            found.input.update({"message": "hello"})
            return found

        before, after = call(), call()
        assert (await before).execution_id == (await after).execution_id
        assert sorted(["x-replayed" in dict(await before.initial_metadata()), "x-replayed" in dict(await after.initial_metadata())]) == [
            False,
            True,
        ]
        assert upstream.calls["/echo"] == 2

        upstream.fail_first["/500"] = 0
        await stream.update(2, ("shop", "production", "v2", plane.release(marked("v2", upstream.url + "/500"))))
        failed = [await gate.post("shop", Idempotency_Key="k4") for _ in range(2)]
        assert [answer.status_code for answer in failed] == [502, 502]
        assert ["x-replayed" in answer.headers for answer in failed] == [False, True]
        assert upstream.calls["/500"] == 1
        with pytest.raises(Exception) as error:  # noqa: PT011 -- looked at below
            await gate.triggers.Trigger(request(), metadata=(("idempotency-key", "x" * 300),), timeout=20)
        assert refusal_of(error.value).reason == "INVALID_FIELD"
