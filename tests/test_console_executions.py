"""What ran, in the console: filters, paging, the live view, one execution drawn to scale."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from control_plane.model import Role
from control_plane.service.calls import Call
from control_plane.service.tokens import NewToken
from pointsman.ids import new_id
from pointsman.v1 import executions_pb2 as pb
from tests.console_app import open_site
from tests.eventually import eventually
from tests.executions import ran

ROWS = re.compile(r'<tr id="e-([0-9a-f-]{36})">')
LIST = "/apps/shop/executions"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        await site.release("shop", "v1")
        await site.release("shop", "v2")
        yield site


async def shown(site, **query):
    """The executions of a page, as they stand there."""
    text = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    return ROWS.findall(await site.page(f"{LIST}?{text}"))


async def test_where_nothing_ran_the_page_says_what_to_do(site):
    page = await site.page(LIST)
    assert "Nothing has run yet" in page
    assert "pointsman --app shop trigger" in page
    assert "No execution passes these filters" in await site.page(f"{LIST}?release=v1")


async def test_each_filter_leaves_what_passes_it(site):
    plain = ran("shop", ago=10)
    others = {
        "environment": ("staging", ran("shop", ago=9, environment="staging")),
        "release": ("v2", ran("shop", "v2", ago=8)),
        "endpoint": ("/chat", ran("shop", ago=7, endpoint="chat")),
        "outcome": ("failed", ran("shop", ago=6, outcome="FAILED")),
        "error_reason": ("STEP_FAILED", ran("shop", ago=5, outcome="CANCELLED", error_reason="STEP_FAILED")),
        "min_duration": ("1.5s", ran("shop", ago=4, seconds=2)),
        "since": ("3s", ran("shop", ago=1)),
    }
    await site.ran(plain, ran("other"), *(one for _, one in others.values()))
    west = ran("shop", ago=3)
    await site.ran(west, gateway_id="west")
    others["gateway_id"] = ("west", west)
    assert await shown(site) == [
        one.execution_id for one in sorted([plain, *(one for _, one in others.values())], key=lambda o: -o.start_time.ToMicroseconds())
    ]
    for name, (value, one) in others.items():
        assert await shown(site, **{name: value}) == [one.execution_id], name
    before = (datetime.now(UTC) - timedelta(seconds=9.5)).isoformat()
    assert await shown(site, until=before) == [plain.execution_id]


async def test_a_filter_that_cannot_be_read_is_told_at_its_field(site):
    for name, value, told in (
        ("min_duration", "soon", "'soon' is not a duration"),
        ("since", "yesterday", "'yesterday' is no time"),
        ("outcome", "BROKEN", "'BROKEN' is none of SUCCEEDED"),
        ("environment", "No Such", "environment"),
    ):
        page = await site.page(f"{LIST}?{name}={quote(value)}", 400)
        assert told in page, name
        assert not ROWS.findall(page)
    assert 'value="soon"' in await site.page(f"{LIST}?min_duration=soon", 400)


@pytest.mark.parametrize("name", ["min_duration", "since", "until", "page", "environment", "gateway_id", "release", "endpoint", "outcome"])
@pytest.mark.parametrize(
    "value",
    [
        *(
            "999999999d",
            "999999999.999999ms",
            "0s",
            "0001-01-01T00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "0001-01-01",
            "2026-01-31T12:00 02:00",
        ),
        *("2026-02-30", "-1s", "1e9s", "''", "%", "x" * 2000, "\0", "\u2028", "\U0001f600", "../..", "1" * 400, "NaN", "None"),
    ],
)
async def test_whatever_is_asked_for_is_answered(site, name, value):
    for where in (LIST, "/apps/shop/summary", f"{LIST}/tail"):
        if where == f"{LIST}/tail":
            site.parts.tail.close()
        answer = await site.http.get(where, params={name: value})
        assert answer.status_code in (200, 400), (where, answer.text)


async def test_a_step_of_a_newer_gateway_is_shown_too(site):
    one = ran("shop")
    one.steps[0].outcome = 99
    await site.ran(one)
    assert ">99</span>" in await site.page(f"{LIST}/{one.execution_id}")


async def test_pages_hold_together_while_more_comes_in(site):
    early = [ran("shop", ago=1000 - number) for number in range(120)]
    await site.ran(*early)
    first = await site.page(f"{LIST}?since=1h&endpoint=where")
    found = ROWS.findall(first)
    await site.ran(*(ran("shop") for _ in range(5)))
    page = first
    while older := re.search(r'href="([^"]+)">Older<', page):
        page = await site.page(older[1])
        found += ROWS.findall(page)
    assert found == [one.execution_id for one in reversed(early)]
    newest = re.search(r'href="([^"]+)">Newest<', page)
    assert len(set(ROWS.findall(await site.page(newest[1]))) - set(found)) == 5


async def test_failed_ones_stand_on_top_on_demand(site):
    failed = ran("shop", ago=50, outcome="FAILED", error_reason="STEP_FAILED", error_message="no answer")
    newer = ran("shop", ago=1)
    await site.ran(failed, newer)
    assert await shown(site) == [newer.execution_id, failed.execution_id]
    assert await shown(site, errors="yes") == [failed.execution_id, newer.execution_id, failed.execution_id]
    assert "None of these failed" in await site.page(f"{LIST}?errors=yes&since=20s")


async def test_one_execution_is_drawn_to_scale_with_its_error_and_what_was_captured(site):
    await site.deploy("shop", "v1", "production")
    one = ran("shop", seconds=0.2, outcome="FAILED", error_reason="STEP_FAILED", error_message="answer: <boom>")
    one.input, one.gateway_id = '{"message": "hi"}', "east"
    del one.steps[:]
    for name, begins, lasts, outcome in (("first", 0.0, 0.05, "SUCCEEDED"), ("second", 0.05, 0.1, "FAILED"), ("third", None, 0, "SKIPPED")):
        step = one.steps.add(
            stage="main", name=name, kind="transform", attempts=1, outcome=pb.Execution.StepExecution.Outcome.Value(outcome)
        )
        if begins is not None:
            step.start_time.FromMicroseconds(one.start_time.ToMicroseconds() + int(begins * 1e6))
            step.duration.FromTimedelta(timedelta(seconds=lasts))
    one.steps[1].error = "boom"
    await site.ran(one)
    page = await site.page(f"{LIST}/{one.execution_id}")
    assert re.findall(r'<rect class="bar (\w+)" x="([\d.]+)%" width="([\d.]+)%"', page) == [
        ("succeeded", "0.0", "25.0"),
        ("failed", "25.0", "50.0"),
    ]
    assert "in stage <code>main</code>, step <code>second</code>" in page
    assert '"message": "hi"' in page
    for link in ("/apps/shop/releases/v1", "/gateways?gateway=east", "/apps/shop/environments/production"):
        assert f'href="{link}"' in page
        await site.page(link)
    command = re.search(r"<pre[^>]*><code>(pointsman .*)</code>", page)
    assert shlex.split(command[1]) == ["pointsman", "execution", "show", one.execution_id]
    raw = (await site.http.get(f"{LIST}/{one.execution_id}")).text
    assert "<boom>" not in raw
    await site.page(f"/apps/other/executions/{one.execution_id}", 404)
    await site.page(f"{LIST}/{new_id()}", 404)
    await site.page(f"{LIST}/nonsense", 400)


async def test_it_is_followed_as_it_happens_with_the_filters(site):
    """The answer ends with the tail, as when the control plane stops."""
    old = ran("shop", ago=5, outcome="FAILED")
    await site.ran(old, ran("shop", ago=4))
    following = asyncio.create_task(site.http.get(f"{LIST}/tail?outcome=FAILED"))
    await eventually(lambda: site.parts.tail._readers)
    new = ran("shop", outcome="FAILED")
    await site.ran(ran("shop"), new)
    await eventually(lambda: not any(reader._ring for reader in site.parts.tail._readers))
    site.parts.tail.close()
    events = [event for event in (await following).text.split("\n\n") if event]
    assert [event.split("\n")[0] for event in events[:2]] == ["event: all", "event: rows"]
    told = [ROWS.findall(event) for event in events[:2]]
    # What came between the first look and the list is in both: the page leaves out what it has.
    assert old.execution_id in told[0]
    assert told[1] == [new.execution_id]


async def test_a_burst_is_counted_not_shown(site):
    following = asyncio.create_task(site.http.get(f"{LIST}/tail"))
    await eventually(lambda: site.parts.tail._readers)
    await site.ran(*(ran("shop") for _ in range(180)))
    site.parts.tail.close()
    text = (await following).text
    assert "event: missed\ndata: 130\n" in text
    assert len(ROWS.findall(text.partition("event: rows")[2])) == 50


async def test_a_token_for_one_environment_sees_that_one(site):
    await site.ran(ran("shop", environment="staging"), hidden := ran("shop"))
    tokens = site.parts.tokens
    await tokens.create(NewToken(name="ann", role=Role.ADMIN), Call(actor="test"))
    token, secret = await tokens.create(NewToken(name="bo", role=Role.VIEWER, environments=("staging",)), Call(actor="test"))
    await site.send("/sign-in", token=secret)
    assert len(await shown(site)) == 1
    await site.page(f"{LIST}?environment=production", 403)
    await site.page(f"{LIST}/tail?environment=production", 403)
    await site.page(f"{LIST}/{hidden.execution_id}", 403)
    following = asyncio.create_task(site.http.get(f"{LIST}/tail"))
    await eventually(lambda: site.parts.tail._readers)
    await tokens.revoke(token.token_id, Call(actor="test"))
    started = time.monotonic()
    await site.ran(ran("shop", environment="staging"))
    assert (await following).text.endswith("event: end\ndata: \n\n")
    assert time.monotonic() - started < 5
