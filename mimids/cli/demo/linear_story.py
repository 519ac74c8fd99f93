"""The second story of the demonstration: replay the recorded group again, as a linear group at another hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import trio

from mimids.cli import running
from mimids.cli.demo.checks import Ledger, Part
from mimids.cli.demo.providers import DemoProvider
from mimids.cli.demo.recording import HOMES, MASK_OCTETS, Recording, Step
from mimids.client import CommitSuperseded, Device, Problem
from mimids.ds.commands import command_named
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId
from mimids.wire.messages import CommitData, SendRequest, SendResponse

_HUB: Final = HOMES["bob"]
_ELSEWHERE: Final = "alice"  # a user of another provider than the hub
_RACE: Final = ("fork_A_alice", "fork_B_bob", "fork_C_carol")  # three commits of one epoch, by three providers' users


class LinearStory:
    """Replays the recording at Bob's provider, up to the fork in it.

    Of the three commits of the fork, the first wins.
    """

    def __init__(
        self,
        recording: Recording,
        ledger: Ledger,
        devices: Mapping[str, Device],
        providers: Mapping[ProviderId, DemoProvider],
    ) -> None:
        self._recording = recording
        self._ledger = ledger
        self._devices = devices
        self._hub = providers[_HUB]
        self._steps = {step.name: step for step in recording.steps}

    async def play(self) -> None:
        """Play the story."""
        first, second, third = (self._steps[name] for name in _RACE)
        await self._begin()
        with self._ledger.part("linear group: commits at the same time") as part:
            await self._accepted(part, first)
            for loser in (second, third):
                await self._superseded(part, loser, first)
            await self._refused(part, self._steps["on_branch_B_one"], "unknown-partition")
            await self._go_on(part, "A", after=first)
            part.done = "three commits in one epoch: the first wins; both refusals name its counter and the next key"
        with self._ledger.part("linear group: an unusable commit") as part:
            await self._terminate(part, first)
            await self._accepted(part, second)
            await self._superseded(part, third, second)
            await self._go_on(part, "B", after=second)
            part.done = "the operator terminates its branch; the next commit is accepted, and the members continue"

    async def _begin(self) -> None:
        with self._ledger.part("linear group") as part:
            await self._devices["bob"].create_group(self._recording.creation, linear=True)
            main = [step for step in self._recording.steps if step.branch == "main"]
            for step in main:
                await self._accepted(part, step)
            part.done = f"the same group at {_HUB}, with one commit in each epoch; {len(main)} messages"

    async def _send(self, step: Step) -> SendResponse:
        """Send a message of the recording without its Welcome, whose KeyPackages were used in the first story."""
        data = step.commit_data
        request = SendRequest(
            step.request.message,
            step.key,
            None if data is None else CommitData(data.next_partition_key, data.group_info, None),
        )
        return await self._devices[step.by].send(_HUB, request)

    async def _go_on(self, part: Part, branch: str, *, after: Step) -> None:
        """Send the other messages of a branch, and check that each arrives at another provider."""
        for step in self._recording.steps:
            if step.branch == branch and step is not after:
                answer = await self._accepted(part, step)
                (found, *_) = await self._devices[_ELSEWHERE].receive(_HUB, step.key, answer.counter)
                part.check(found.message == step.request.message, f"{step.name} arrives at {_ELSEWHERE}'s provider")

    async def _accepted(self, part: Part, step: Step) -> SendResponse:
        answer = await self._send(step)
        part.check(answer.partition == step.key.mask(MASK_OCTETS), f"{step.name} is sequenced in its epoch")
        part.check(answer.detached == 0, f"the partition of {step.name} is not detached")
        return answer

    async def _superseded(self, part: Part, loser: Step, winner: Step) -> None:
        """Check that a commit is refused, and that its sender can receive the commit that came first."""
        try:
            await self._send(loser)
        except CommitSuperseded as refused:
            counter, key = refused.counter, refused.next_masked_key
        else:
            part.check(False, f"{loser.name} is refused")
            return
        (found, *_) = await self._devices[loser.by].receive(_HUB, loser.key, counter)
        part.check(found.message == winner.request.message, f"{loser.by} is told the counter of {winner.name}")
        hint = found.commit
        part.check(hint is not None and hint.next_partition_key == key, f"{loser.by} is told where {winner.name} leads")

    async def _refused(self, part: Part, step: Step, code: str) -> None:
        try:
            await self._send(step)
        except Problem as problem:
            part.check(problem.code == code, f"{step.name} is refused with {code}, not with {problem.code}")
        else:
            part.check(False, f"{step.name} is refused")

    async def _terminate(self, part: Part, commit: Step) -> None:
        data = commit.commit_data
        key = "" if data is None else data.next_partition_key.mask(MASK_OCTETS).hex()
        given = {"group": base64url(self._recording.group_id), "partition": key, "hub": _HUB, "why": "junk"}
        answer = await trio.to_thread.run_sync(running.run, self._hub.config, command_named("group terminate"), given)
        part.check(answer["partitions"] == 2, f"the partitions after {commit.name} are terminated")
