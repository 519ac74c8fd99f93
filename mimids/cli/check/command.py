"""The command: print each finding as soon as there is one."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import click

from mimids.cli.check.finding import Finding, State
from mimids.cli.places import config_option, example, json_option, load_config
from mimids.cli.refusals import REFUSED, CommandRefused, or_refused
from mimids.cli.showing import say, show
from mimids.config import Config
from mimids.errors import MimiError
from mimids.store.engine.access import read_here
from mimids.store.federation_rules import every_rule
from mimids.telemetry import Log

_SIGNS: Final = {State.OK: "✓", State.WARNING: "!", State.WRONG: "✗"}


@example("mimids check --config mimids.toml")
@click.command()
@config_option
@json_option
@click.option("--no-peers", is_flag=True, help="Do not call other providers or push services.")
def check(config_file: Path | None, as_json: bool, no_peers: bool) -> None:
    """Find faults, and say how to fix them. The exit code is 1 if there is a fault."""
    config = load_config(config_file)
    found = []
    for finding in _findings(config, ask_peers=not no_peers):
        found.append(finding)
        if not as_json:
            say(f"{_SIGNS[finding.state]} {finding.check}: {finding.what}")
            if finding.fix:
                say(f"    {finding.fix}")
    counts = Counter(finding.state for finding in found)
    if as_json:
        members = [{**attrs.asdict(each), "state": each.state.value} for each in found]
        show("check", {"ok": not counts[State.WRONG], "findings": members}, as_json=True)
    else:
        warnings = f"{counts[State.WARNING]} warning{'' if counts[State.WARNING] == 1 else 's'}"
        say("", f"{counts[State.WRONG]} wrong, {warnings}, {counts[State.OK]} ok")
    sys.exit(REFUSED if counts[State.WRONG] else 0)


def _findings(config: Config, *, ask_peers: bool) -> Iterator[Finding]:
    from mimids.cli.check.certificates import certificates
    from mimids.cli.check.here import here
    from mimids.cli.check.peers import peers
    from mimids.cli.check.push import push_services
    from mimids.cli.check.trust import trust_in_peers

    use_operator_rules(config)
    calls = [peers, push_services] if ask_peers else []
    for part in (certificates, trust_in_peers, here, *calls):
        yield from or_refused(partial(list, part(config)))


def use_operator_rules(config: Config) -> None:
    """Apply the operator's stored rules (providers allowed and removed) to `config`, if the database can be read."""
    with suppress(sqlite3.Error, OSError, MimiError), read_here(config.place) as tx:  # the checks report these
        config.federation.decide(every_rule(tx))


def log_findings(config: Config, log: Log) -> None:
    """Log a warning for each fault that the quick checks find; a server that has started calls this."""
    from mimids.cli.check.certificates import certificates
    from mimids.cli.check.here import quick
    from mimids.cli.check.trust import trust_in_peers

    for part in (certificates, trust_in_peers, quick):
        try:
            for finding in or_refused(partial(list, part(config))):
                if finding.fix is not None:
                    log.warning("the check found a fault", check=finding.check, what=finding.what, fix=finding.fix)
        except CommandRefused as refused:
            log.warning("the check found a fault", check=part.__name__, what=refused.message, fix=refused.fix)
