"""`mimids mls`: look at MLS objects; needs no provider."""

from __future__ import annotations

import time
from typing import IO, Any, BinaryIO, TextIO

import click

from mimids.cli.places import example
from mimids.cli.refusals import CommandRefused
from mimids.cli.showing import say, say_json
from mimids.wire.codec import WireError


def _name(file: IO[Any]) -> str:
    return getattr(file, "name", "standard input")


@click.group()
def mls() -> None:
    """Look at MLS objects."""


@example("mimids mls inspect key-package.bin")
@mls.command()
@click.argument("file", type=click.File("rb"))
def inspect(file: BinaryIO) -> None:
    """Print an MLS object as a tree. FILE has its bytes, in binary, hex or base64; - is standard input."""
    from mimids.replay.inspect import inspect

    try:
        lines = inspect(file.read())
    except WireError as error:
        raise CommandRefused(f"{_name(file)} is not an MLS object: {error}") from error
    say(*lines)


@example("mimids mls replay conversation.jsonl")
@mls.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
def replay(file: TextIO) -> None:
    """Check a recorded group as the server does, and print a JSON line for each message.

    FILE has a JSON array of {cipher_suite, group_info, ratchet_tree, epochs: [{proposals, commit}]}, or JSON lines that
    say which result is expected for each message. The exit code is 1 if a message is refused or differs from what is
    expected.
    """
    from mimids.replay.replay import replay

    failed = 0
    try:
        for record in replay(file.read(), now_s=int(time.time())):
            say_json(record.as_json())
            failed += record.failed
    except (ValueError, LookupError, TypeError) as error:
        raise CommandRefused(f"{_name(file)} is not a recording: {error}") from error
    if failed:
        raise CommandRefused(f"{failed} messages were refused, or differ from what the recording expects")
