"""The TypeScript client against real providers over loopback: the scenarios of clients/typescript/test/live.mjs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mimids.client import KeySets
from mimids.testing import Federation, Session, federation
from tests.support.people import key_packages
from tests.support.typescript import HOME, node

SECONDS = 60


@pytest.fixture(scope="module")
def providers(mimids_session: Session) -> Iterator[Federation]:
    config: dict[str, dict[str, Any]] = {"listen": {"client_tls": False}, "delivery": {"backoff_cap_seconds": 1}}
    with federation("a.example", "b.example", config=config, session=mimids_session) as made:
        yield made


def play(
    scenario: str, providers: Federation, answer: Callable[[dict[str, Any]], None] = lambda _: None, **more: object
) -> None:
    """Play a scenario; `answer` does what its steps ask for."""
    a, b = providers
    accounts = {"alice": a.add_device("alice", scenario), "bob": b.add_device("bob", scenario)}
    devices = {user: {"url": account.url, "token": account.token} for user, account in accounts.items()}
    settings = json.dumps({"devices": devices, **more})
    with subprocess.Popen(
        [node(), "test/live.mjs", scenario, settings],
        cwd=HOME,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                answer(json.loads(line))
                process.stdin.write("{}\n")
                process.stdin.flush()
            _, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, errors


def kill_and_restart(providers: Federation) -> Callable[[dict[str, Any]], None]:
    def answer(step: dict[str, Any]) -> None:
        if "kill" in step:
            providers[step["kill"]].kill()
        else:
            providers[step["restart"]].restart()

    return answer


def test_two_devices_talk(providers: Federation) -> None:
    play("conversation", providers)


def test_a_device_gets_what_it_missed_once(providers: Federation) -> None:
    play("resuming", providers, kill_and_restart(providers))


def test_a_hub_that_is_away_is_named_and_its_messages_come_later(providers: Federation) -> None:
    play("away", providers, kill_and_restart(providers))


def test_key_packages_are_fetched_over_ohttp(providers: Federation) -> None:
    kept: list[str] = []
    packages = [package.hex() for package in key_packages(1, "bob@b.example", 5)]
    play("keyPackages", providers, lambda step: kept.append(step["keySets"]), keyPackages=packages)
    (text,) = kept
    assert json.loads(KeySets.from_json(text).as_json()) == json.loads(text)


def test_a_welcome_names_its_hub(providers: Federation) -> None:
    packages = [package.hex() for package in key_packages(2, "bob@b.example", 2)]
    play("welcomes", providers, keyPackages=packages)


def test_a_removed_device_is_told_so(providers: Federation) -> None:
    def remove(step: dict[str, Any]) -> None:
        providers["b.example"].command("device remove", user=step["remove"], name="removed")

    play("removed", providers, remove)


def test_a_commit_in_a_linear_group_is_made_again(providers: Federation) -> None:
    play("linear", providers)
