"""Names of things that a control plane has, as types of options and arguments: the shell completes them.

While it completes, nothing is said of what goes wrong: a server that cannot be asked in time gives no names.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

if TYPE_CHECKING:
    from control_plane.cli.client import Connection

# Somebody has pressed a key and waits.
SECONDS = 0.5
MOST = 500
Names = Iterable[tuple[str, str]]
"""(name, what is said of it)."""


class NameType(click.ParamType[str]):
    """Any text; `find` gives the names that there are."""

    def __init__(self, name: str, find: Callable[[_Asked], Names]) -> None:
        self.name = name
        self._find = find

    def convert(self, value: object, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        """As it is: what there is, is for the server to say."""
        return str(value)

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Those that begin so."""
        with _quietly(), ctx.scope(cleanup=False):
            found = self._find(_Asked(ctx, incomplete))
            return [CompletionItem(name, help=" ".join(told.split())) for name, told in found if name.startswith(incomplete)]
        return []


def _quietly() -> AbstractContextManager[None]:
    """Within it what goes wrong is not told."""
    # gRPC is not loaded for commands that only name a type.
    import grpc

    return contextlib.suppress(grpc.RpcError, click.ClickException, SystemExit)


class _Asked:
    """The control plane that the command line names so far."""

    def __init__(self, ctx: click.Context, incomplete: str) -> None:
        self.incomplete = incomplete
        """What is typed of the name so far."""
        self._ctx = ctx
        self._connection: Connection | None = None
        self._ends = 0.0

    def call(self, service: str, method: str, **fields: Any) -> Any:
        """The answer of a method of a service by the name of its file, e.g. `apps`. Raises grpc.RpcError."""
        import importlib

        from control_plane.cli.client import Connection, metadata

        if self._connection is None:
            self._connection = Connection("server", self._setting("server"))
            self._ends = time.monotonic() + SECONDS
        stub = f"{service.removesuffix('s').capitalize()}ServiceStub"
        make_stub = getattr(importlib.import_module(f"pointsman.v1.{service}_pb2_grpc"), stub)
        request = getattr(importlib.import_module(f"pointsman.v1.{service}_pb2"), f"{method}Request")(**fields)
        left = max(self._ends - time.monotonic(), 0.0)
        return getattr(make_stub(self._connection.channel), method)(request, timeout=left, metadata=metadata())

    @property
    def app(self) -> str:
        """The one that is named, or the only one there is. Raises UsageError."""
        if named := self._setting("app"):
            return named
        apps = self.call("apps", "ListApps", page_size=2).apps
        if len(apps) != 1:
            raise click.UsageError("which app?")
        return str(apps[0].app)

    @property
    def releases(self) -> tuple[str, ...]:
        """The arguments before, of a command that takes several."""
        return tuple(self._ctx.params.get("releases") or ())

    def _setting(self, name: str) -> str:
        """After the command, before it, or the variable's; as client.client_setting, which is not called while a shell completes."""
        return self._ctx.params.get(name) or self._ctx.find_root().params.get(name) or os.environ.get(f"POINTSMAN_{name.upper()}") or ""


def _tags(asked: _Asked) -> Names:
    return _tags_of(asked, asked.app)


def _tags_of(asked: _Asked, app: str) -> Names:
    return [(found.tag, found.description) for found in asked.call("releases", "ListReleases", app=app, page_size=MOST).releases]


def _releases(asked: _Asked) -> Names:
    """A tag alone, or APP=TAG: apps first, and the tags of one as soon as it can be no other."""
    app, equals, _ = asked.incomplete.partition("=")
    if equals:
        return _of_app(asked, app)
    found: list[tuple[str, str]] = []
    if not asked.releases:
        with _quietly():
            found += _tags(asked)
    with _quietly():
        named = {word.partition("=")[0] for word in asked.releases}
        apps = [(name, told) for name, told in _apps(asked) if name not in named and name.startswith(app)]
        found += _of_app(asked, apps[0][0]) if app and len(apps) == 1 else [(f"{name}=", told) for name, told in apps]
    return found


def _of_app(asked: _Asked, app: str) -> Names:
    return [(f"{app}={tag}", told) for tag, told in _tags_of(asked, app)]


def _environments(asked: _Asked) -> Names:
    found = asked.call("environments", "ListEnvironments", page_size=MOST).environments
    return [(one.environment, one.description) for one in reversed(found)]


def _apps(asked: _Asked) -> Names:
    return [(found.app, found.description) for found in asked.call("apps", "ListApps", page_size=MOST).apps]


def _endpoints(asked: _Asked) -> Names:
    """Of the draft: a gateway may serve others still."""
    config = asked.call("apps", "GetDraft", app=asked.app).config
    return [(found.path.removeprefix("/"), found.pipeline) for found in config.endpoints]


def _gateways(asked: _Asked) -> Names:
    listed = asked.call("gateways", "ListGateways", page_size=MOST).gateways
    return [(found.gateway_id, "connected" if found.connected else "not connected") for found in listed]


TAG = NameType("tag", _tags)
RELEASE = NameType("release", _releases)
ENVIRONMENT = NameType("environment", _environments)
APP = NameType("name", _apps)
ENDPOINT = NameType("endpoint", _endpoints)
GATEWAY_ID = NameType("gateway_id", _gateways)


class Bash(BashComplete):
    """To bash a = is a word of its own, and what is completed is what comes after it; to commands APP=TAG is one word."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is typed, and that one, each with its =."""
        at = int(os.environ["COMP_CWORD"])
        split = split_arg_string(os.environ["COMP_WORDS"])[: at + 1]
        words: list[str] = []
        for word in split + [""] * (at + 1 - len(split)):
            if words and (word == "=" or words[-1].endswith("=")):
                words[-1] += word
            else:
                words.append(word)
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Without what stands before the =, which is typed already."""
        _, incomplete = self.get_completion_args()
        before = incomplete[: incomplete.find("=") + 1]
        return f"{item.type},{item.value.removeprefix(before)}"


add_completion_class(Bash)
