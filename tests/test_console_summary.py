"""Is the new release worse? The console's summary, its charts, and what a deployment did."""

from __future__ import annotations

import re

import pytest

from control_plane.console.charts import HEIGHT, PAD, bars, course
from tests.console_app import open_site
from tests.executions import ran

PAGE = "/apps/shop/summary"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as site:
        for tag in ("v1", "v2"):
            await site.release("shop", tag, deploy_to="production")
        yield site


def some(release, *, failed=0, sound=0, seconds=0.01, ago=300):
    return [
        ran("shop", release, ago=ago + number / 10, seconds=seconds, outcome="FAILED" if number < failed else "SUCCEEDED")
        for number in range(failed + sound)
    ]


async def verdict(site):
    found = re.search(r'<p class="note (bad|good|plain)">(.*?)</p>', await site.page(PAGE))
    return found.groups()


async def test_nothing_ran(site):
    assert "Nothing ran in this window" in await site.page(PAGE)


async def test_a_release_that_fails_more_often_is_called_worse_beside_the_one_before(site):
    await site.ran(*some("v1", failed=1, sound=99, ago=600), *some("v2", failed=30, sound=70, ago=60))
    assert await verdict(site) == ("bad", "v2 fails more often: 30.00%, was 1.00%.")
    page = await site.page(PAGE)
    assert "Rollback to Previous" in page
    assert page.count("<svg") == 4
    assert re.findall(r'<polyline class="course (\w+)"', page)
    rows = re.findall(r'release=(v\d)">v\d</a>(.*?)</tr>', page, re.DOTALL)
    assert [(tag, "LIVE" in rest, re.findall(r"([\d.]+%)", rest)) for tag, rest in rows] == [
        ("v2", True, ["30.00%"]),
        ("v1", False, ["1.00%"]),
    ]


async def test_a_slower_one_is_called_slower(site):
    await site.ran(*some("v1", sound=50), *some("v2", sound=50, seconds=0.02))
    assert await verdict(site) == ("bad", "v2 is slower: 95 % took at most 20.0 ms, was 10.0 ms.")


async def test_few_failures_are_not_taken_for_proof(site):
    await site.ran(*some("v1", failed=1, sound=99), *some("v2", failed=1, sound=9))
    kind, text = await verdict(site)
    assert kind == "good"
    assert "no worse than v1, as far as 10 executions can tell: it fails 10.00%, was 1.00%" in text


@pytest.mark.parametrize(("idle", "busy"), [("v2", "v1"), ("v1", "v2")])
async def test_one_of_which_nothing_came_to_its_end_is_compared_with_nothing(site, idle, busy):
    await site.ran(*some(busy, sound=3), ran("shop", idle, ago=60, outcome="REFUSED"))
    assert await verdict(site) == ("plain", f"No execution of {idle} succeeded or failed in this window; choose a longer one to compare.")
    (latencies,) = re.findall(r'aria-label="Latency;(.*?)"', await site.page(PAGE))
    assert (busy in latencies, idle in latencies) == (True, False)


async def test_without_the_one_before_it_says_so(site):
    await site.ran(*some("v2", sound=3))
    assert await verdict(site) == ("plain", "v1, live before it, did not run in this window; choose a longer one to compare.")


async def test_windows_environments_and_mistakes(site):
    await site.ran(*some("v2", sound=3, ago=3600))
    assert "Nothing ran in this window" in await site.page(PAGE)
    assert "Nothing ran in this window" in await site.page(f"{PAGE}?since=6h&environment=staging")
    page = await site.page(f"{PAGE}?since=6h")
    assert re.search(r'aria-current="true">6 hours', page)
    assert "is no time" in await site.page(f"{PAGE}?since=never", 400)
    assert "is not before end_time" in await site.page(f"{PAGE}?since=1h&until=2h", 400)


async def test_what_is_missing_is_told(site):
    await site.ran(*some("v2", sound=1, ago=1), dropped=1234)
    assert "1,234 executions, of any app, are missing" in await site.page(PAGE)
    assert "1,234 executions, of any app, are missing" in await site.page("/apps/shop/executions")
    assert "are missing" not in await site.page("/apps/shop/executions?until=1h")


async def test_the_report_of_a_deployment_is_reached_from_the_history(site):
    binding = await site.parts.binding("shop", "production")
    bad = some("v2", failed=2, sound=3)
    for one in bad:
        one.revision = binding.revision
    await site.ran(*bad)
    await site.send("/apps/shop/rollback", form="/apps/shop/rollback?environment=production", environment="production", reason="it fails")
    late = ran("shop", "v2", revision=binding.revision)
    await site.ran(late, gateway_id="west")
    history = await site.page("/apps/shop/environments/production")
    links = re.findall(r'href="(/apps/shop/reports/[^"]+)">What (v\d) did', history)
    # The rollback ended v2, and the deployment before it began it: both lead to the same story.
    assert [tag for _, tag in links] == ["v2", "v2", "v1"]
    for link, _ in links[:2]:
        page = await site.page(link)
        assert "<dd>6</dd>" in page
        assert "<dd>2 (33.33%)</dd>" in page
        assert "1 began after it was replaced" in page
        assert "Replaced because: it fails" in page
        assert page.count("/apps/shop/executions/") == 2
    await site.release("other", "v1")
    await site.page(links[0][0].replace("shop", "other"), 400)
    assert "No execution of it is on record" in await site.page(links[2][0])


def test_a_line_breaks_where_there_is_nothing_and_a_lone_value_is_a_dot():
    drawn = course("x", [("v1", "live", [1.0, 2.0, None, 4.0, None])], str)
    (line,) = drawn.lines
    assert [len(points.split()) for points in line.segments] == [2]
    assert len(line.dots) == 1
    assert line.dots[0][1] == PAD
    flat = course("x", [("v1", "live", [0.0, 0.0])], str)
    assert {point.split(",")[1] for point in flat.lines[0].segments[0].split()} == {f"{HEIGHT - PAD:g}"}


def test_bars_are_to_scale():
    drawn = bars("x", ("p50", "p99"), [("new", "live", [1.0, 4.0]), ("old", "before", [2.0, 0.0])], str)
    widths = {(name, bar.label): bar.width for name, _, group in drawn.groups for bar in group}
    assert widths["p99", "new"] == 4 * widths["p50", "new"] == 2 * widths["p50", "old"]
    assert widths["p99", "old"] > 0
