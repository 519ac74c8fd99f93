"""Progress is shown on a terminal, for work that takes longer than a second."""

from __future__ import annotations

import os
import pty
import sys
import threading
from collections.abc import Callable
from typing import Any

import click
import pytest

from mimids.cli import progress
from mimids.cli.progress import bar, elapsed


def on_a_terminal(do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `do` writes to standard error when that is a terminal."""
    terminal, side = pty.openpty()
    with os.fdopen(side, "w") as stderr, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        do()
        print("END", file=stderr, flush=True)
        shown = b""
        while b"END" not in shown:
            shown += os.read(terminal, 65536)
    os.close(terminal)
    return shown.decode().partition("END")[0]


def copy() -> None:
    with bar("copying") as tell:
        tell(1, 4)
        tell(3, 4)


def read(until: Callable[[], object] = bool) -> None:
    with elapsed("reading"):
        until()


def test_short_work_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal(copy, monkeypatch) == on_a_terminal(read, monkeypatch) == ""


def test_long_work_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0)
    assert "75%" in on_a_terminal(copy, monkeypatch)
    counted, echo = threading.Event(), click.echo

    def echo_and_tell(*arguments: Any, **options: Any) -> None:
        echo(*arguments, **options)
        counted.set()

    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.001)
    monkeypatch.setattr(click, "echo", echo_and_tell)
    shown = on_a_terminal(lambda: read(lambda: counted.wait(30)), monkeypatch)
    assert shown.startswith("\rreading, 0 s")
    assert shown.endswith(f"\r{' ' * 12}\r")


@pytest.mark.parametrize("do", [copy, read], ids=["bar", "seconds"])
def test_progress_is_shown_only_on_a_terminal(
    do: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0)
    do()
    assert capsys.readouterr() == ("", "")
