"""The terminal chat of examples/: two people at two providers, as `make terminal-chat` starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mimids.testing import Provider
from tests.support.imports import ROOT
from tests.support.mls import needs_mls
from tests.support.played import BINDINGS, note

pytestmark = [pytest.mark.slow, needs_mls]

SECONDS = 60  # for a chat
CHAT = ROOT / "examples" / "terminal_chat"


def person(provider: Provider, name: str) -> tuple[Path, Path]:
    account = provider.add_device(name)
    mine, card = (provider.directory / f"{name}-{what}.json" for what in ("me", "card"))
    me = {"url": account.url, "token": account.token, "ca": str(account.ca_file)}
    mine.write_text(json.dumps(me | {"user_id": account.user_id, "provider": provider.name}))
    card.write_text(json.dumps(provider.command("contact", user=name)))
    return mine, card


class Terminal:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def type(self, line: str) -> None:
        note(BINDINGS, 1, "update" if line.startswith("/keys") else "messages")
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_until(self, wanted: str) -> list[str]:
        """Return the lines up to one that has this text."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            if wanted in line:
                return lines
        raise AssertionError(f"the chat ended with {lines}")


@contextmanager
def terminal(mine: Path, friends: Path, *more: str) -> Iterator[Terminal]:
    process = subprocess.Popen(
        [sys.executable, str(CHAT / "chat.py"), str(mine), str(friends), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    hanging = threading.Timer(SECONDS, process.kill)
    hanging.start()
    try:
        yield Terminal(process)
        process.communicate("\n", timeout=30)
        assert process.returncode == 0
    finally:
        hanging.cancel()
        process.kill()
        process.wait()


@contextmanager
def two_people(red: Provider, blue: Provider) -> Iterator[tuple[Terminal, Terminal]]:
    """Start the terminals of Alice and Bob, and wait until both are connected."""
    (alice, alices_card), (bob, bobs_card) = person(red, "alice"), person(blue, "bob")
    with terminal(alice, bobs_card, "--begin") as hers, terminal(bob, alices_card) as his:
        for each in (hers, his):
            each.read_until("You are connected")
        ((suite, linear),) = red.read("SELECT cipher_suite, linear FROM groups")
        note(BINDINGS, suite, "create", "add", "linear group" if linear else "forking group", "no GroupInfo")
        yield hers, his


def test_two_people_talk_and_change_keys_at_the_same_time(mimids_federation: Any) -> None:
    red, blue = mimids_federation("red.example", "blue.example")
    with two_people(red, blue) as (hers, his):
        hers.type("hello Bob")
        his.read_until("alice: hello Bob")
        for each in (hers, his):
            each.type("/keys")
        his.type("hello Alice")
        hers.read_until("bob: hello Alice")
        hers.type("are these new keys?")
        seen = his.read_until("alice: are these new keys?")
        assert sum("New keys" in line for line in seen) >= 2
    assert b"hello Bob" not in b"".join([*red.files().values(), *blue.files().values()])


def test_new_keys_may_be_made_several_times_in_a_row(mimids_federation: Any) -> None:
    with two_people(*mimids_federation("red.example", "blue.example")) as (hers, his):
        his.type("/keys\n/keys\n/keys\nhello Alice")
        hers.read_until("bob: hello Alice")


def test_its_code_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in CHAT.glob("*.py")) < 250
