"""Members of a linear group with real MLS libraries, who all commit at once; the first commit of an epoch wins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import attrs
import trio

from mimids.client import CommitAttempt, CommitSuperseded, Problem, Unreachable, commit_with_retry
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import Message
from tests.support.live_group import Change, LiveGroup, Person
from tests.support.played import note
from tests.support.stacks import LIBRARIES
from tests.support.stage import HUB

AGAIN_SECONDS: Final = 0.2  # before the same octets are sent again, after a failure that passes
TRIES: Final = 50
UPDATE: Final[Change] = {"type": "update"}


@attrs.define(eq=False)
class Race:
    """A race of commits: who won each epoch, and how many commits were superseded."""

    group: LiveGroup
    commits: int  # to be won
    dice: random.Random
    won: dict[PartitionKey, str] = attrs.field(factory=dict)  # by the partition of the epoch
    lost: int = 0
    failures: int = 0  # attempts that were not answered, and made again

    async def run(self, racers: Sequence[Person], newcomers: Sequence[Person]) -> None:
        """Let all racers commit until enough commits have won; each newcomer is added by one of them on the way."""
        async with trio.open_nursery() as racing:
            for number, person in enumerate(racers):
                note(LIBRARIES[person.mls.stack], person.mls.suite, "racing commits")
                racing.start_soon(self._race, Racer(self, person), list(newcomers[number :: len(racers)]))

    async def _race(self, racer: Racer, adding: list[Person]) -> None:
        while adding or len(self.won) < self.commits:
            joiner = adding.pop() if adding and len(self.won) >= self.commits // 4 else None
            changes = [UPDATE] if joiner is None else [await self._fetch(racer.person, joiner)]
            await racer.commit(changes)
            if joiner is not None:
                await self.group.join(joiner)

    async def _fetch(self, by: Person, whose: Person) -> Change:
        while True:
            try:
                return await self.group.fetch(by, whose)
            except (Problem, Unreachable) as failure:
                await self.wait_again(failure)

    async def wait_again(self, failure: Problem | Unreachable) -> None:
        """Wait before the same request is made again; raise a refusal that does not pass."""
        if isinstance(failure, Problem) and not failure.is_temporary:
            raise failure
        self.failures += 1
        await trio.sleep(AGAIN_SECONDS * self.dice.random())

    def note_won(self, key: PartitionKey, by: Person) -> None:
        """Record the winner of an epoch."""
        assert key not in self.won, "an epoch has two winners"
        self.won[key] = by.name

    async def catch_up(self) -> None:
        """Let every member process what it has not yet, up to an epoch without a commit."""
        for person in self.group.members:
            racer = Racer(self, person)
            while person.key in self.won:
                messages = [each async for each in person.device.receive_all(HUB, person.key, person.counter)]
                await racer.apply(person.counter, tuple(messages))


@attrs.define(eq=False)
class Racer:
    """One member in the race. A commit stays pending until the hub has answered, so that its octets are sent again."""

    race: Race
    person: Person
    changes: list[Change] = attrs.field(factory=list)
    pending: dict[str, Any] | None = None

    async def commit(self, changes: list[Change]) -> None:
        """Commit changes in whichever epoch it succeeds."""
        self.changes = changes
        while True:
            try:
                answer = await commit_with_retry(self.person.device, HUB, self.make, self.apply, tries=TRIES)
            except CommitSuperseded:
                continue
            except (Problem, Unreachable) as failure:
                await self.race.wait_again(failure)
                continue
            break
        assert self.pending is not None
        assert self.person.key is not None
        assert (answer.detached, answer.earlier_commits) == (0, ())
        self.race.note_won(self.person.key, self.person)
        self.pending = None
        self.person.enter(await self._ask("merge"))

    async def make(self) -> CommitAttempt:
        if self.pending is None:
            self.pending = await self._ask("commit", changes=self.changes)
        return CommitAttempt(self.race.group.commit_request(self.person, self.pending), self.person.counter)

    async def apply(self, counter: int, messages: tuple[Message, ...]) -> None:
        """Drop the pending commit, and process messages up to the first commit."""
        if self.pending is not None:
            self.race.lost += 1
            self.pending = None
            await self._ask("discard")
        assert counter == self.person.counter
        for message in messages:
            state = await self._ask("process", message=message.message.encoded)
            self.person.counter += 1
            if message.commit is not None:
                self.person.enter(state)
                assert self.person.key is not None
                assert message.commit.next_partition_key in self.person.key.masks()
                return

    async def _ask(self, op: str, **fields: object) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            return self.person.mls.ask(op, group_id=self.race.group.group_id, **fields)

        return await trio.to_thread.run_sync(ask)
