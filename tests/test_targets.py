"""The servers of a model: which one is asked, how long it may take, and when it is left alone for a while."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import pytest
from google.protobuf import json_format

from data_plane.loaded import LoadedEndpoint, compile_release
from data_plane.pipeline import run
from data_plane.secrets import Secrets
from data_plane.steps import targets
from pointsman.errors import StepFailed, StepTimeout
from pointsman.v1.config_pb2 import AppConfig
from tests.scripted_upstream import ScriptedUpstream
from tests.test_inference import asking
from tests.test_tool_call import clients, running, upstream

__all__ = ["clients", "upstream"]


@pytest.fixture
async def second():
    async with ScriptedUpstream().running() as started:
        yield started


class Clock:
    """The time that targets see. The event loop's goes on."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(targets, "time", made)
    return made


async def test_what_is_wrong_with_the_request_is_not_asked_elsewhere_and_is_no_failure_of_the_target(upstream, second, clients):
    endpoint = asking(upstream.url, second.url, prompt="Hi", step={"max_retries": 2})
    for status in (400, 413, 422, 400):
        upstream.completions = [status]
        with pytest.raises(StepFailed, match=f"answered {status}"):
            await run(endpoint, running(clients))
    upstream.completions = ["still asked"]
    assert await run(endpoint, running(clients)) == "still asked"
    assert not second.seen


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
async def test_what_is_wrong_with_a_target_is_asked_of_the_next(upstream, second, clients, status):
    upstream.completions, second.completions = [status], ["second"]
    assert await run(asking(upstream.url, second.url, prompt="Hi"), running(clients)) == "second"


async def test_all_that_failed_are_told_with_their_causes(upstream, second, clients):
    upstream.completions, second.completions = [401], [500]
    with pytest.raises(StepFailed) as failed:
        await run(asking(upstream.url, second.url, prompt="Hi"), running(clients))
    assert "no target answered: model 'm' answered 401" in failed.value.message
    assert "model 'm' answered 500" in failed.value.message


async def test_a_target_that_hangs_has_its_share_of_the_time_and_the_last_one_the_rest(upstream, second, clients):
    second.completions = ["second"]
    began = time.monotonic()
    assert await run(asking(upstream.url + "/hang", second.url, prompt="Hi", timeout="1s"), running(clients)) == "second"
    assert time.monotonic() - began >= 0.5
    with pytest.raises(StepTimeout, match=r"longer than its timeout of 0\.4 s"):
        await run(asking(upstream.url + "/hang", second.url + "/hang", prompt="Hi", timeout="0.4s"), running(clients))


async def test_a_target_that_began_to_answer_may_go_on_beyond_its_share(upstream, second, clients):
    upstream.completions = ["slowly |<hang>|but surely"]
    now = running(clients)
    told: list[str] = []
    now.emit = lambda event: told.append(event.data["text"]) if event.name == "output_delta" else None
    task = asyncio.create_task(run(asking(upstream.url, second.url, prompt="Hi", timeout="2s"), now))
    asyncio.get_running_loop().call_later(1.2, upstream.release.set)
    assert await task == "slowly but surely"
    assert told == ["slowly ", "but surely"]
    assert not second.seen


async def test_after_three_failures_a_target_is_left_alone_for_ten_seconds_and_then_asked_once(upstream, second, clients, clock):
    endpoint = asking(upstream.url, second.url, prompt="Hi", timeout="60s")
    upstream.completions, second.completions = [503] * 3 + ["never"], ["x"] * 20
    for _ in range(5):
        await run(endpoint, running(clients, 60))
    assert len(upstream.seen) == 3
    clock.ahead_seconds = targets.BREAKER_SECONDS
    upstream.completions = [503]
    for _ in range(3):
        await run(endpoint, running(clients, 60))
    assert len(upstream.seen) == 4
    clock.ahead_seconds = 2 * targets.BREAKER_SECONDS
    upstream.completions = ["back", "again"]
    assert [await run(endpoint, running(clients, 60)) for _ in range(2)] == ["back", "again"]


async def test_one_request_at_a_time_looks_whether_a_target_is_back(upstream, second, clients, clock):
    endpoint = asking(upstream.url, second.url, prompt="Hi", timeout="60s")
    upstream.completions, second.completions = [503] * 3, ["x"] * 20
    for _ in range(3):
        await run(endpoint, running(clients, 60))
    clock.ahead_seconds = targets.BREAKER_SECONDS
    upstream.completions = ["back"]
    answers = await asyncio.gather(*(run(endpoint, running(clients, 60)) for _ in range(5)))
    assert sorted(answers) == ["back", "x", "x", "x", "x"]
    assert len(upstream.seen) == 4


async def test_without_another_even_one_that_is_left_alone_is_asked(upstream, clients):
    upstream.completions = [503] * 4 + ["back"]
    endpoint = asking(upstream.url, prompt="Hi")
    for _ in range(4):
        with pytest.raises(StepFailed):
            await run(endpoint, running(clients))
    assert await run(endpoint, running(clients)) == "back"


async def test_the_steps_of_a_release_share_what_they_know_of_a_target(upstream, second, clients):
    def step(name: str) -> dict[str, Any]:
        return {"name": name, "inference": {"model": "m", "prompt": name}}

    config = {
        "endpoints": [{"name": "e", "pipeline": "p"}],
        "pipelines": [{"name": "p", "stages": [{"name": "s", "steps": [step("a"), step("b"), step("c"), step("d")]}]}],
        "models": [{"name": "m", "targets": [{"base_url": f"{one.url}/v1"} for one in (upstream, second)]}],
    }
    snapshot = json_format.ParseDict(config, AppConfig()).SerializeToString(deterministic=True)
    loaded = compile_release("sha256:" + hashlib.sha256(snapshot).hexdigest(), snapshot, Secrets(environment={}))
    endpoint: LoadedEndpoint = loaded.endpoints["e"]
    upstream.completions, second.completions = [503] * 4, ["x"] * 4
    await run(endpoint, running(clients))
    assert (len(upstream.seen), len(second.seen)) == (3, 4)


async def test_usage_is_counted_over_attempts_and_names_the_model_that_answered(upstream, second, clients):
    upstream.completions, second.completions = [503], ["x"]
    now = running(clients)
    await run(asking(upstream.url, second.url, prompt="Hi"), now)
    usage = now.steps[0].usage
    assert (usage.model, usage.model_calls, usage.input_tokens, usage.output_tokens) == ("small", 1, 11, 5)
