"""APP=TAG: releases of several apps in one command."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.core import ParameterSource


def releases_by_app(words: Sequence[str], expected_revision: int | None) -> dict[str, str]:
    """Of `shop=v42 search=v7` the tag of each app, in that order; empty for one bare TAG.

    Raises:
        UsageError: which says how it is to be written.
    """
    if len(words) == 1 and "=" not in words[0]:
        return {}
    found: dict[str, str] = {}
    for word in words:
        app, equals, tag = word.partition("=")
        if not equals:
            raise click.UsageError(f"Of which app is {word!r}? With several releases write each as APP=TAG, such as shop=v42 search=v7.")
        if not app or not tag or "=" in tag:
            raise click.UsageError(f"{word!r} is no APP=TAG; write the app, one =, and the tag, such as shop=v42.")
        if app in found:
            raise click.UsageError(f"App {app!r} is there twice; name one release of each app.")
        found[app] = tag
    if _app_is_named():
        raise click.UsageError("APP=TAG names the app itself; leave --app out, or write the tag alone.")
    if expected_revision is not None and len(found) > 1:
        raise click.UsageError(
            "--expected-revision is that of one binding, and each app has its own; leave it out, or deploy the apps one by one."
        )
    return found


def _app_is_named() -> bool:
    """By an option; POINTSMAN_APP is for where none is named."""
    ctx = click.get_current_context()
    return ctx.get_parameter_source("app") is ParameterSource.COMMANDLINE or bool(ctx.find_root().params.get("app"))
