"""Completion: Tab in real shells, with the names that a real control plane has."""

from __future__ import annotations

import os

import pytest
from google.protobuf import json_format

from pointsman.v1 import apps_pb2
from tests.processes import BIN, clean_environment, run
from tests.sample_apps import marked
from tests.terminal import terminal

# How each is started without anybody's settings, and what its users put into theirs.
SHELLS = {
    "bash": (("--norc", "--noprofile", "-i"), 'eval "$(pointsman completion bash)"'),
    "zsh": (("-f", "-i"), 'autoload -Uz compinit; compinit -u; eval "$(pointsman completion zsh)"'),
    "fish": (("--no-config", "-i"), "pointsman completion fish | source"),
}
ERASE_LINE = "\x15"


@pytest.fixture
async def settings(stack, tmp_path):
    """Of a shell whose user works on an app with the releases v1, v2 and w3."""
    app = await stack.plane.create_app(v1=marked("v1"), v2=marked("v2"), w3=marked("w3"))
    await stack.plane.apps.UpdateDraft(json_format.ParseDict({"app": app, "config": marked("v2")}, apps_pb2.UpdateDraftRequest()))
    path = f"{BIN}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "PS1": "$ ", "POINTSMAN_SERVER": stack.control_plane.grpc, "POINTSMAN_APP": app}


async def test_tab_completes_commands_options_and_what_the_control_plane_has(shell, settings):
    arguments, setup = SHELLS[shell.name]
    async with terminal(shell, *arguments, columns=200, **settings) as found:
        # What is typed says it otherwise than what is printed.
        found.press(f"{setup}\necho rea''dy\n")
        await found.until("ready")
        for typed, completed in (
            ("pointsman hist", "pointsman history"),
            ("pointsman rollback prod", "rollback production"),
            ("pointsman deploy v1 --to stag", "--to staging"),
            ("pointsman deploy v1 --expected", "--expected-revision"),
            ("pointsman trigger wh", "trigger where"),
            # bash rings the bell before the rest, which several begin with.
            (f"pointsman deploy {settings['POINTSMAN_APP'][:-3]}", f"{settings['POINTSMAN_APP'][-3:]}="),
            (f"pointsman deploy {settings['POINTSMAN_APP']}=w", f"{settings['POINTSMAN_APP']}=w3"),
        ):
            found.shown = ""
            found.press(f"{typed}\t")
            await found.until(completed)
            found.press(ERASE_LINE)
        # Several: the shell lists them.
        found.shown = ""
        found.press("pointsman release show v\t\t")
        for tag in ("v1", "v2"):
            await found.until(tag)


async def completed(line, settings):
    """What bash has to choose from after Tab."""
    words = line.replace("=", " = ").strip(" ").split(" ") + ([""] if line.endswith(" ") else [])
    script = (
        f'eval "$({BIN}/pointsman completion bash)"\n'
        f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
        f"_pointsman_completion pointsman\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    found = await run("bash", "-c", script, environment=clean_environment(**settings))
    assert (found.code, found.stderr) == (0, "")
    return set(found.stdout.split())


async def test_every_kind_of_name_is_completed(settings):
    app = settings["POINTSMAN_APP"]
    assert await completed("pointsman de", settings) == {"demo", "dev", "deploy"}
    assert await completed("pointsman deploy v", settings) == {"v1", "v2"}
    assert await completed("pointsman deploy v1 --to st", settings) == {"staging"}
    assert await completed("pointsman rollback prod", settings) == {"production"}
    assert await completed("pointsman trigger wh", settings) == {"where"}
    assert await completed("pointsman logs --gateway-id e", settings) == {"east"}
    assert await completed(f"pointsman --app {app[:-3]}", settings) == {app}
    assert await completed(f"pointsman release show --app {app} v", settings | {"POINTSMAN_APP": ""}) == {"v1", "v2"}


async def test_apps_are_completed_and_the_tags_of_each(settings, stack):
    one = settings["POINTSMAN_APP"]
    other = await stack.plane.create_app(x9=marked("x9"))
    assert await completed("pointsman deploy ", settings) >= {"v1", "v2", "w3", f"{one}=", f"{other}="}
    assert await completed("pointsman deploy app-", settings) >= {f"{one}=", f"{other}="}
    # As soon as it can be only one. To bash what comes after the = is a word of its own.
    assert await completed(f"pointsman deploy {other[:-1]}", settings) == {f"{other}=x9"}
    assert await completed(f"pointsman deploy {one}=", settings) == {"v1", "v2", "w3"}
    assert await completed(f"pointsman deploy {one}=v", settings) == {"v1", "v2"}
    # Then only APP=TAG, of another app.
    found = await completed(f"pointsman deploy {one}=v1 ", settings)
    assert found >= {f"{other}="}
    assert not found & {"v1", f"{one}="}
    assert await completed(f"pointsman deploy {one}=v1 {other}=x", settings) == {"x9"}
    assert await completed(f"pointsman deploy {one}=v1 --to st", settings) == {"staging"}
    assert await completed("pointsman deploy v1 --to=st", settings) == {"staging"}
    assert await completed("pointsman deploy nonesuch=v", settings) == set()


async def test_who_cannot_be_asked_gives_no_names_and_no_error(settings):
    assert await completed("pointsman deploy v", settings | {"POINTSMAN_SERVER": "127.0.0.1:1"}) == set()
    assert await completed("pointsman deploy v", settings | {"POINTSMAN_APP": "nonesuch"}) == set()
