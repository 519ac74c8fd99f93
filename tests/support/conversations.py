"""Playing a recorded conversation through real providers, and checking what they deliver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import pytest

from mimids.client import Device, Problem, Unreachable
from mimids.mls.welcome import Welcome
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import SendRequest
from tests.support.recordings import expected, fits
from tests.support.stage import HUB, SUITE, Stage, eventually
from tests.support.welcomes import part_for

T = TypeVar("T")

Sequenced = dict[PartitionKey, list[bytes]]
# Readers of each recording. Carol is banned in a branch of the recorded policy, so she reads less (test_policy.py).
READERS: dict[str, tuple[str, ...]] = {name: ("alice", "bob", "carol") for name in ("public", "private")}
READERS |= {name: ("alice", "bob") for name in ("policy", "policy-private", "rules", "rooms")}
READERS |= {name: ("alice", "bob", "carol") for name in ("held-welcome-public", "held-welcome-private")}
READERS |= {name: ("alice", "bob", "dave") for name in ("mls-rs-f003", "mls-rs-f003-no-trees")}
LOCAL_ONLY = "reject_policy_local_only"


async def upload_and_fetch(stage: Stage) -> None:
    """Upload all KeyPackages, and fetch each from Alice's device through her provider's relay."""
    people = stage.recording.key_packages
    for name, recorded in people.items():
        uploaded = await stage.devices[name].upload([recorded.octets])
        assert (uploaded.accepted, uploaded.refused) == (1, ()), name
    users = {(recorded.provider, recorded.user) for recorded in people.values()}
    cards = {(provider, user): stage.federation[provider].contact(user) for provider, user in users}
    fetched = [
        await stage.alice.fetch_key_package(cards[recorded.provider, recorded.user], SUITE)
        for recorded in people.values()
    ]
    assert sorted(fetched) == sorted(recorded.octets for recorded in people.values())


async def play(stage: Stage) -> Sequenced:
    """Send all messages; return those that were sequenced, by partition."""
    sequenced: Sequenced = {}
    await stage.create()
    for recorded in stage.recording.messages():
        line = recorded.line
        if line.get("expect") == LOCAL_ONLY:
            ancestors = {key: sequenced.get(key, []) for key in ancestry(stage, recorded.key)}
            await catch_up(stage, stage.home(stage.sender(recorded)), ancestors, whole=True)
            with pytest.raises(Problem) as refused:
                await stage.offer(recorded)
            assert refused.value.code == "policy", recorded.name
        elif expected(line) == "refuse":
            with pytest.raises(Problem) as refused:
                await stage.offer(recorded)
            assert line["expect"] != "reject" or fits(line, cast("Any", refused.value)), (recorded.name, refused.value)
            assert (line["expect"] == "reject_policy") == (refused.value.code == "policy"), recorded.name
        else:
            answer = await stage.offer(recorded)
            # This includes Dave's external join, which goes to the branch it was made for, though others are newer.
            assert answer.partition == recorded.key.mask(32), recorded.name
            assert answer.detached == 0, recorded.name
            messages = sequenced.setdefault(recorded.key, [])
            assert answer.counter == len(messages), recorded.name
            messages.append(recorded.request.message.encoded)
    return sequenced


def ancestry(stage: Stage, key: PartitionKey) -> list[PartitionKey]:
    """Return a partition and its ancestors, without the first one, of which only the group's creator was a member."""
    parents = {each.next_key: each.key for each in stage.recording.messages() if each.next_key is not None}
    found = [key]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found[:-1]


async def catch_up(stage: Stage, provider: str, sequenced: Sequenced, *, whole: bool = False) -> None:
    """Wait until a follower has all messages of the partitions it has any of; with `whole`, of all partitions."""
    at = stage.federation[provider]

    async def all_there() -> bool:
        return all(at.stored(key) in ([messages] if whole else [[], messages]) for key, messages in sequenced.items())

    await eventually(all_there)


def welcomes(stage: Stage, sequenced: Sequenced) -> dict[str, set[bytes]]:
    """Return the Welcomes that each person gets: those of first commits of partitions, and of branches in use."""
    owners = {recorded.ref: name for name, recorded in stage.recording.key_packages.items()}
    wanted: dict[str, set[bytes]] = {}
    have_a_commit: set[PartitionKey] = set()
    for recorded in stage.recording.messages():
        following = recorded.next_key
        if following is None or recorded.request.message.encoded not in sequenced.get(recorded.key, []):
            continue
        is_first = recorded.key not in have_a_commit
        have_a_commit.add(recorded.key)
        data = recorded.request.commit_data if isinstance(recorded.request, SendRequest) else None
        if data is not None and data.welcome_data is not None and (is_first or sequenced.get(following)):
            welcome = data.welcome_data.welcome.message
            assert isinstance(welcome, Welcome)
            for ref, provider in zip(welcome.key_package_refs, data.welcome_data.service_providers, strict=True):
                wanted.setdefault(owners[ref], set()).add(part_for(provider, data.welcome_data))
    return wanted


async def retried(ask: Callable[[], Awaitable[T]]) -> T:
    """Call `ask`, and again if the provider was restarted since, so that the kept connection has broken."""
    try:
        return await ask()
    except Unreachable:
        return await ask()


async def check_branches(stage: Stage, sequenced: Sequenced) -> None:
    """Check that every reader gets the messages of every branch by its key, and none by another key."""
    for key in sequenced:
        for person in READERS[stage.recording.name]:

            async def all_read(device: Device = stage.devices[person], key: PartitionKey = key) -> bool:
                got = [message.message.encoded for message in await retried(lambda: device.receive(HUB, key))]
                assert got == sequenced[key][: len(got)]
                return len(got) == len(sequenced[key])

            await eventually(all_read)  # a follower may be behind, but never wrong
    with pytest.raises(Problem, match="unknown-partition"):
        await stage.devices["bob"].receive(HUB, PartitionKey(bytes(16)))


async def check_welcomes(stage: Stage, sequenced: Sequenced) -> None:
    """Check that every Welcome stays in its inboxes until it is acknowledged."""
    wanted = welcomes(stage, sequenced)
    assert wanted
    by_device: dict[int, set[bytes]] = {}
    for person, messages in wanted.items():
        by_device.setdefault(id(stage.devices[person]), set()).update(messages)
    for device in {id(each): each for each in stage.devices.values()}.values():

        async def all_there(device: Any = device) -> bool:
            found = {each.welcome.encoded for each in await retried(device.welcomes)}
            return bool(found == by_device.get(id(device), set()))

        await eventually(all_there)
        inbox = await device.welcomes()
        assert await device.welcomes() == inbox  # reading removes nothing
        for welcome in inbox:
            await device.acknowledge(welcome.welcome_id)
        assert await device.welcomes() == ()
