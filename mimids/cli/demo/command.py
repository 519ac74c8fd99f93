"""`mimids demo`: set up, play, tell."""

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
from mimids.cli.showing import table
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from mimids.cli.demo.story import DemoStory

LOG_LINES: Final = 5  # of a provider's log, where something failed


@example("mimids demo", "mimids demo --keep ./demo")
@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Leave databases, certificates and logs there, to look at.",
)
def demo(keep: Path | None) -> None:
    """Play recorded MLS traffic through three providers on loopback.

    a.example, b.example and c.example run as processes of their own, with TLS from a throw-away authority. Exit 0 only
    if every check held.
    """
    import trio

    from mimids.cli.demo.providers import make_providers, running_providers
    from mimids.cli.demo.story import DemoStory

    began = time.perf_counter()
    with _directory(keep) as directory:
        click.echo("Three providers, seven users, one group with a fork:")
        providers, trust = make_providers(directory)
        story = DemoStory(providers, trust)
        logs = {name: provider.log for name, provider in providers.items()}
        try:
            with running_providers(providers) as processes:
                trio.run(story.play, lambda: _check_alive(processes))
        except Exception as error:
            _show_logs(logs)
            raise CommandRefused(f"the demonstration stopped: {str(error) or type(error).__name__}") from error
        _close(story, time.perf_counter() - began)
        if story.ledger.failed:
            _show_logs(logs)
            raise CommandRefused(f"{len(story.ledger.failed)} of {story.ledger.checks} checks did not hold")
    if keep:
        group = story.recording.group_id.decode()
        click.echo(f"\nTo look at it: mimids group show {group} --config {keep}/a.example/mimids.toml")


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mimids-demo-") as made:
            yield Path(made)
        return
    if keep.exists() and any(keep.iterdir()):
        raise CommandRefused(f"{keep} is not empty", "name a directory that does not exist yet")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


def _check_alive(processes: Mapping[ProviderId, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with exit code {process.returncode}")


def _close(story: DemoStory, seconds: float) -> None:
    """Print what was done and what was not seen."""
    parts = story.ledger.parts
    click.echo()
    rows = [(part.title, part.checks, len(part.failed), f"{part.seconds:.2f}") for part in parts]
    total = ("in all", story.ledger.checks, len(story.ledger.failed), f"{seconds:.2f}")
    for line in table(("part", "checks", "failed", "seconds"), [*rows, total]):
        click.echo(line)
    click.echo("\nWhat each provider could not see:")
    for line in table(
        ("provider", "could not see", "how that was checked"), [attrs.astuple(each) for each in story.unseen]
    ):
        click.echo(line)


def _show_logs(logs: Mapping[ProviderId, Path]) -> None:
    """Print the end of each provider's log, where something went wrong."""
    for name, path in logs.items():
        if path.exists():
            click.echo(f"\n{name} wrote last:", err=True)
            for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                click.echo(f"  {line}", err=True)
