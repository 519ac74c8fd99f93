"""`mimids demo`: set up the providers, replay the recording, print the results."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click

from mimids.cli.places import example
from mimids.cli.refusals import CommandRefused
from mimids.cli.showing import say, table
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from mimids.cli.demo.story import DemoStory

LOG_LINES: Final = 5  # of each provider's log, printed after a failure


@example("mimids demo", "mimids demo --keep ./demo")
@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep databases, certificates and logs in this directory.",
)
def demo(keep: Path | None) -> None:
    """Replay recorded MLS traffic through three providers on loopback.

    The providers a.example, b.example and c.example run as separate processes, with TLS certificates of a temporary
    authority. The exit code is 0 only if every check passed.
    """
    import trio

    from mimids.cli.demo.providers import make_providers, running_providers
    from mimids.cli.demo.story import DemoStory

    began = time.perf_counter()
    with _directory(keep) as directory:
        say("Three providers, seven users, one group with a fork, and the same group again as a linear group:")
        providers, trust = make_providers(directory)
        story = DemoStory(providers, trust)
        logs = {name: provider.log for name, provider in providers.items()}
        try:
            with running_providers(providers) as processes:
                trio.run(story.play, lambda: _check_alive(processes))
        except Exception as error:
            _show_logs(logs)
            raise CommandRefused(f"the demonstration failed: {str(error) or type(error).__name__}") from error
        _print_summary(story, time.perf_counter() - began)
        if story.ledger.failed:
            _show_logs(logs)
            raise CommandRefused(f"{len(story.ledger.failed)} of {story.ledger.checks} checks failed")
    if keep:
        group = story.recording.group_id.decode()
        say("", f"To see the group: mimids group show {group} --config {keep}/a.example/mimids.toml")


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mimids-demo-") as made:
            yield Path(made)
        return
    if keep.exists() and any(keep.iterdir()):
        raise CommandRefused(f"the directory {keep} is not empty", "give a directory that does not exist yet")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


def _check_alive(processes: Mapping[ProviderId, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with exit code {process.returncode}")


def _print_summary(story: DemoStory, seconds: float) -> None:
    """Print the parts with their checks, and what each provider could not see."""
    parts = story.ledger.parts
    say()
    rows = [(part.title, part.checks, len(part.failed), f"{part.seconds:.2f}") for part in parts]
    total = ("in all", story.ledger.checks, len(story.ledger.failed), f"{seconds:.2f}")
    for line in table(("part", "checks", "failed", "seconds"), [*rows, total]):
        say(line)
    say("", "What each provider could not see:")
    for line in table(
        ("provider", "could not see", "how that was checked"), [attrs.astuple(each) for each in story.unseen]
    ):
        say(line)
    say(
        "",
        "To chat yourself, in a clone of the repository: make chat (in a browser), make terminal-chat (in a terminal).",
    )


def _show_logs(logs: Mapping[ProviderId, Path]) -> None:
    """Print the last lines of each provider's log."""
    for name, path in logs.items():
        if path.exists():
            say("", f"The last lines of the log of {name}:", err=True)
            for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                say(f"  {line}", err=True)
