"""Rollback cannot ping-pong: it walks back the history of what was live, and a repeat never moves a second step."""

from __future__ import annotations

import uuid

import pytest

from tests.clients import refused
from tests.sample_apps import marked


@pytest.fixture
async def app(stack):
    """v1, v2, v3 were live in production, in this order."""
    app = await stack.plane.create_app(**{tag: marked(tag) for tag in ("v1", "v2", "v3", "v4")})
    for tag in ("v1", "v2", "v3"):
        await stack.plane.deploy(app, tag)
    return app


async def test_it_walks_back_and_then_says_that_nothing_is_left(stack, app):
    for tag in ("v2", "v1"):
        assert (await stack.plane.rollback(app)).binding.release == tag
        for gate in stack.gates:
            assert (await gate.post(app)).headers["X-Release"] == tag
    refusal = await refused(stack.plane.rollback(app))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK")
    assert (await stack.plane.binding(app)).release == "v1"


async def test_a_deploy_after_a_rollback_rolls_back_to_what_was_live_before_it(stack, app):
    await stack.plane.rollback(app)
    await stack.plane.deploy(app, "v4")
    assert (await stack.plane.rollback(app)).binding.release == "v2"


async def test_the_same_request_moves_one_step_only(stack, app):
    request_id = str(uuid.uuid4())
    first = await stack.plane.rollback(app, request_id=request_id)
    again = await stack.plane.rollback(app, request_id=request_id)
    assert first.binding.release == again.binding.release == "v2"
    assert first.deployment.deployment_id == again.deployment.deployment_id
    assert (await stack.plane.binding(app)).revision == first.binding.revision


async def test_a_stale_expectation_moves_nothing(stack, app):
    seen = (await stack.plane.binding(app)).revision
    await stack.plane.rollback(app, expected_revision=seen)
    refusal = await refused(stack.plane.rollback(app, expected_revision=seen))
    assert (refusal.code, refusal.reason) == ("ABORTED", "REVISION_CONFLICT")
    assert refusal.metadata["expected"] == str(seen)
    assert refusal.metadata["current"] == str((await stack.plane.binding(app)).revision)
    assert (await stack.plane.binding(app)).release == "v2"


async def test_to_a_release_that_was_live_here_and_to_no_other(stack, app):
    assert (await stack.plane.rollback(app, to_release="v1")).binding.release == "v1"
    refusal = await refused(stack.plane.rollback(app, to_release="v4"))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NEVER_LIVE_HERE")
