"""A hub that pushes more than anyone asked for, and pushes under other hubs' keys and groups."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from mimids.ds.following import followed_groups
from mimids.ds.following.intake import EMPTY_PARTITIONS
from mimids.ds.following.slices import COST_OF_A_PART
from mimids.ds.ports import PeerAnswer
from mimids.errors import Malformed, MimiError, RateLimited, UnknownPartition
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.store import providers, requested_partitions
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import (
    LAST_COUNTER,
    MLS10,
    NO_LONGER_FOLLOWED,
    BearerToken,
    CipherSuite,
    Counter,
    GroupId,
    KeyPackageRef,
    PartitionKey,
    ProtocolVersion,
    ProviderId,
    UserId,
)
from mimids.wire.messages import (
    MOST_BUNDLED,
    MOST_EPOCHS,
    MOST_JOINERS,
    SEND_REQUESTS,
    Epoch,
    GroupInfoResponse,
    KeyPackageBundleRequest,
    KeyPackageRequest,
    PushedEpoch,
    PushRequest,
    ReceiveRequest,
    ReceiveResponse,
    SendResponse,
    WelcomeInitRequest,
    encode_send_results,
)
from tests.support.doubles import Called, bound_hits
from tests.support.federation import Room, device
from tests.support.followers import HUB, epoch, follower
from tests.support.patience import patience
from tests.support.provider import Assembled
from tests.support.signing import Client
from tests.support.signing import Room as SignedRoom
from tests.support.stored import rows
from tests.support.welcomes import REF, hand_out, welcome_to

OTHER_HUB = ProviderId("c.example")
COUNTS = "SELECT (SELECT count(*) FROM groups), (SELECT count(*) FROM partitions), (SELECT count(*) FROM messages)"


async def push(running: Assembled, *epochs: PushedEpoch, hub: ProviderId = HUB) -> tuple[Counter, ...]:
    return (await running.services.epoch_receiver.receive_push(hub, PushRequest(epochs))).next_counters


def request(key: PartitionKey, tx: Tx) -> None:
    """Note that the first device requested a partition."""
    requested_partitions.add(tx, providers.ensure_provider(tx, HUB), key.masks(), DeviceRow(1), linear=False)


def empty(room: Room, number: int, counter: int = 0) -> PushedEpoch:
    return epoch(room, PartitionKey(number.to_bytes(16, "big")), [], counter)


# --- rows and octets ----------------------------------------------------------------------------------------------


async def test_epochs_that_say_nothing_add_no_row(tmp_path: Path) -> None:
    room, unknown = Room(hub=HUB), Room("unknown", HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        assert set(await push(running, *(empty(room, n) for n in range(MOST_EPOCHS)))) == {0}
        assert set(await push(running, *(empty(unknown, n) for n in range(MOST_EPOCHS)))) == {NO_LONGER_FOLLOWED}
        gap = epoch(room, Room.new_key(), ["5"], 5)
        assert await push(running, gap) == (0,), "a message that nothing leads to is not stored"
        assert await rows(running, COUNTS) == [(1, 0, 0)]


async def test_a_hub_opens_a_bounded_number_of_partitions_without_messages(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        for start in range(3):
            await push(running, *(empty(room, start * MOST_EPOCHS + n, 1) for n in range(MOST_EPOCHS)))
        assert await rows(running, COUNTS) == [(1, EMPTY_PARTITIONS, 0)]
        too_many = 3 * MOST_EPOCHS - EMPTY_PARTITIONS
        assert bound_hits(running.services.telemetry, "empty-partitions") == too_many
        assert await push(running, epoch(room, room.key, ["0"])) == (1,), "messages still open theirs"


async def test_another_write_gets_its_turn_between_the_parts_of_a_push(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        long = epoch(room, room.key, [str(n) for n in range(3 * COST_OF_A_PART)])
        before: list[int] = []

        async def write_beside() -> None:
            while not before or before[-1] < len(long.epoch.messages):
                count = await running.services.store.write(lambda tx: tx.one("SELECT count(*) FROM messages"))
                assert count is not None
                before.append(count[0])

        async with trio.open_nursery() as tasks:
            tasks.start_soon(write_beside)
            assert await push(running, long) == (len(long.epoch.messages),)
        assert len(set(before)) >= 3, "the write saw parts of the push"


async def test_pushes_spend_the_hubs_budget_of_octets_and_nobody_elses(tmp_path: Path) -> None:
    room, limits = Room(hub=HUB), {"provider_bytes_per_day": 1, "provider_bytes_burst": 33_554_432}
    async with follower(tmp_path, room.group_id, limits=limits) as (running, receiver):
        await running.services.following.note_sent(device(running), OTHER_HUB, room.group_id, [])
        text = "x" * 4_000_000
        for sent in range(8):
            await push(running, epoch(room, room.key, [f"{sent}{text}"], sent))
        with pytest.raises(RateLimited):
            await push(running, epoch(room, room.key, [f"8{text}"], 8))
        assert receiver.statistics().refused_pushes == 1
        assert bound_hits(running.services.telemetry, "pushed-octets") == 1
        assert await rows(running, COUNTS) == [(2, 1, 8)]
        assert await push(running, epoch(room, room.key, ["0"]), hub=OTHER_HUB) == (1,)


@pytest.mark.parametrize(
    "request_",
    [
        PushRequest((PushedEpoch(GroupId(b"g"), Room.new_key().mask(32), Counter(0), None, Epoch(())),) * 1025),
        PushRequest((PushedEpoch(GroupId(bytes(257)), Room.new_key().mask(32), Counter(0), None, Epoch(())),)),
        WelcomeInitRequest((KeyPackageRef(bytes(32)),) * (MOST_JOINERS + 1)),
        welcome_to(*(KeyPackageRef(b""),) * (MOST_JOINERS + 1)),
        KeyPackageBundleRequest(
            (KeyPackageRequest(UserId(b""), BearerToken(b""), ProtocolVersion(1), CipherSuite(1)),) * (MOST_BUNDLED + 1)
        ),
    ],
)
def test_too_many_items_and_too_long_group_ids_are_no_valid_encoding(request_: object) -> None:
    with pytest.raises(WireError):
        decode(type(request_), encode(request_))


async def test_a_group_without_an_id_is_not_created(tmp_path: Path) -> None:
    room = Room()
    room.group_id = GroupId(b"")
    async with follower(tmp_path, GroupId(b"g")) as (running, _):
        with pytest.raises(Malformed):
            await running.services.hub.create_group(room.creation(), device(running))


# --- keys and groups ----------------------------------------------------------------------------------------------


async def test_a_key_presented_to_one_hub_vouches_for_no_push_of_another(tmp_path: Path) -> None:
    room, limits = Room(hub=HUB), {"provider_unmatched_bytes": 2_000_000}
    async with follower(tmp_path, room.group_id, limits=limits) as (running, _):

        async def hub(called: Called) -> PeerAnswer:
            return PeerAnswer(encode(ReceiveResponse(Epoch(()), ())))

        running.peers.add(HUB, hub)
        keys = [Room.new_key() for _ in range(30)]
        for key in keys:
            await running.services.following.ask(device(running), HUB, ReceiveRequest(key, Counter(0)))
        foreign = [Room(f"{n}", OTHER_HUB) for n in range(30)]
        pushed = [epoch(each, key, ["x" * 100_000]) for each, key in zip(foreign, keys, strict=True)]
        assert set(await push(running, *pushed, hub=OTHER_HUB)) == {NO_LONGER_FOLLOWED}
        assert await rows(running, COUNTS) == [(1, 0, 0)]
        assert await push(running, epoch(Room("own", HUB), keys[0], ["0"])) == (1,), "its own hub may"


@pytest.mark.parametrize("refusal", [UnknownPartition(), Malformed("no")])
async def test_a_hub_that_refuses_a_key_cannot_push_under_it(refusal: MimiError, tmp_path: Path) -> None:
    room, new, during = Room(hub=HUB), Room("new", HUB), list[tuple[Counter, ...]]()
    async with follower(tmp_path, room.group_id) as (running, _):

        async def hub(called: Called) -> PeerAnswer:
            key = decode(ReceiveRequest, called.body).partition_key
            during.append(await push(running, epoch(new, key, ["0"])))  # it waits for the answer, for a while
            raise refusal

        running.peers.add(HUB, hub)
        key = Room.new_key()
        with pytest.raises(type(refusal)):
            await running.services.following.ask(device(running), HUB, ReceiveRequest(key, Counter(0)))
        assert during == [(NO_LONGER_FOLLOWED,)]
        assert await push(running, epoch(new, key, ["0"])) == (NO_LONGER_FOLLOWED,)
        assert await rows(running, COUNTS) == [(1, 0, 0)]


async def test_a_push_that_overtakes_the_answer_to_its_request_is_wanted(tmp_path: Path) -> None:
    room, new, answers = Room(hub=HUB), Room("new", HUB), trio.open_memory_channel[tuple[Counter, ...]](1)
    async with follower(tmp_path, room.group_id) as (running, _), trio.open_nursery() as tasks:
        key = Room.new_key()

        async def push_soon() -> None:
            await answers[0].send(await push(running, epoch(new, key, ["0"])))

        async def hub(called: Called) -> PeerAnswer:
            tasks.start_soon(push_soon)
            await trio.sleep(0.05)
            return PeerAnswer(encode(ReceiveResponse(Epoch(()), ())))

        running.peers.add(HUB, hub)
        await running.services.following.ask(device(running), HUB, ReceiveRequest(key, Counter(0)))
        with patience():
            assert await answers[1].receive() == (1,)


async def test_a_requested_key_begins_one_group_only(tmp_path: Path) -> None:
    room, key = Room(hub=HUB), Room.new_key()
    async with follower(tmp_path, room.group_id) as (running, _):
        await running.services.store.write(partial(request, key))
        names = [Room(f"{n}", HUB) for n in range(30)]
        answers = await push(running, *(epoch(each, key, []) for each in names))
        assert set(answers) == {0}, "an epoch that says nothing adds no group"
        answers = await push(running, *(epoch(each, key, ["0"]) for each in names))
        assert answers == (1, *[NO_LONGER_FOLLOWED] * 29)
        assert await rows(running, COUNTS) == [(2, 1, 1)]


async def test_a_requested_key_begins_no_group_of_which_nothing_is_stored(tmp_path: Path) -> None:
    room, key = Room(hub=HUB), Room.new_key()
    async with follower(tmp_path, room.group_id) as (running, _):
        await running.services.store.write(partial(request, key))
        names = [Room(f"{n}", HUB) for n in range(30)]
        assert set(await push(running, *(epoch(each, key, ["5"], 5) for each in names))) == {0}
        assert set(await push(running, *(epoch(each, key, ["x"], LAST_COUNTER) for each in names))) == {
            NO_LONGER_FOLLOWED
        }
        assert await rows(running, COUNTS) == [(1, 0, 0)]
        assert await push(running, epoch(Room("new", HUB), key, ["0"])) == (1,)
        assert await rows(running, "SELECT count(*) FROM participations") == [(2,)]


async def offer(running: Assembled, *refs: KeyPackageRef) -> None:
    await running.services.incoming_welcomes.init(HUB, WelcomeInitRequest(refs))


async def test_an_accepted_reference_admits_one_group_however_often_it_is_offered(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        await hand_out(running)
        answers: list[int] = []
        for n in range(5):
            await offer(running, REF)
            answers.append(*await push(running, epoch(Room(f"{n}", HUB), Room.new_key(), ["0"])))
        assert answers == [1, *[NO_LONGER_FOLLOWED] * 4]
        assert await rows(running, COUNTS) == [(2, 1, 1)]


async def test_a_last_resort_admits_many_groups_and_not_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_groups, "UNMATCHED_GROUPS", 3)
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        await hand_out(running)
        await running.services.store.write(lambda tx: tx.execute("UPDATE key_package_refs SET reusable = 1"))
        answers: list[int] = []
        for n in range(6):
            await offer(running, REF)
            answers.append(*await push(running, epoch(Room(f"{n}", HUB), Room.new_key(), [], 7)))
        assert answers == [7, 7, 7, *[NO_LONGER_FOLLOWED] * 3]
        assert await rows(running, COUNTS) == [(4, 3, 0)]


async def test_a_device_that_is_added_again_after_it_left_is_pushed_to(tmp_path: Path) -> None:
    """The provider could fetch later messages only once the device presents its key, if the hub still has them."""
    signed = SignedRoom.create(Client.of(1))
    room = Room.of(signed)
    async with follower(tmp_path, room.group_id) as (running, _):
        await hand_out(running)
        await running.services.following.leave(device(running), HUB, room.group_id)
        await offer(running, REF)
        assert await push(running, epoch(room, room.key, ["of the old membership"])) == (NO_LONGER_FOLLOWED,)
        opening = GroupInfoResponse(MLSMessage(MLS10, WireFormat.GROUP_INFO, signed.info()), None)
        begins = attrs.evolve(epoch(room, room.key, ["0"]), opening=opening)  # type: ignore[misc]
        assert await push(running, begins) == (1,)
        assert await push(running, epoch(room, room.key, ["1"], 1)) == (2,)
        assert await push(running, epoch(Room("new", HUB), Room.new_key(), ["0"])) == (NO_LONGER_FOLLOWED,)
        await running.services.sweeper.sweep()
        assert await rows(running, COUNTS) == [(1, 1, 2)]


async def test_a_hub_names_no_other_partition_than_that_of_the_key(tmp_path: Path) -> None:
    """Otherwise it could add a row for each message that a device sends."""
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, _):

        async def hub(called: Called) -> PeerAnswer:
            count = len(SEND_REQUESTS.decode(called.body))
            return PeerAnswer(
                encode_send_results(SendResponse(Counter(0), 0, Room.new_key().mask(32), 0, ()) for _ in range(count))
            )

        running.peers.add(HUB, hub)
        batch = [room.send(f"{n}") for n in range(30)]
        await running.services.hub_router.hub(HUB).send_batch(device(running), batch)
        assert await rows(running, COUNTS) == [(1, 0, 0)]


async def test_an_epoch_that_says_nothing_does_not_use_up_a_reference(tmp_path: Path) -> None:
    room, new = Room(hub=HUB), Room("new", HUB)
    async with follower(tmp_path, room.group_id) as (running, _):
        await hand_out(running)
        await offer(running, REF)
        assert await push(running, epoch(Room("other", HUB), Room.new_key(), [])) == (0,)
        assert await push(running, epoch(new, new.key, ["0"])) == (1,)


async def test_a_push_whose_mask_is_of_another_group_is_not_appended_there(tmp_path: Path) -> None:
    room, other = Room(hub=HUB), Room("other", HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        await running.services.following.note_sent(device(running), HUB, other.group_id, [])
        assert await push(running, epoch(room, room.key, ["0"])) == (1,)
        assert await push(running, epoch(other, room.key, ["forged"], 1)) == (NO_LONGER_FOLLOWED,)
        assert await rows(running, COUNTS) == [(2, 1, 1)]
        assert receiver.statistics().contradictions == 1


async def test_a_rewritten_message_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    room = Room(hub=HUB)
    async with follower(tmp_path, room.group_id) as (running, receiver):
        assert await push(running, epoch(room, room.key, ["0", "1", "2", "3"])) == (4,)
        assert await push(running, epoch(room, room.key, ["1", "2", "3", "4"], 1)) == (5,)
        assert receiver.statistics().contradictions == 0
        assert await push(running, epoch(room, room.key, ["0", "1", "2", "other", "4", "5"])) == (5,)
        assert receiver.statistics().contradictions == 1
