"""Every action of the console is a command, and every command an action of the console, or it is said why not."""

from __future__ import annotations

import re
from pathlib import Path

import click

from control_plane.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
# What does on the command line what a page does; several where it shows and changes.
PAGES = {
    "/apps": ["app list", "app create"],
    "/deploy": ["deploy"],
    "/deploy/{environment}/{revision}": ["deploy", "status"],
    "/deploy/{environment}/{revision}/rollout": ["deploy", "watch"],
    "/apps/{app}/releases": ["release list", "release create"],
    "/apps/{app}/new-release": ["release create"],
    "/apps/{app}/check-tag": ["release create"],
    "/apps/{app}/releases/{tag}": ["release show"],
    "/apps/{app}/prune": ["release prune"],
    "/apps/{app}/compare": ["release diff"],
    "/apps/{app}/environments": ["status"],
    "/apps/{app}/environments/{environment}": ["status", "history"],
    "/apps/{app}/environments/{environment}/rollout": ["deploy", "watch"],
    "/apps/{app}/deploy": ["deploy"],
    "/apps/{app}/promote": ["promote"],
    "/apps/{app}/rollback": ["rollback"],
    "/apps/{app}/draft": ["app draft", "app validate", "app push"],
    "/apps/{app}/editor": ["app draft"],
    "/apps/{app}/editor/change": ["app push"],
    "/apps/{app}/editor/form": ["app push"],
    "/apps/{app}/changes": ["release diff"],
    "/apps/{app}/executions": ["execution list", "logs"],
    "/apps/{app}/executions/tail": ["logs"],
    "/apps/{app}/executions/{execution}": ["execution show"],
    "/apps/{app}/try": ["trigger", "execution rerun"],
    "/apps/{app}/summary": ["summary"],
    "/apps/{app}/reports/{deployment}": ["rollback-report"],
    "/environments": ["environment list", "environment create"],
    "/environments/{environment}": ["environment update"],
    "/environments/{environment}/delete": ["environment delete"],
    "/gateways": ["gateways", "rebalance"],
    "/audit": ["audit list"],
    "/tokens": ["token list", "token create"],
    "/tokens/{token}": ["token list", "token revoke"],
}
# Commands that ask, and the page that asks the same: each of their options is a field of that name.
FORMS = {
    "status": "environments.html",
    "trigger": "try.html",
    "execution list": "executions.html",
    "summary": "summary.html",
    "audit list": "audit.html",
}
# Whom to ask and how to print; how many at once; the page has the input in forms of its own, and always streams.
WITHOUT_FIELD = {"server", "gateway", "app", "ca", "certificate", "key", "output", "limit", "timeout", "data", "stream"}
# That page shows all environments at a glance.
OF_ALL = {"status": {"environment"}}
# A command shows POINTSMAN_TOKEN.
SIGNING = {"/sign-in", "/sign-out"}
# The README of the control plane says why there is no page for these.
WITHOUT_PAGE = {"backup", "copy-store", "certs dev", "token bootstrap", "drill outage", "audit verify", "audit export"}
# They start servers, or are of the shell.
OF_THE_MACHINE = {"demo", "dev", "control-plane", "gateway", "completion"}


def commands() -> dict[str, click.Command]:
    """Every one, by its name with that of its group."""
    found = {}
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command)
            found |= {f"{name} {one}": command.get_command(context, one) for one in command.list_commands(context)}
        else:
            found[name] = command
    return found


def test_every_page_has_its_commands():
    pages = set(re.findall(r'Page\("([^"]+)"', (ROOT / "control_plane/console/app.py").read_text()))
    assert pages == PAGES.keys() | SIGNING
    named = {command for found in PAGES.values() for command in found}
    assert named <= commands().keys()


def test_every_command_has_its_page_or_a_reason():
    on_pages = {command for found in PAGES.values() for command in found}
    assert commands().keys() - on_pages == WITHOUT_PAGE | OF_THE_MACHINE
    text = (ROOT / "control_plane/README.md").read_text()
    reasons = text.partition("- **Commands without a page**")[2].partition("\n- **")[0]
    assert {command.removesuffix(" dev") for command in WITHOUT_PAGE} == set(re.findall(r"`([^`]+)`", reasons))


def test_what_a_command_can_be_asked_its_page_can_be_asked():
    for name, template in FORMS.items():
        options = {str(option.name) for option in commands()[name].params} - WITHOUT_FIELD - OF_ALL.get(name, set())
        text = (ROOT / "control_plane/console/templates" / template).read_text()
        assert {option for option in options if f'"{option}"' not in text} == set(), name
