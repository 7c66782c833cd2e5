"""The command line: a client of the servers, and the way to start them. Imports nothing else of control_plane.

Commands are imported when they are called, so that `pointsman --help` need not load gRPC.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import sys
from typing import NoReturn

import click

from control_plane.cli.names import APP


class Lazy(click.Group):
    """Finds commands by `module:attribute`, and names near ones when there is none."""

    def __init__(self, commands: dict[str, tuple[str, str]], **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]  # what click.Group takes
        self._lazy = commands

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order of the workflow."""
        return list(self._lazy)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        _keep_examples(found)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Names near commands in the error."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # Costs as much to import as the whole of a --help may take.
            import difflib

            near = difflib.get_close_matches(args[0], self._lazy, n=3, cutoff=0.5) if args else []
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {', '.join(near)}?", ctx) from error

    def invoke(self, ctx: click.Context) -> object:
        """A file or a disk that will not do is told in a line; of a reader that has gone, as `head` does, click says nothing."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}") from error

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, description) for name, (_, description) in self._lazy.items()])


COMMANDS = {
    "demo": ("control_plane.cli.demo:command", "Walk the whole release workflow against real servers."),
    "dev": ("control_plane.cli.dev:command", "Both servers with a sample app, until Ctrl-C."),
    "app": ("control_plane.cli:app", "Apps and their drafts: create, list, validate, push, draft."),
    "release": ("control_plane.cli.releases:command", "Releases: create, list, show, diff, prune."),
    "deploy": ("control_plane.cli.deployments:deploy", "Make a release live in an environment."),
    "promote": ("control_plane.cli.deployments:promote", "Make what is live in one environment live in another."),
    "rollback": ("control_plane.cli.deployments:rollback", "Make an earlier release live again."),
    "status": ("control_plane.cli.status:status", "What is live where, and who serves it."),
    "history": ("control_plane.cli.deployments:history", "What was live when, by whom and why."),
    "watch": ("control_plane.cli.watching:watch", "Follow what is live."),
    "gateways": ("control_plane.cli.status:gateways", "The gateways and how far they are."),
    "rebalance": ("control_plane.cli.status:rebalance", "Have gateways connect to other replicas."),
    "trigger": ("control_plane.cli.triggers:trigger", "Run an endpoint."),
    "logs": ("control_plane.cli.executions:logs", "What ran, and with -f what runs."),
    "execution": ("control_plane.cli.executions:command", "Executions: list, show, rerun."),
    "summary": ("control_plane.cli.verdicts:summary", "What each release did: is the new one worse?"),
    "rollback-report": ("control_plane.cli.verdicts:rollback_report", "What a release did until it was replaced."),
    "drill": ("control_plane.cli.drills:command", "Rehearse failures: gateways without their control plane."),
    "environment": ("control_plane.cli.environments:command", "Environments: create, list, update, delete."),
    "token": ("control_plane.cli.tokens:command", "Tokens: bootstrap, create, list, revoke."),
    "audit": ("control_plane.cli.audit:command", "Who changed what, who was refused: list, verify, export."),
    "certs": ("control_plane.cli.certs:command", "Certificates to try TLS with."),
    "completion": ("control_plane.cli.completion:command", "What a shell needs to complete commands and names."),
    "backup": ("control_plane.cli:backup", "Copy a SQLite store while it is used."),
    "copy-store": ("control_plane.cli:copy_store", "Move an installation to another store."),
    "control-plane": ("control_plane.cli:control_plane", "Serve the control plane."),
    "gateway": ("control_plane.cli:gateway", "Serve triggers."),
}


def _keep_examples(command: click.Command) -> None:
    """Examples are pasted, so click must not break their lines."""
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner)
    if command.help and "\b" not in command.help:
        command.help = inspect.cleandoc(command.help).replace("Example: ", "\b\nExample:\n  ")


APP_COMMANDS = {
    "create": ("control_plane.cli.apps:create", "Create an app with an empty draft."),
    "list": ("control_plane.cli.apps:list_apps", "List the apps, newest first."),
    "validate": ("control_plane.cli.appfile:validate", "Check an app file without a server."),
    "push": ("control_plane.cli.apps:push", "Make the app's draft what a file says."),
    "draft": ("control_plane.cli.apps:draft", "Show the draft as a file that `app push` takes."),
}


@click.group(cls=Lazy, commands=APP_COMMANDS)
def app() -> None:
    """An app and its draft: the configuration that people edit."""


@click.group(cls=Lazy, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", metavar="HOST:PORT", help="Control plane; also POINTSMAN_SERVER. [localhost:7400]")
@click.option("--gateway", metavar="HOST:PORT", help="Gateway, for trigger; also POINTSMAN_GATEWAY. [localhost:7500]")
@click.option("--app", type=APP, metavar="NAME", help="App; also POINTSMAN_APP. [the only one there is]")
@click.option("--ca", metavar="FILE", help="Authority of the server's certificate, for TLS; also POINTSMAN_CA.")
@click.option("--certificate", metavar="FILE", help="Certificate to show; also POINTSMAN_CERTIFICATE.")
@click.option("--key", metavar="FILE", help="Its key; also POINTSMAN_KEY.")
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), help="How to print. [text]")
@click.version_option(package_name="pointsman")
def main(**_settings: str | None) -> None:
    """Releases, environments and rollbacks for AI apps.

    The options below may also stand after the command. A token is sent when POINTSMAN_TOKEN holds one.
    """
    if os.environ.get("NO_COLOR") or not can_draw():
        click.get_current_context().color = False


def can_draw() -> bool:
    """Whether a terminal, if there is one, knows colours and a cursor that moves."""
    return os.environ.get("TERM", "") not in ("", "dumb")


_PASS_ALL = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=_PASS_ALL)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def control_plane(arguments: tuple[str, ...]) -> None:
    """Becomes the control plane's process."""
    become("control_plane", arguments)


@click.command(context_settings=_PASS_ALL)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gateway(arguments: tuple[str, ...]) -> None:
    """Becomes the gateway's process."""
    become("data_plane", arguments)


@click.command(context_settings=_PASS_ALL)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def backup(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Becomes the process that copies the store."""
    _maintain(ctx, "backup", arguments)


@click.command("copy-store", context_settings=_PASS_ALL)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def copy_store(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Becomes the process that copies one store to another."""
    _maintain(ctx, "copy-store", arguments)


def _maintain(ctx: click.Context, what: str, arguments: tuple[str, ...]) -> NoReturn:
    output = ctx.find_root().params.get("output")
    become("control_plane.maintenance", (what, *(["-o", output] if output else []), *arguments))


def become(module: str, arguments: tuple[str, ...]) -> NoReturn:
    """Runs a module in the place of this process."""
    # -P: a folder of the same name where the command is called must not take the module's place.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 -- no shell is wanted
