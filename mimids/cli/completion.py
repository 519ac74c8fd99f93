"""`mimids completion`: the script with which a shell completes commands, options and arguments."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mimids.cli.places import example


@example('eval "$(mimids completion bash)"', "mimids completion fish > ~/.config/fish/completions/mimids.fish")
@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    made = get_completion_class(shell)
    root = context.find_root().command
    if made is None:
        raise click.UsageError(f"the installed click has no completion for {shell}")
    click.echo(made(root, {}, "mimids", "_MIMIDS_COMPLETE").source())
