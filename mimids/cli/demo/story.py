"""The demonstration: replays the recorded conversation through three providers, and checks each result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from mimids.cli.demo.checks import Ledger, Part
from mimids.cli.demo.linear_story import LinearStory
from mimids.cli.demo.providers import START_SECONDS, Account, DemoProvider
from mimids.cli.demo.recording import HOMES, HUB, MASK_OCTETS, PROVIDERS, Recording, Step
from mimids.client import Device, Problem, Unreachable, open_device
from mimids.ohttp.keys_signature import KeysRefused
from mimids.store import overview
from mimids.store.engine.access import read_here
from mimids.wire.declare import encode
from mimids.wire.ids import MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    RATCHET_TREE,
    CommitHint,
    ExternalJoinRequest,
    ExternalProposalRequest,
    Message,
    SendRequest,
    SendResponse,
)

T = TypeVar("T")

ARRIVE_SECONDS: Final = 15  # for what providers send by themselves: Welcomes, pushes
_POLL_SECONDS: Final = 0.05
# Who fetches whose KeyPackage. Frank fetches his own, because he proposes that he is added. A last resort is never
# used up.
_FETCHES: Final = (
    ("alice", "bob"),
    ("alice", "carol"),
    ("carol", "erin"),
    ("frank", "frank"),
    *[("alice", "alice-last-resort")] * 2,
)
_CHAPTERS: Final = (
    ("talk, update, propose", ("main",)),
    ("two branches of the fork", ("A", "B")),
    ("third branch, joins", ("C",)),
)
_INVALID: Final = frozenset({"invalid-message", "wrong-epoch", "unknown-group"})


@attrs.frozen
class Unseen:
    """What a provider could not see, and how that was checked."""

    provider: ProviderId
    what: str
    how: str


class DemoStory:
    """Replays the recording; `ledger` has the checks, `unseen` what each provider did not learn."""

    def __init__(self, providers: Mapping[ProviderId, DemoProvider], trust: Path) -> None:
        self.recording = Recording()
        self.ledger = Ledger()
        self.unseen: list[Unseen] = []
        self._providers = providers
        self._trust = trust
        self._accounts: dict[str, Account] = {
            user: account for provider in providers.values() for user, account in provider.accounts.items()
        }
        self._devices: dict[str, Device] = {}
        self._sequenced: dict[PartitionKey, list[Step]] = {}  # the messages that each partition should have, in order
        self._answers: list[tuple[Step, SendResponse]] = []

    async def play(self, alive: Callable[[], None]) -> None:
        """Replay everything, from the upload to the last check; `alive` raises if a provider's process has ended."""
        async with AsyncExitStack() as open_:
            for user, account in self._accounts.items():
                url = self._providers[HOMES[user]].url
                device = open_device(url, account.token, trust=self._trust)
                self._devices[user] = await open_.enter_async_context(device)
            await self._wait_for_providers(alive)
            await self._upload()
            await self._fetch()
            self._search_before_the_group_exists()
            await self._create_group()
            for title, branches in _CHAPTERS:
                await self._converse(title, [step for step in self.recording.steps[1:] if step.branch in branches])
            await self._receive_welcomes(["erin", "frank"])
            await self._send_invalid_messages()
            await self._repeat()
            await self._receive()
            await self._compare_copies()
            self._search_at_the_end()
            await LinearStory(self.recording, self.ledger, self._devices, self._providers).play()

    # --- before there is a group --------------------------------------------------------------------------------

    async def _wait_for_providers(self, alive: Callable[[], None]) -> None:
        with self.ledger.part("start") as part, trio.fail_after(START_SECONDS):
            for user, device in self._devices.items():
                me = None
                while me is None:
                    alive()
                    try:
                        me = await device.me()
                    except Unreachable:
                        await trio.sleep(_POLL_SECONDS)
                part.check(me["user_id"] == self._accounts[user].contact.user_id.decode(), f"the token is {user}'s")
            part.done = f"{len(PROVIDERS)} providers answer {len(self._devices)} devices over TLS"

    async def _upload(self) -> None:
        with self.ledger.part("KeyPackages") as part:
            count = 0
            for user, package in self.recording.key_packages.items():
                uploaded = await self._devices[user].upload([package])
                part.check(uploaded.accepted == 1, f"the KeyPackage of {user} is accepted: {uploaded.refused}")
                count += uploaded.accepted
            part.done = f"{count} uploaded, each checked by its owner's provider"

    async def _fetch(self) -> None:
        """Fetch the KeyPackages of all who will get a Welcome."""
        with self.ledger.part("fetch over OHTTP") as part:
            for asker, user in _FETCHES:
                contact = self._accounts[user].contact
                fetched = await self._devices[asker].fetch_key_package(contact, self.recording.cipher_suite)
                part.check(
                    fetched == self.recording.key_packages[user],
                    f"{asker} gets the KeyPackage of {user}, byte for byte",
                )
            alice, bob, carol = (self._accounts[user].contact for user in ("alice", "bob", "carol"))
            wrong = attrs.evolve(bob, bearer_token=carol.bearer_token)
            forged = attrs.evolve(bob, ohttp_identity=alice.ohttp_identity)  # as if a.example signed b.example's keys
            for contact, code, what in (
                (bob, "key-packages-exhausted", "a second KeyPackage of bob, who uploaded one"),
                (wrong, "key-package-refused", "a KeyPackage of bob, with the token of another user"),
                (forged, "KeysWronglySigned", "a gateway key that b.example did not sign"),
            ):
                fetch = self._devices["alice"].fetch_key_package(contact, self.recording.cipher_suite)
                await _check_refused(part, fetch, frozenset({code}), what)
            part.done = f"{len(_FETCHES)} fetched through the askers' own providers, 3 refused as expected"

    def _search_before_the_group_exists(self) -> None:
        """Search all files for what OHTTP has to hide, before other requests name the same users."""
        with self.ledger.part("who asked for whom") as part:
            octets = 0
            for provider, others in ((HUB, ("bob", "carol")), (PROVIDERS[1], ("alice",)), (PROVIDERS[2], ("alice",))):
                found, size = self._search(provider, [needle for user in others for needle in self._names(user)])
                part.check(not found, f"no file of {provider} names {' or '.join(others)} ({', '.join(found)})")
                own = next(iter(self._providers[provider].accounts))
                part.check(bool(self._search(provider, self._names(own))[0]), f"the search finds {own} at {provider}")
                octets += size
                names = " and ".join(user.capitalize() for user in others)
                what = (
                    f"that the KeyPackages fetched were those of {names}" if provider == HUB else f"that {names} asked"
                )
                self.unseen.append(
                    Unseen(provider, what, f"searched {_kib(size)} of files and log, before the group existed")
                )
            part.done = f"no trace in the {_kib(octets)} that the three providers wrote"

    def _names(self, user: str) -> list[bytes]:
        """Return what identifies a user: the name, the tokens, the KeyPackage."""
        account = self._accounts[user]
        token = account.contact.bearer_token
        return [
            f"{HOMES[user]}/u/{user}".encode(),
            account.token.encode(),
            token.reveal(),
            token.digest(),
            self.recording.key_packages[user],
        ]

    def _search(self, provider: ProviderId, needles: Iterable[bytes]) -> tuple[list[str], int]:
        """Return the names of a provider's files that contain any needle, and the octets that were searched."""
        wanted = tuple(needles)
        found, size = [], 0
        for path, octets in self._providers[provider].files():
            size += len(octets)
            if any(needle in octets for needle in wanted):
                found.append(path.name)
        return found, size

    # --- the conversation ---------------------------------------------------------------------------------------

    async def _create_group(self) -> None:
        with self.ledger.part("group") as part:
            creation = self.recording.creation
            await self._devices["alice"].create_group(creation)
            await self._play(part, self.recording.steps[0])
            part.done = "created at a.example; one commit and one Welcome add Bob and Carol"
        await self._receive_welcomes(["bob", "carol"])

    async def _converse(self, title: str, steps: list[Step]) -> None:
        with self.ledger.part(title) as part:
            for step in steps:
                await self._play(part, step)
            senders = {step.by for step in steps}
            commits = sum(step.commit_data is not None for step in steps)
            part.done = f"{len(steps)} messages by {len(senders)} devices, {commits} of these are commits"

    async def _play(self, part: Part, step: Step) -> None:
        answer = await self._send(step)
        before = self._sequenced.setdefault(step.key, [])
        part.check(answer.partition == step.key.mask(MASK_OCTETS), f"{step.name} is sequenced in its own branch")
        part.check(answer.counter == len(before), f"{step.name} gets the counter {len(before)}, not {answer.counter}")
        part.check(answer.detached == 0, f"the partition of {step.name} is not detached")
        before.append(step)
        self._answers.append((step, answer))

    async def _send(self, step: Step) -> SendResponse:
        device = self._devices[step.by]
        if isinstance(step.request, ExternalJoinRequest):
            return await device.join(HUB, step.request)
        if isinstance(step.request, ExternalProposalRequest):
            return await device.propose(HUB, step.request)
        return await device.send(HUB, step.request)

    async def _receive_welcomes(self, users: list[str]) -> None:
        with self.ledger.part(f"Welcomes to {' and '.join(users)}") as part, trio.fail_after(ARRIVE_SECONDS):
            for user in users:
                device = self._devices[user]
                waiting = await _until(device.welcomes)
                expected = [self.recording.welcomes[user]]
                part.check(
                    [each.welcome for each in waiting] == expected,
                    f"{user} gets one Welcome, with the secrets for {user}'s provider only",
                )
                for each in waiting:
                    await device.acknowledge(each.welcome_id)
                part.check(await device.welcomes() == (), f"{user}'s inbox is empty after the acknowledgement")
            part.done = f"{len(users)} received and acknowledged"

    async def _send_invalid_messages(self) -> None:
        with self.ledger.part("invalid messages") as part:
            count = 0
            for why, request in self.recording.invalid():
                bob = self._devices["bob"]
                sending = bob.send(HUB, request) if isinstance(request, SendRequest) else bob.join(HUB, request)
                await _check_refused(part, sending, _INVALID, why)
                count += 1
            part.done = f"{count} refused, each for a fault that can be seen without a secret"

    async def _repeat(self) -> None:
        with self.ledger.part("repeats") as part:
            for step, answer in self._answers:
                part.check(await self._send(step) == answer, f"{step.name} sent again gets its first answer")
            part.done = f"all {len(self._answers)} messages sent again, and none is sequenced twice"

    # --- the end ------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Receive with every device from every partition whose key it has, and compare with what was sent."""
        with self.ledger.part("receive") as part:
            count = octets = 0
            for user, device in self._devices.items():
                for key, members in self.recording.members.items():
                    if user not in members:
                        continue
                    expected = [_as_received(step) for step in self._sequenced.get(key, [])]
                    received = [message async for message in device.receive_all(HUB, key)]
                    part.check(
                        list(map(encode, received)) == list(map(encode, expected)),
                        f"{user} has exactly the {len(expected)} messages of {key.mask(MASK_OCTETS).hex()[:8]}",
                    )
                    count += len(received)
                    octets += sum(len(message.message.encoded) for message in received)
            key, tree = self.recording.inferred_tree
            info = await self._devices["dave"].group_info(HUB, self.recording.group_id, partition=key.mask(MASK_OCTETS))
            inferred = info.info.ratchet_tree == RATCHET_TREE.decode(tree)
            part.check(inferred, "for a GroupInfo without a tree, the hub infers the members' tree")
            guessed = self._devices["dave"].receive(HUB, PartitionKey(bytes(range(16))))
            await _check_refused(part, guessed, frozenset({"unknown-partition"}), "a guessed key")
            part.done = (
                f"{count} messages, {_kib(octets)}, received by {len(self._devices)} devices, in order, none twice"
            )

    async def _compare_copies(self) -> None:
        """Wait until each follower has a copy of the partitions in which its users are members, and of no others."""
        with self.ledger.part("followers") as part:
            at_hub = self._lengths(HUB)
            count = 0
            for provider in PROVIDERS[1:]:
                members = self.recording.members.items()
                masks = {key.mask(MASK_OCTETS) for key, users in members if provider in map(HOMES.get, users)}
                wanted = {mask: length for mask, length in at_hub.items() if mask in masks}

                async def complete(
                    provider: ProviderId = provider, wanted: dict[MaskedPartitionKey, int] = wanted
                ) -> bool:
                    return self._lengths(provider) == wanted

                with trio.move_on_after(ARRIVE_SECONDS):
                    await _until(complete)
                part.check(await complete(), f"{provider} has a copy of its {len(wanted)} partitions and of no others")
                count += sum(self._lengths(provider).values())
            part.done = f"{count} messages pushed to b.example and c.example, which keep them if a.example is down"

    def _lengths(self, provider: ProviderId) -> dict[MaskedPartitionKey, int]:
        """Return the number of messages that a provider has for each partition."""
        with read_here(self._providers[provider].config.place) as tx:
            return {
                partition.masked_key: partition.messages
                for group in overview.group_summaries(tx)
                for partition in overview.partition_summaries(tx, group.row)
                if partition.messages
            }

    def _search_at_the_end(self) -> None:
        with self.ledger.part("secrets at rest") as part:
            texts = [text.encode() for text in self.recording.plaintexts]
            keys = [key.reveal() for key in self.recording.members]
            tokens = [a.contact.bearer_token.reveal() for a in self._accounts.values()]
            tokens += [a.token.encode() for a in self._accounts.values()]
            octets = 0
            for provider in PROVIDERS:
                found, size = self._search(provider, [*keys, *tokens, *texts])
                part.check(not found, f"no file of {provider} contains a key, token or text ({', '.join(found)})")
                octets += size
                how = f"searched {_kib(size)} for {len(keys)} keys, {len(tokens)} tokens, {len(texts)} texts"
                what = "any text, partition key or token (it stores hashes)"
                self.unseen.append(Unseen(provider, what, how))
            with read_here(self._providers[HUB].config.place) as tx:
                others, named = overview.commits_of_others(tx, HUB)
            part.check(others > 0 and not named, "the hub does not know which devices of other providers sent a commit")
            how = f"messages have no sender; looked at the {others} commits from other providers"
            self.unseen.append(Unseen(HUB, "which devices of other providers sent an encrypted message", how))
            part.done = f"{len(keys)} partition keys, {len(tokens)} tokens, {len(texts)} texts: none in {_kib(octets)}"


async def _check_refused(part: Part, call: Awaitable[object], codes: frozenset[str], what: str) -> None:
    """Check that a call is refused with one of these codes; the code of `KeysRefused` is its class name."""
    try:
        await call
    except (Problem, KeysRefused) as refusal:
        code = refusal.code if isinstance(refusal, Problem) else type(refusal).__name__
        part.check(code in codes, f"{what} is refused with {' or '.join(sorted(codes))}, not with {code}")
    else:
        part.check(False, f"{what} is refused")


async def _until(look: Callable[[], Awaitable[T]]) -> T:
    """Call `look` until it returns something."""
    while True:
        found = await look()
        if found:
            return found
        await trio.sleep(_POLL_SECONDS)


def _as_received(step: Step) -> Message:
    data = step.commit_data
    if data is None:
        return Message(step.request.message, None)
    return Message(step.request.message, CommitHint(data.next_partition_key.mask(MASK_OCTETS), data.group_info))


def _kib(octets: int) -> str:
    return f"{octets / 1024:,.0f} KiB"
