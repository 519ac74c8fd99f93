"""Every recorded conversation between real processes over TLS: each message goes through its sender's provider."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import httpx
import pytest

from mimids.client import Device, Problem, Unreachable
from mimids.mls.welcome import Welcome
from mimids.testing import Session
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import SendRequest
from tests.support.recordings import expected, fits
from tests.support.stage import HUB, NAMES, SUITE, Stage, eventually, staged

pytestmark = pytest.mark.slow

T = TypeVar("T")

Sequenced = dict[PartitionKey, list[bytes]]
# One at the hub, and who follows; Carol is banned in a branch of the recorded policy, and gets less (test_policy.py).
READERS: dict[str, tuple[str, ...]] = {name: ("alice", "bob", "carol") for name in ("public", "private")}
READERS |= {name: ("alice", "bob") for name in ("policy", "policy-private", "rules", "rooms")}
LOCAL_ONLY = "reject_policy_local_only"


async def upload_and_fetch(stage: Stage) -> None:
    """Upload all KeyPackages; Alice fetches each of them through the relay of her provider."""
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
            line_of_descent = {key: sequenced.get(key, []) for key in descent(stage, recorded.key)}
            await catch_up(stage, stage.home(stage.sender(recorded)), line_of_descent, whole=True)
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
            # Dave's join is among them: it goes to the branch it was made for, although others are newer.
            assert answer.partition == recorded.key.mask(32), recorded.name
            assert answer.detached == 0, recorded.name
            messages = sequenced.setdefault(recorded.key, [])
            assert answer.counter == len(messages), recorded.name
            messages.append(recorded.request.message.encoded)
    return sequenced


def descent(stage: Stage, key: PartitionKey) -> list[PartitionKey]:
    """Return a partition and those above it, without the first, in which the creator was alone."""
    parents = {each.next_key: each.key for each in stage.recording.messages() if each.next_key is not None}
    found = [key]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found[:-1]


async def catch_up(stage: Stage, provider: str, sequenced: Sequenced, *, whole: bool = False) -> None:
    """Wait until a follower has all messages of the partitions that it has; with `whole`, of all partitions."""
    at = stage.federation[provider]

    async def all_there() -> bool:
        return all(at.stored(key) in ([messages] if whole else [[], messages]) for key, messages in sequenced.items())

    await eventually(all_there)


def welcomes(stage: Stage, sequenced: Sequenced) -> dict[str, set[bytes]]:
    """Return the Welcomes that each person gets: of the first commit of a partition, or of one whose branch is used."""
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
            welcome = data.welcome_data.welcome
            assert isinstance(welcome.message, Welcome)
            for ref in welcome.message.key_package_refs:
                wanted.setdefault(owners[ref], set()).add(welcome.encoded)
    return wanted


@pytest.mark.parametrize("name", ["public", "private", "policy", "policy-private", "rules", "rooms"])
async def test_a_conversation_between_providers_puts_each_message_into_its_branch(
    name: str, mimids_session: Session
) -> None:
    async with staged(name, mimids_session) as stage:
        await upload_and_fetch(stage)
        sequenced = await play(stage)
        await every_branch_is_read_by_its_key_alone(stage, sequenced)
        await every_welcome_stays_until_it_is_acknowledged(stage, sequenced)
        for provider in NAMES[1:]:
            await catch_up(stage, provider, sequenced)


async def asked_again(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the answer; try again if the connection is lost because the provider was restarted."""
    try:
        return await ask()
    except Unreachable:
        return await ask()


async def every_branch_is_read_by_its_key_alone(stage: Stage, sequenced: Sequenced) -> None:
    for key in sequenced:
        for person in READERS[stage.recording.name]:

            async def all_read(device: Device = stage.devices[person], key: PartitionKey = key) -> bool:
                got = [message.message.encoded for message in await asked_again(lambda: device.receive(HUB, key))]
                assert got == sequenced[key][: len(got)]
                return len(got) == len(sequenced[key])

            await eventually(all_read)  # a follower may be late, but must have the same messages
    with pytest.raises(Problem, match="unknown-partition"):
        await stage.devices["bob"].receive(HUB, PartitionKey(bytes(16)))


async def every_welcome_stays_until_it_is_acknowledged(stage: Stage, sequenced: Sequenced) -> None:
    wanted = welcomes(stage, sequenced)
    assert wanted
    by_device: dict[int, set[bytes]] = {}
    for person, messages in wanted.items():
        by_device.setdefault(id(stage.devices[person]), set()).update(messages)
    for device in {id(each): each for each in stage.devices.values()}.values():

        async def all_there(device: Any = device) -> bool:
            found = {each.welcome.encoded for each in await asked_again(device.welcomes)}
            return bool(found == by_device.get(id(device), set()))

        await eventually(all_there)
        inbox = await device.welcomes()
        assert await device.welcomes() == inbox  # reading removes nothing
        for welcome in inbox:
            await device.acknowledge(welcome.welcome_id)
        assert await device.welcomes() == ()


@pytest.mark.parametrize("name", ["public", "private"])
async def test_unreadable_messages_are_refused_as_malformed(name: str, mimids_session: Session) -> None:
    async with staged(name, mimids_session) as stage:
        await stage.alice.create_group(stage.recording.creation())
        sender = stage.federation[HUB].add_device("alice", "another")
        trust = ssl.create_default_context(cafile=sender.ca_file)
        async with httpx.AsyncClient(verify=trust, base_url=sender.url) as http:
            for line in stage.recording.malformed():
                key = bytes.fromhex(line["partition_key"])
                answer = await http.post(
                    f"/client/v1/hubs/{HUB}/send",
                    content=bytes.fromhex(line["bytes"]) + key + bytes(16) + b"\0\0",
                    headers={"Authorization": f"Bearer {sender.token}", "Content-Type": "application/mimi-ds"},
                )
                assert answer.status_code == 400, line["name"]
                assert answer.json()["type"] == "urn:mimids:problem:malformed", line["name"]
        assert stage.federation[HUB].read("SELECT count(*) FROM messages") == [(0,)]
