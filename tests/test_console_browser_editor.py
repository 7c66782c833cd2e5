"""The editor of the draft in a real Chromium: by mouse, by keyboard, without scripts; accessible, small, light and dark, on a phone."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from control_plane.cli.samples import sample_text
from pointsman.appfile import parse
from pointsman.v1 import apps_pb2, releases_pb2
from tests.console_browser import accessible, looked_over, picture, shown

__all__ = ["shown"]

PAGES = {
    "editor": "/apps/{app}/editor",
    "editor-step": "/apps/{app}/editor/form?at=pipelines[0].stages[1].steps[0]",
    "editor-new-pipeline": "/apps/{app}/editor/form?at=pipelines",
    "editor-new-step": "/apps/{app}/editor/form?at=pipelines[0].stages[1].steps",
    "editor-endpoint": "/apps/{app}/editor/form?at=endpoints[0]",
    "editor-tool": "/apps/{app}/editor/form?at=tools[0]",
    "editor-model": "/apps/{app}/editor/form?at=models[1]",
    "editor-delete": "/apps/{app}/editor/form?at=pipelines[2].stages[0]&delete=yes",
    "changes": "/apps/{app}/changes",
    "editor-empty": "/apps/{app}-empty/editor",
}
KEPT_TWICE = ("editor", "editor-step")


async def with_sample(shown, app: str) -> None:
    """An app with the sample for a release, and a draft in which a model writes the answer."""
    await shown.plane.apps.CreateApp(apps_pb2.CreateAppRequest(app=app))
    config = parse(sample_text()).config
    await shown.plane.releases.CreateRelease(releases_pb2.CreateReleaseRequest(app=app, tag="v1.0.0", config=config))
    model = config.models.add(name="writer")
    model.targets.add(base_url="https://models.example/v1", model="large", api_key="${secret:MODEL_KEY}")
    model.targets.add(base_url="https://standby.example/v1")
    reply = config.pipelines[0].stages[2].steps.add(name="polished", max_retries=2)
    reply.timeout.FromSeconds(20)
    reply.inference.model = "writer"
    reply.inference.prompt = "Say this kindly: {{ steps.reply }}"
    reply.inference.tools.append("find_order")
    await shown.plane.apps.UpdateDraft(apps_pb2.UpdateDraftRequest(app=app, config=config))


async def stages_of(shown, app: str, pipeline: int) -> list[list[str]]:
    """Names of the steps of each stage."""
    draft = await shown.plane.apps.GetDraft(apps_pb2.GetDraftRequest(app=app))
    return [[step.name for step in stage.steps] for stage in draft.config.pipelines[pipeline].stages]


def step(page, name: str):
    """The card of a step."""
    return page.locator(".step", has=page.get_by_role("link", name=name, exact=True))


async def test_steps_and_stages_are_dragged(shown):
    await with_sample(shown, "drag")
    async with shown.page() as page:
        await page.goto("/apps/drag/editor?at=pipelines[2]")
        await step(page, "urgent").drag_to(step(page, "scored"), target_position={"x": 60, "y": 110})
        await expect(page.get_by_role("status")).to_contain_text("Saved as version 2")
        assert await stages_of(shown, "drag", 2) == [["scored", "urgent"], ["later"]]
        await step(page, "urgent").drag_to(step(page, "later"), target_position={"x": 60, "y": 8})
        await expect(page.get_by_role("status")).to_contain_text("Saved as version 3")
        assert await stages_of(shown, "drag", 2) == [["scored"], ["urgent", "later"]]
        await (
            page.locator(".stage", has_text="sort")
            .locator("header")
            .drag_to(page.locator(".stage").first, target_position={"x": 10, "y": 10})
        )
        # What would break a reference is refused, and says why.
        await expect(page.get_by_role("alert")).to_contain_text("has not run yet here")
        assert await stages_of(shown, "drag", 2) == [["scored"], ["urgent", "later"]]
    shown.complaints[:] = [one for one in shown.complaints if "400" not in one]


async def test_steps_are_moved_by_keyboard_and_keep_the_focus(shown):
    await with_sample(shown, "keyed")
    async with shown.page() as page:
        await page.goto("/apps/keyed/editor?at=pipelines[2]")
        await page.get_by_role("link", name="urgent", exact=True).focus()
        await page.keyboard.press("Alt+ArrowDown")
        await expect(page.get_by_role("status")).to_contain_text("Saved as version 2")
        await expect(page.get_by_role("link", name="urgent", exact=True)).to_be_focused()
        await page.keyboard.press("Alt+ArrowLeft")
        await expect(page.get_by_role("status")).to_contain_text("Saved as version 3")
        await expect(page.get_by_role("link", name="urgent", exact=True)).to_be_focused()
        assert await stages_of(shown, "keyed", 2) == [["scored", "urgent"], ["later"]]


async def test_an_app_is_built_and_released_without_scripts(shown):
    await shown.plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="by-hand"))
    async with shown.page(java_script_enabled=False) as page:
        await page.goto("/apps/by-hand/editor")
        await page.get_by_role("link", name="Add a pipeline").first.click()
        await page.get_by_label("Name").first.fill("greet")
        await page.get_by_role("button", name="Add pipeline").click()
        await page.get_by_role("link", name="first", exact=True).click()
        await page.get_by_label("Name").fill("hello")
        await page.get_by_label("Expression").fill("'Hello, ' + input.name +")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("alert")).to_contain_text("1 field to correct")
        await accessible_without_scripts(page)
        await page.get_by_label("Expression").fill("'Hello, ' + input.name")
        await page.get_by_role("button", name="Save").click()
        await page.get_by_role("link", name="Add a step").click()
        await page.get_by_label("Name").fill("loud")
        await page.get_by_label("Expression").fill("steps.hello + '!'")
        await page.get_by_role("button", name="Add step").click()
        await page.get_by_role("button", name="Move step loud up").click()
        await expect(page.get_by_role("alert")).to_contain_text("steps.hello has not run yet here")
        await page.get_by_role("link", name="Add an endpoint").last.click()
        await page.get_by_label("Name").fill("greet")
        await page.get_by_label("Pipeline").select_option("greet")
        await page.get_by_role("button", name="Add endpoint").click()
        await page.get_by_role("link", name="Delete step loud").click()
        await page.get_by_role("button", name="Delete step loud").click()
        await page.get_by_role("link", name="Create Release").click()
        await page.get_by_label("Release Tag").fill("v1")
        await page.get_by_role("button", name="Create Release").click()
        await expect(page.get_by_text("v1", exact=True).first).to_be_visible()
    assert await stages_of(shown, "by-hand", 0) == [["hello"]]
    shown.complaints[:] = [one for one in shown.complaints if "400" not in one]


async def accessible_without_scripts(page) -> None:
    """Every mistake is tied to its field: without scripts axe cannot run in the page."""
    wrong = page.locator("[aria-invalid=true]")
    assert await wrong.count() == 1
    told = await wrong.get_attribute("aria-describedby")
    assert "Expression" not in (told or "")
    assert await page.locator(f"[id='{told}']").inner_text()


async def test_two_people_edit_a_step(shown, tmp_path):
    await with_sample(shown, "pair")
    step = "/apps/pair/editor/form?at=pipelines[0].stages[1].steps[0]"
    async with shown.page() as mine, shown.page() as theirs:
        for page, timeout in ((mine, "4s"), (theirs, "3s")):
            await page.goto(step)
            await page.get_by_label("Timeout").fill(timeout)
        await theirs.get_by_role("button", name="Save").click()
        await expect(theirs.get_by_role("status")).to_contain_text("Saved as version 2")
        await mine.get_by_role("button", name="Save").click()
        await expect(mine.get_by_role("heading", name="Theirs, version 2, and yours")).to_be_visible()
        assert await mine.get_by_label("Timeout").input_value() == "4s"
        await accessible(mine)
        await picture(mine, tmp_path, "editor-conflict-light")
        await mine.get_by_role("button", name="Save mine over theirs").click()
        await expect(mine.get_by_role("status")).to_contain_text("Saved as version 3")
    draft = await shown.plane.apps.GetDraft(apps_pb2.GetDraftRequest(app="pair"))
    assert draft.config.pipelines[0].stages[1].steps[0].timeout.seconds == 4
    shown.complaints[:] = [one for one in shown.complaints if "409" not in one]


async def test_mistakes_of_a_form_are_accessible(shown, tmp_path):
    await with_sample(shown, "wrong")
    async with shown.page() as page:
        await page.goto("/apps/wrong/editor/form?at=pipelines[0].stages[2].steps[2]")
        await page.get_by_label("Prompt").fill("{{ steps.rply }} {% if %}")
        await page.get_by_label("Max retries").fill("99")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("alert")).to_contain_text("2 fields to correct")
        await accessible(page)
        await picture(page, tmp_path, "editor-mistakes-light")
    shown.complaints[:] = [one for one in shown.complaints if "400" not in one]


@pytest.fixture(scope="module")
async def looks(shown):
    await with_sample(shown, "support")
    await shown.plane.apps.CreateApp(apps_pb2.CreateAppRequest(app="support-empty"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_accessible_small_and_fits_a_phone(shown, looks, tmp_path, name, scheme):
    await looked_over(shown, PAGES[name].format(app="support"), tmp_path, name, scheme, twice=name in KEPT_TWICE)
