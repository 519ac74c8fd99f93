"""Shows progress on standard error, if that is a terminal and the work takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

Progress = Callable[[int, int], None]  # done, of how many

SILENT_SECONDS: Final = 1.0
_STEPS: Final = 1000


@contextmanager
def bar(label: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show a progress bar; yield the function that updates it."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    began, drawn = time.monotonic(), click.progressbar(length=_STEPS, label=label, file=sys.stderr)

    def update(done: int, total: int) -> None:
        if time.monotonic() - began >= SILENT_SECONDS:
            drawn.update(done * _STEPS // max(total, 1) - drawn.pos)

    try:
        yield update
    finally:
        if drawn.pos:
            drawn.render_finish()


@contextmanager
def elapsed(label: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the elapsed seconds, for work whose length is not known."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_count, args=(label, over))
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _count(label: str, over: threading.Event) -> None:
    began, shown = time.monotonic(), ""
    while not over.wait(SILENT_SECONDS):
        shown = f"{label}, {time.monotonic() - began:.0f} s"
        click.echo(f"\r{shown}", file=sys.stderr, nl=False)
    if shown:
        click.echo(f"\r{' ' * len(shown)}\r", file=sys.stderr, nl=False)
