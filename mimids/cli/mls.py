"""`mimids mls`: look at MLS objects, no provider needed."""

from __future__ import annotations

from typing import BinaryIO

import click

from mimids.cli.places import example
from mimids.cli.refusals import Refused
from mimids.wire.codec import WireError


@click.group()
def mls() -> None:
    """Look at MLS objects."""


@example("mimids mls inspect key-package.bin")
@mls.command()
@click.argument("file", type=click.File("rb"))
def inspect(file: BinaryIO) -> None:
    """Print any MLS object as a tree: octets, hex or base64; - is standard input."""
    from mimids.mls.inspect import inspect

    try:
        lines = inspect(file.read())
    except WireError as error:
        raise Refused(f"{file.name}: not an MLS object: {error}") from error
    for line in lines:
        click.echo(line)
