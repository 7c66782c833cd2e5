"""What was live at a moment: GetBinding and ListBindings with as_of_time, and pointsman status --as-of."""

from __future__ import annotations

import json

from google.protobuf.timestamp_pb2 import Timestamp

from pointsman.v1 import deployments_pb2 as pb
from pointsman.v1 import environments_pb2
from tests.clients import cli, cli_done, control_plane_client, refused
from tests.sample_apps import marked


def just_before(moment: Timestamp) -> Timestamp:
    return (
        Timestamp(seconds=moment.seconds, nanos=moment.nanos)
        if moment.nanos == 0
        else Timestamp(seconds=moment.seconds, nanos=moment.nanos - 1000)
    )


async def test_the_past_is_told_also_of_an_environment_that_is_gone(control_plane):
    async with control_plane_client(control_plane) as plane:
        app = await plane.create_app(v1=marked("v1"), v2=marked("v2"))
        first = (await plane.deploy(app, "v1", "staging")).deployment
        await plane.deploy(app, "v1", "production")
        second = (await plane.deploy(app, "v2", "staging")).deployment
        await plane.environments.DeleteEnvironment(environments_pb2.DeleteEnvironmentRequest(environment="staging", force=True))
        gone = await refused(plane.binding(app, "staging"))
        assert gone.reason == "ENVIRONMENT_NOT_FOUND"

        async def binding(moment, environment="staging", of=app):
            request = pb.GetBindingRequest(app=of, environment=environment, as_of_time=moment)
            return (await plane.deployments.GetBinding(request)).binding

        then = await binding(first.create_time)
        assert (then.release, then.revision, then.deploy_time) == ("v1", first.revision, first.create_time)
        then = await binding(second.create_time)
        assert (then.release, then.revision, then.previous_release) == ("v2", second.revision, "v1")
        later = Timestamp(seconds=second.create_time.seconds + 3600)
        for moment in (just_before(first.create_time), later):
            none = await refused(binding(moment))
            assert none.reason == "NO_RELEASE_DEPLOYED"
            assert f"App {app!r} had no release deployed to 'staging' at " in none.message
        assert (await refused(binding(later, of="nobody"))).reason == "APP_NOT_FOUND"
        assert (await refused(binding(later, "nowhere"))).reason == "ENVIRONMENT_NOT_FOUND"
        wrong = await refused(binding(Timestamp(seconds=10**15)))
        assert (wrong.reason, wrong.violations) == ("INVALID_FIELD", ("as_of_time",))

        request = pb.ListBindingsRequest(app=app, as_of_time=second.create_time, page_size=1)
        pages = []
        while not pages or request.page_token:
            page = await plane.deployments.ListBindings(request)
            pages.append([(b.environment, b.release) for b in page.bindings])
            request.page_token = page.next_page_token
        assert pages == [[("staging", "v2")], [("production", "v1")]]
        request = pb.ListBindingsRequest(app=app, as_of_time=later)
        assert [b.environment for b in (await plane.deployments.ListBindings(request)).bindings] == ["production"]

    at = first.create_time.ToJsonString()
    told = json.loads(await cli_done("status", "--as-of", at, "-o", "json", control_plane=control_plane))
    assert [(b["environment"], b["release"]) for b in told["bindings"]] == [("staging", "v1")]
    assert "staging" in await cli_done("status", "--as-of", at, control_plane=control_plane)
    assert "Nothing was deployed at 2001-01-01T00:00:00+00:00" in await cli_done(
        "status", "--as-of", "2001-01-01", control_plane=control_plane
    )
    assert "Nothing was deployed at" in await cli_done("status", "--as-of", "1000h", control_plane=control_plane)
    wrong = await cli("status", "--as-of", "yesterday", control_plane=control_plane)
    assert wrong.code == 2
    assert "is not a time such as" in wrong.stderr
