"""The top of the command line: all commands, in the order in which `--help` lists them.

Nothing here imports the server; the command `serve` imports it when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from mimids import __version__
from mimids.cli.backup import backup, restore
from mimids.cli.cert import cert
from mimids.cli.check.command import check
from mimids.cli.completion import completion
from mimids.cli.demo.command import demo
from mimids.cli.mls import mls
from mimids.cli.move import move
from mimids.cli.nouns import add_nouns
from mimids.cli.places import config_option_of_group, refuse_config_before
from mimids.cli.refusals import or_refused
from mimids.cli.serve import serve
from mimids.cli.setup import init, migrate

_SECTIONS: Final = {
    "Run a provider": (
        *("serve", "console", "init", "migrate", "check", "status", "reload"),
        *("backup", "restore", "restored", "move", "cert"),
    ),
    "Try it": ("demo", "mls", "completion"),
}
_OTHERS: Final = "Operate it"


class _SectionedGroup(click.Group):
    """A group whose help lists its commands in sections."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that an operator can fix ends it without a traceback, wherever it was raised."""
        return or_refused(lambda: super(_SectionedGroup, self).invoke(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        first = {name for names in _SECTIONS.values() for name in names}
        sections = _SECTIONS | {_OTHERS: tuple(name for name in self.commands if name not in first)}
        for title, names in sections.items():
            rows = [(name, self.commands[name].get_short_help_str(100)) for name in names if name in self.commands]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=_SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="A federated MLS Delivery Service for MIMI.",
    epilog="\b\nTo see it work:       mimids demo\nTo try it out:        mimids serve --dev\n"
    "To set up your own:   mimids init DIR",
)
@click.version_option(__version__, prog_name="mimids")
@config_option_of_group
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run `mimids`, which has all other commands as subcommands."""
    refuse_config_before(ctx, main.commands[ctx.invoked_subcommand or ""])


def _add(to: click.Group, commands: Sequence[click.Command]) -> None:
    for command in commands:
        to.add_command(command)


_add(main, [serve, init, migrate, check, backup, restore, move, cert, demo, mls, completion])
add_nouns(main)
