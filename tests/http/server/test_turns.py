"""Turns of the event loop: each owner has a few in a round, and those that wait get theirs one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from mimids.http.server.turns import Turns
from mimids.owners import Owner

MOST, MOST_OF_ONE = 8, 3


class Rounds(trio.abc.Instrument):
    """Notes which owners took turns in which round of the event loop."""

    def __init__(self) -> None:
        self.taken: list[Counter[Owner]] = []

    def after_io_wait(self, timeout: float) -> None:
        self.taken.append(Counter())

    async def take(self, turns: Turns, owner: Owner) -> None:
        await turns.wait(owner)
        self.taken[-1][owner] += 1

    @property
    def by_round(self) -> list[dict[Owner, int]]:
        """The rounds in which anybody took a turn."""
        return [dict(each) for each in self.taken if each]


@pytest.fixture
async def turns(nursery: trio.Nursery) -> Turns:
    made = Turns(MOST, MOST_OF_ONE)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


@pytest.fixture
async def rounds() -> AsyncIterator[Rounds]:
    noting = Rounds()
    trio.lowlevel.add_instrument(noting)
    yield noting
    trio.lowlevel.remove_instrument(noting)


async def test_an_owner_takes_few_turns_in_a_round(turns: Turns, rounds: Rounds) -> None:
    async with trio.open_nursery() as tasks:
        for _ in range(10):
            tasks.start_soon(rounds.take, turns, "greedy")
        await trio.lowlevel.checkpoint()
        tasks.start_soon(rounds.take, turns, "modest")
    assert sum(each.get("greedy", 0) for each in rounds.by_round) == 10
    assert max(each.get("greedy", 0) for each in rounds.by_round) <= MOST_OF_ONE
    assert any("modest" in each for each in rounds.by_round[:2])


async def test_all_owners_together_take_a_bounded_number_of_turns_in_a_round(turns: Turns, rounds: Rounds) -> None:
    async with trio.open_nursery() as tasks:
        for owner in range(30):
            tasks.start_soon(rounds.take, turns, owner)
    assert sum(sum(each.values()) for each in rounds.by_round) == 30
    assert max(sum(each.values()) for each in rounds.by_round) <= MOST


async def test_those_that_wait_get_turns_one_owner_after_the_other(turns: Turns, rounds: Rounds) -> None:
    async with trio.open_nursery() as tasks:
        for owner in range(4):
            for _ in range(20):
                tasks.start_soon(rounds.take, turns, owner)
    totals: Counter[Owner] = Counter()
    for each in rounds.by_round:
        totals.update(each)
        taken = [totals[owner] for owner in range(4)]
        assert max(taken) - min(taken) <= 2 * MOST_OF_ONE
    assert totals == dict.fromkeys(range(4), 20)


async def test_without_an_owner_nothing_is_counted(turns: Turns, rounds: Rounds) -> None:
    async with trio.open_nursery() as tasks:
        for _ in range(5 * MOST):
            tasks.start_soon(rounds.take, turns, None)
    assert rounds.by_round == [{None: 5 * MOST}]
    assert turns.delayed == 0


async def test_a_task_that_is_cancelled_waits_no_longer(turns: Turns, rounds: Rounds) -> None:
    async with trio.open_nursery() as tasks:
        for _ in range(MOST_OF_ONE):
            await turns.wait("busy")
        with trio.CancelScope() as scope:
            scope.cancel()
            await rounds.take(turns, "busy")
        assert scope.cancelled_caught
        for _ in range(2):
            tasks.start_soon(rounds.take, turns, "busy")
    assert sum(each["busy"] for each in rounds.by_round) == 2
