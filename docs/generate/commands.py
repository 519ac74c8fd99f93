"""The references in docs/commands.md and docs/operator-socket.md, printed from the code. A test compares them.

`python -m docs.generate.commands docs/commands.md docs/operator-socket.md` replaces the text between the markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from docs.generate.markers import fill
from mimids.cli.main import main
from mimids.ds.commands import COMMANDS, Argument, Command

WIDTH: Final = 100


def command_reference() -> str:
    """Return the `--help` text of every command, in the order of the help."""
    settings = dict(main.context_settings) | {"max_content_width": WIDTH, "terminal_width": WIDTH}
    context = click.Context(main, info_name="mimids", **settings)
    return "\n".join(_helps(main, context))


def socket_reference() -> str:
    """Return every command of the operator socket, with its members and an example."""
    return "\n".join(line for command in COMMANDS for line in _endpoint(command))


def written(text: str) -> str:
    """Return a document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"commands": command_reference, "operator-socket": socket_reference})


def _helps(command: click.Command, context: click.Context) -> Iterator[str]:
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    if not inner:
        yield f"### `{context.command_path}`\n"
        yield f"```text\n{command.get_help(context)}\n```\n"
    for name, each in inner:
        yield from _helps(each, click.Context(each, parent=context, info_name=name))


def _endpoint(command: Command) -> Iterator[str]:
    yield f"### `POST {command.path}`\n"
    yield f"{command.summary}\n"
    if command.arguments:
        yield "| member | type | meaning |"
        yield "| --- | --- | --- |"
        yield from map(_member, command.arguments)
        yield ""
    yield f"Request:\n\n```json\n{json.dumps(command.sample())}\n```\n"
    yield f"Answer:\n\n```json\n{json.dumps(json.loads(command.answer), indent=2)}\n```\n"


def _member(argument: Argument) -> str:
    kind = " or ".join(f"`{choice}`" for choice in argument.choices) or argument.kind.value
    return f"| `{argument.name}`{'' if argument.required else ', optional'} | {kind} | {argument.help} |"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
