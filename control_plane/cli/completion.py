"""pointsman completion: what a shell needs to complete commands, and names that the control plane has."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_POINTSMAN_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what SHELL is to read so that Tab completes commands, tags, environments, apps, endpoints and gateways.

    For good: eval "$(pointsman completion bash)" in ~/.bashrc, eval "$(pointsman completion zsh)" in ~/.zshrc, or pointsman completion
    fish | source in ~/.config/fish/config.fish.

    Example: pointsman completion bash
    """
    found = get_completion_class(shell)
    assert found is not None, f"click knows {', '.join(SHELLS)}"
    click.echo(found(ctx.find_root().command, {}, "pointsman", VARIABLE).source())
