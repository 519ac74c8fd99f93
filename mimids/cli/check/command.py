"""The command: print each finding as soon as there is one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import click

from mimids.cli.check.finding import Finding, State
from mimids.cli.places import config_option, example, json_option, load_config
from mimids.cli.refusals import REFUSED, or_refused
from mimids.cli.showing import show
from mimids.config import Config

_SIGNS: Final = {State.OK: "✓", State.WARNING: "!", State.WRONG: "✗"}


@example("mimids check --config mimids.toml")
@click.command()
@config_option
@json_option
@click.option("--no-peers", is_flag=True, help="Do not call other providers.")
def check(config_file: Path | None, as_json: bool, no_peers: bool) -> None:
    """Find faults, and say how to fix them. The exit code is 1 if there is a fault."""
    config = load_config(config_file)
    found = []
    for finding in _findings(config, ask_peers=not no_peers):
        found.append(finding)
        if not as_json:
            click.echo(f"{_SIGNS[finding.state]} {finding.check}: {finding.what}")
            if finding.fix:
                click.echo(f"    {finding.fix}")
    counts = Counter(finding.state for finding in found)
    if as_json:
        members = [{**attrs.asdict(each), "state": each.state.value} for each in found]
        show("check", {"ok": not counts[State.WRONG], "findings": members}, as_json=True)
    else:
        warnings = f"{counts[State.WARNING]} warning{'' if counts[State.WARNING] == 1 else 's'}"
        click.echo(f"\n{counts[State.WRONG]} wrong, {warnings}, {counts[State.OK]} ok")
    sys.exit(REFUSED if counts[State.WRONG] else 0)


def _findings(config: Config, *, ask_peers: bool) -> Iterator[Finding]:
    from mimids.cli.check.certificates import certificates
    from mimids.cli.check.here import here
    from mimids.cli.check.peers import peers

    for part in (certificates, here, *([peers] if ask_peers else [])):
        yield from or_refused(partial(list, part(config)))
