"""Output for people: trees, tables, values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mimids.cli.showing import show, table
from mimids.ds.commands import COMMANDS, Command


def partition(key: str, parent: str | None, epoch: int | None, **more: Any) -> dict[str, Any]:
    plain = {
        "messages": 1,
        "state": "derived",
        "detached": False,
        "terminated": False,
        "why": None,
        "held_welcomes": 0,
        "followers": [],
    }
    return plain | {"partition": key * 32, "parent": parent and parent * 32, "epoch": epoch} | more


def test_a_group_is_drawn_as_a_tree_whose_chains_stay_in_their_column(capsys: Any) -> None:
    tree = [
        partition("a0", None, 0),
        partition("b1", "a0", 1, messages=4, followers=["b.example"]),
        partition("c2", "b1", 2, terminated=True, why="stale"),
        partition("c3", "c2", 3),
        partition("d2", "b1", 2, messages=0, state="unknown", held_welcomes=2),
        partition("e9", None, None, detached=True),
    ]
    group = {"group_id": "Zw", "name": "g", "hub": "a.example", "cipher_suite": 1, "created_at": 0, "live_forks": 1}
    group |= {"linear": False, "successor": None}
    show("group show", group | {"tree": tree}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "g",
        "hub a.example, cipher suite 1, since 1970-01-01 00:00:00Z",
        "1 live fork: `mimids group terminate` ends a branch",
        "",
        "● epoch 0  a0a0a0a0  1 message, state derived",
        "● epoch 1  b1b1b1b1  4 messages, state derived, followed by b.example",
        "├─ ● epoch 2  c2c2c2c2  1 message, state derived, TERMINATED (stale)",
        "│  ● epoch 3  c3c3c3c3  1 message, state derived",
        "└─ ● epoch 2  d2d2d2d2  0 messages, state unknown, 2 Welcomes held",
        "",
        "● epoch ?  e9e9e9e9  1 message, state derived, DETACHED",
    ]


def test_a_table_aligns_numbers_right() -> None:
    assert list(table(("name", "n"), [("a", 1), ("bc", 22)])) == ["name   n", "a      1", "bc    22"]
    assert list(table(("name", "n"), [])) == ["name  n"]


def test_times_are_readable_and_missing_values_are_a_dash(capsys: Any) -> None:
    time = 1_764_000_000_000
    answer = {"created_at": time, "believed": time, "seen_on": time, "label": "", "ends_at": None, "live": True}
    show("x", answer, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "created_at  2025-11-24 16:00:00Z",
        "believed    2025-11-24 16:00:00Z",
        "seen_on     2025-11-24",
        "label       -",
        "ends_at     -",
        "live        yes",
    ]


def numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield all integers of an answer, each with the name of its member."""
    if isinstance(value, dict):
        for member, each in value.items():
            yield from numbers(each, member)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each, name)
    elif isinstance(value, int):
        yield name, value


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_no_time_is_shown_as_a_number(command: Command, capsys: Any) -> None:
    answer = json.loads(command.answer)
    show(command.name, answer, as_json=False)
    shown = capsys.readouterr().out
    for name, number in numbers(answer):
        if 10**12 < number < 4 * 10**12:  # milliseconds until the end of this century
            assert str(number) not in shown, name
