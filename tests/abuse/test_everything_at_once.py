"""All attacks at once against three live providers: what honest users were promised holds.

Every provider is attacked by a process of its own, which has a device there and the certificate of a fourth provider.
That provider is frozen, so that every call to it takes until its timeout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import attrs
import pytest
import trio

from mimids.testing import Federation, Provider, Session, open_federation
from tests.support.attackers import ATTACKS, Target
from tests.support.honest_load import HonestLoad, honest_load
from tests.support.stage import AWAY, NAMES

pytestmark = [pytest.mark.slow, AWAY]

MALICIOUS = "m.example"
SHORT_SECONDS = 8
SOAK_SECONDS = 60
MOST_P99_SECONDS = 1.0  # on two cores that have nothing else to do
MOST_GROWTH_MEGABYTES = 100
PACE_SECONDS = 0.1  # between two messages of a sender
FETCH_SECONDS = 0.4  # the default limits allow 260 fetches of a device in the first minute


def targets(federation: Federation) -> list[Target]:
    """Return the providers under attack, each with a device of the attacker."""
    other = federation[MALICIOUS]
    return [
        Target(
            name=name,
            public=federation[name].public_url.removeprefix("https://"),
            client=federation[name].client_url.removeprefix("https://"),
            ca_file=str(other.ca_file),
            certificate=str(other.directory / "provider.pem"),
            private_key=str(other.directory / "provider.key"),
            other=MALICIOUS,
            token=federation[name].add_device("mallory").token,
        )
        for name in NAMES
    ]


def start_attacker(victim: Target, seed: int) -> Popen[str]:
    """Start the process that attacks a provider, and wait until it is ready."""
    process = Popen([sys.executable, "-m", "tests.support.attackers"], stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"target": attrs.asdict(victim), "seed": seed}) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    return process


@asynccontextmanager
async def attacked(victims: list[Target]) -> AsyncIterator[None]:
    """Attack for the block; fail unless each attack was made on each provider."""
    attackers = [await trio.to_thread.run_sync(start_attacker, victim, n) for n, victim in enumerate(victims)]
    try:
        yield
        for victim, process in zip(victims, attackers, strict=True):
            output, _ = await trio.to_thread.run_sync(partial(process.communicate, timeout=30))
            rounds = json.loads(output)
            print(f"rounds against {victim.name}: {rounds}")
            assert rounds.keys() == {attack.__name__ for attack in ATTACKS}
    finally:
        for process in attackers:
            process.kill()
            process.wait()


def resident_megabytes(provider: Provider) -> float:
    status = Path(f"/proc/{provider.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def attack_under_load(session: Session, seconds: float) -> tuple[HonestLoad, dict[str, float]]:
    """Run everything for a time; return the load and by how much each process grew."""
    async with open_federation(*NAMES, MALICIOUS, links=False, session=session) as federation:
        victims = await trio.to_thread.run_sync(targets, federation)
        federation[MALICIOUS].stop()
        providers = [federation[name] for name in NAMES]
        async with honest_load(federation, pace_seconds=PACE_SECONDS, fetch_seconds=FETCH_SECONDS) as load:
            await trio.sleep(1)
            before = [resident_megabytes(provider) for provider in providers]
            async with attacked(victims):
                await trio.sleep(seconds)
        after = [resident_megabytes(provider) for provider in providers]
        grown = {name: end - begin for name, begin, end in zip(NAMES, before, after, strict=True)}
        print(load.summary(), {name: f"{megabytes:+.0f} MB" for name, megabytes in grown.items()})
        return load, grown


async def test_honest_users_lose_nothing_while_everything_is_attacked(mimids_session: Session) -> None:
    load, _ = await attack_under_load(mimids_session, SHORT_SECONDS)
    assert len(load.sent) > SHORT_SECONDS
    assert len(load.fetched) > SHORT_SECONDS
    assert load.welcomed


@pytest.mark.soak
async def test_honest_users_are_served_in_a_minute_of_all_attacks(mimids_session: Session) -> None:
    load, grown = await attack_under_load(mimids_session, SOAK_SECONDS)
    slowest = {kind: load.p99(kind) for kind in load.seconds}
    assert max(slowest.values()) < MOST_P99_SECONDS, slowest
    assert max(grown.values()) < MOST_GROWTH_MEGABYTES, grown
