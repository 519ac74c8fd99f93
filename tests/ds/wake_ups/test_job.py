"""Devices that sleep are woken once; those that are awake, or have nothing new, are not.

The file is long because it has all tests of one job, which share the class `Asleep`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio

from mimids.ds.devices import accounts
from mimids.ds.notifier import WAKE_UPS
from mimids.ds.ports import PushAnswer
from mimids.ds.wake_ups.job import GONE, WakeUpStatistics
from mimids.ds.wake_ups.own_messages import SequencingHub
from mimids.ds.wake_ups.vapid_key import load_vapid_key
from mimids.errors import Malformed, PeerUnavailable, StorageUnavailable, Unauthenticated
from mimids.store import providers, push_subscriptions
from mimids.store.push_subscriptions import EARLY_POSITIONS, note_early
from mimids.testing.clock import MovableClock
from mimids.values import Device, DeviceRow
from mimids.web_push.message import PLAINTEXT
from mimids.web_push.subscription import EndpointUrl
from mimids.wire.declare import decode, encode
from mimids.wire.ids import Counter, Secret
from mimids.wire.messages import FrameType, ReceiveRequest, Result, Send, SendRequest, SendResponse
from tests.support import stored
from tests.support.device_streams import streaming
from tests.support.doubles import stopped_clock
from tests.support.federation import Room, device, federated
from tests.support.mls_makers import replace as with_changed
from tests.support.provider import Assembled, assembled
from tests.support.push_keys import Browser, browser

MANY_LOOKS_SECONDS = 0.3  # in which nothing happens: no test fails because the machine is slow


async def until(reached: Callable[[], bool]) -> None:
    async def check() -> bool:
        return reached()

    await stored.until(check)


@attrs.frozen
class Asleep:
    """Alice sends; Bob's phone has presented the room and sleeps."""

    provider: Assembled
    clock: MovableClock
    room: Room
    alice: Device
    bob: Device
    browser: Browser

    async def say(self, text: str = "news", by: Device | None = None) -> None:
        await self.provider.services.hub.send(self.room.send(text), by or self.alice)

    async def send(
        self,
        text: str,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        change: Callable[[SendResponse], SendResponse] = lambda answer: answer,
    ) -> None:
        """Send as Bob; `before` runs before the hub has the message, and `change` changes its answer."""
        hub = self.provider.services.hub_router.hub(self.room.hub)

        class Changed:
            provider = hub.provider

            async def send(self, device: Device, request: SendRequest) -> bytes:
                if before is not None:
                    await before()
                return encode(change(decode(SendResponse, await hub.send(device, request))))

        await self.provider.services.own_messages.send(self.bob, cast("SequencingHub", Changed()), self.room.send(text))

    async def wait(self, pushes: int) -> list[str]:
        return await self.provider.push_services.wait(pushes)

    async def wait_settled(self, **counts: int) -> None:
        """Wait until statistics have these values."""

        def reached() -> bool:
            now = attrs.asdict(self.statistics())
            return all(now[name] == value for name, value in counts.items())

        await until(reached)

    async def wait_nothing(self, pushes: int) -> None:
        await trio.sleep(MANY_LOOKS_SECONDS)
        assert len(self.provider.push_services.pushes) == pushes

    def heard(self, who: Device | None = None) -> None:
        self.provider.services.listening.heard((who or self.bob).row)

    def present(self, who: Device, counter: int = 0) -> None:
        services = self.provider.services
        services.cursors.note(who, self.room.hub, ReceiveRequest(self.room.key, Counter(counter)))

    def statistics(self) -> WakeUpStatistics:
        return self.provider.services.wake_ups.statistics()


async def known(provider: Assembled, user: str) -> Device:
    """Add a device of a user, and return it as the one that its token authenticates."""
    found = await provider.services.devices.authenticate(Secret((await provider.add_device(user)).encode()))
    assert found is not None
    return found


@asynccontextmanager
async def asleep(directory: Path, **push: Any) -> AsyncIterator[Asleep]:
    clock = stopped_clock()
    async with federated(directory, "a.example", clock=clock, jobs_of=("wake_ups",), push=push) as (a,):
        await a.add_device("alice")
        room, alice, bob = Room(), device(a), await known(a, "bob")
        found = Asleep(a, clock, room, alice, bob, browser())
        await a.services.hub.create_group(room.creation(), alice)
        await a.services.wake_ups.subscribe(bob, found.browser.subscription)
        found.present(bob)
        yield found


async def test_a_sleeping_device_is_woken_once_whatever_comes(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        await at.say()
        assert await at.wait(1) == ["/one"]
        (endpoint, headers, body) = at.provider.push_services.pushes[0]
        assert at.browser.open(body) == PLAINTEXT
        assert endpoint.origin == "https://push.example"
        assert headers.keys() == {"content-encoding", "ttl", "urgency", "topic", "authorization"}
        await at.wait_settled(pushed=1, waiting=0)
        await at.say("more")
        at.clock.advance(3600)
        await at.wait_nothing(1)


async def test_after_a_device_was_heard_it_is_woken_again_when_the_quiet_time_is_over(tmp_path: Path) -> None:
    async with asleep(tmp_path, quiet_seconds=30) as at:
        await at.say()
        await at.wait(1)
        await at.wait_settled(pushed=1)
        at.heard()
        await trio.sleep(1)
        await at.say("within the quiet time")
        await at.wait_nothing(1)
        at.clock.advance(31)
        await at.wait(2)


async def test_that_a_woken_device_was_heard_is_stored_before_its_request_goes_on(tmp_path: Path) -> None:
    """A server that died within the next 100 ms did not wake the device again."""
    async with asleep(tmp_path) as at:
        token = Secret((await at.provider.add_device("carol")).encode())
        carol = await at.provider.services.devices.authenticate(token)
        assert carol is not None
        await at.provider.services.wake_ups.subscribe(carol, browser("https://push.example/carol").subscription)
        at.present(carol)
        await at.say()
        await at.wait_settled(pushed=2, waiting=0)
        woken = "SELECT count(*) FROM push_subscriptions WHERE is_woken = 1"
        assert stored.count(at.provider, woken) == 2
        await at.provider.services.devices.authenticate(token)
        assert stored.count(at.provider, woken) == 1


async def test_what_a_device_knew_of_when_it_was_heard_does_not_wake_it(tmp_path: Path) -> None:
    async with asleep(tmp_path, quiet_seconds=0) as at:
        await at.say()
        await at.wait(1)
        await at.wait_settled(pushed=1)
        at.heard()
        await at.wait_nothing(1)


async def test_a_device_that_asks_for_what_is_new_by_itself_is_not_woken(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        async with at.provider.services.sessions.open(at.bob, heard_at=trio.current_time):
            await at.say()
            await at.wait_nothing(0)
        await at.wait_nothing(0)  # it was heard when its stream ended
        await at.say("later")
        await at.wait(1)


async def test_a_device_that_vanished_from_its_stream_is_woken_for_what_it_did_not_get(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        await at.wait_nothing(0)
        heard_at = trio.current_time()
        async with at.provider.services.sessions.open(at.bob, heard_at=lambda: heard_at):
            await at.say()
            await at.wait_nothing(0)
        await at.wait(1)


async def test_its_own_message_does_not_wake_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        at.heard()
        await at.send("mine")
        await at.send("mine, too")
        await trio.sleep(1)
        await at.wait_nothing(0)
        await at.say("another's")
        await at.wait(1)


async def test_a_message_of_a_partition_that_it_did_not_present_wakes_nobody(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        other = Room("other")
        await at.provider.services.hub.create_group(other.creation(), at.alice)
        await at.provider.services.hub.send(other.send("for others"), at.alice)
        await at.wait_nothing(0)


async def test_a_group_that_the_device_left_wakes_it_no_more(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        store, now = at.provider.services.store, at.clock.now()
        group = await store.read(lambda tx: tx.all("SELECT id FROM groups")[0][0])
        await store.write(
            lambda tx: tx.execute(
                "INSERT INTO participations (group_ref, device, joined_at, left_at) VALUES (?, ?, ?, ?)",
                (group, at.bob.row, now, now + 1),
            )
        )
        await at.say()
        await at.wait_nothing(0)


def arrive(tx: Any, device: DeviceRow) -> None:
    """Put a Welcome into the inbox of a device."""
    welcome = tx.insert(
        "INSERT INTO welcomes (digest, body, stored_at) VALUES (?, ?, 0) RETURNING id", (bytes([device]) * 32, b"")
    )
    tx.execute(
        "INSERT INTO inbox (device, welcome, hub, arrived_at) SELECT ?, ?, id, 0 FROM providers LIMIT 1",
        (device, welcome),
    )


@pytest.mark.parametrize("together", [True, False])
async def test_a_welcome_wakes(tmp_path: Path, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_subscriptions, "WELCOMES_AT_ONCE", 1)
    async with asleep(tmp_path) as at:
        services, carol = at.provider.services, await known(at.provider, "carol")
        await services.wake_ups.subscribe(carol, browser("https://push.example/c").subscription)
        await at.wait_nothing(0)
        for pushes, who in enumerate((at.bob, carol), 1):
            await services.store.write(partial(arrive, device=who.row))
            if together and pushes == 1:
                continue
            services.notifier.notify(WAKE_UPS)
            await at.wait(pushes)
            await at.wait_settled(pushed=pushes)


async def test_what_came_before_its_subscription_does_not_wake_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        services = at.provider.services
        await services.store.write(partial(arrive, device=at.bob.row))
        await at.say()
        await at.wait_settled(pushed=1)
        await services.wake_ups.subscribe(at.bob, at.browser.subscription)
    async with assembled(at.provider.config, clock=at.clock) as again, trio.open_nursery() as jobs:
        await jobs.start(again.services.wake_ups.run)
        await trio.sleep(MANY_LOOKS_SECONDS)
        assert again.push_services.pushes == []
        jobs.cancel_scope.cancel()


async def test_a_device_of_a_suspended_user_or_with_a_new_token_is_not_woken(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        store, name = at.provider.services.store, at.provider.config.provider
        await store.write(lambda tx: accounts.suspend_user(tx, name, "bob", at.clock.now()))
        await at.say()
        await at.wait_nothing(0)
        await store.write(lambda tx: accounts.resume_user(tx, name, "bob"))
        await store.write(lambda tx: tx.execute("DELETE FROM participations"))
        await at.say("after that")
        await at.wait(1)
        await store.write(lambda tx: accounts.rotate_token(tx, name, "bob", "phone", at.clock.now()))
        assert await store.read(lambda tx: tx.all("SELECT device FROM push_subscriptions")) == []


@pytest.mark.parametrize("status", sorted(GONE))
async def test_a_subscription_that_is_gone_is_deleted(tmp_path: Path, status: int) -> None:
    async with asleep(tmp_path) as at:
        at.provider.push_services.answer = answering(status)
        await at.say()
        await at.wait_settled(gone=1, subscriptions=0, waiting=0)
        store = at.provider.services.store
        assert await store.read(lambda tx: tx.all("SELECT device FROM push_subscriptions")) == []


async def test_a_subscription_that_replaced_one_that_is_gone_stays(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        new = browser("https://push.example/two")

        async def replace(endpoint: EndpointUrl) -> PushAnswer:
            if endpoint.path == "/one":
                await at.provider.services.wake_ups.subscribe(at.bob, new.subscription)
                return PushAnswer(410)
            return PushAnswer(201)

        at.provider.push_services.answer = replace
        await at.say()
        await at.wait_settled(gone=1, subscriptions=1)
        await at.say("more")
        assert await at.wait(2) == ["/one", "/two"]


@pytest.mark.parametrize("status", [300, 307, 400, 413])
async def test_a_push_that_is_refused_is_not_repeated_before_the_device_was_heard(tmp_path: Path, status: int) -> None:
    async with asleep(tmp_path) as at:
        at.provider.push_services.answer = answering(status)
        await at.say()
        await at.wait_settled(refused=1, waiting=0, failing=0)
        await at.say("more")
        await at.wait_nothing(1)
        at.heard()
        await trio.sleep(1)
        await at.say("after it was heard")
        await at.wait(2)


@pytest.mark.parametrize("answer", [PushAnswer(429, 120), PushAnswer(503, 120), PushAnswer(500), None])
async def test_a_service_that_fails_is_tried_again_and_delays_no_other(
    tmp_path: Path, answer: PushAnswer | None
) -> None:
    async with asleep(tmp_path) as at:
        services = at.provider.services
        carol = await known(at.provider, "carol")
        await services.wake_ups.subscribe(carol, browser("https://other.example/c").subscription)
        at.present(carol)
        failing = True

        async def fail(endpoint: EndpointUrl) -> PushAnswer:
            if failing and endpoint.origin == "https://push.example":
                if answer is None:
                    raise PeerUnavailable
                return answer
            return PushAnswer(201)

        at.provider.push_services.answer = fail
        await at.say()
        assert sorted(await at.wait(2)) == ["/c", "/one"]
        await at.wait_settled(failed=1, pushed=1, failing=1, waiting=1)
        await at.wait_nothing(2)
        assert at.statistics().waiting == 1
        failing = False
        if answer is not None and answer.retry_after:
            at.clock.advance(answer.retry_after - 1)
            await at.wait_nothing(2)
        at.clock.advance(10)
        assert (await at.wait(3))[-1] == "/one"
        await at.wait_settled(failing=0, waiting=0)


async def test_a_device_whose_pushes_fail_delays_nobody_at_its_service(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        carol = await known(at.provider, "carol")
        await at.provider.services.wake_ups.subscribe(carol, browser("https://push.example/c").subscription)
        at.present(carol)

        async def answer(endpoint: EndpointUrl) -> PushAnswer:
            return PushAnswer(429, 3600) if endpoint.path == "/one" else PushAnswer(201)

        at.provider.push_services.answer = answer
        await at.say()
        assert sorted(await at.wait(2)) == ["/c", "/one"]
        at.heard(carol)
        await at.wait_settled(pushed=1, failed=1, waiting=1)
        await at.say("again")
        at.clock.advance(31)
        assert (await at.wait(3))[-1] == "/c"


async def test_its_own_message_on_a_stream_does_not_wake_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at, streaming(at.provider, at.bob) as wire:
        await wire.say(FrameType.SEND, Send(at.room.hub, (at.room.send("mine"),)))
        assert isinstance((await wire.hear()).body, Result)
        last = at.provider.services.listening.last_sent(at.bob.row)
        assert list(last.values()) == [Counter(0)]


@pytest.mark.parametrize(("between", "last"), [(0, 1), (1, 0)])
async def test_of_a_batch_the_messages_before_the_first_one_of_others_do_not_wake_a_device(
    tmp_path: Path, between: int, last: int
) -> None:
    async with asleep(tmp_path) as at:
        hub = at.provider.services.hub_router.hub(at.room.hub)

        class Changed:
            provider = hub.provider

            async def send_batch(self, device: Device, requests: Sequence[SendRequest]) -> list[SendResponse | bytes]:
                first, second = await hub.send_batch(device, requests)
                assert isinstance(second, SendResponse)
                return [first, with_changed(second, counter=Counter(second.counter + between)), b"a refusal"]

        batch = [at.room.send("one"), at.room.send("two")]
        await at.provider.services.own_messages.send_batch(at.bob, cast("SequencingHub", Changed()), batch)
        assert list(at.provider.services.listening.last_sent(at.bob.row).values()) == [Counter(last)]


@pytest.mark.parametrize(("counter", "noted"), [(0, True), (1, False)])
async def test_in_a_partition_that_is_not_here_yet_another_message_may_be_before_its_own(
    tmp_path: Path, counter: int, noted: bool
) -> None:
    async with asleep(tmp_path) as at:
        elsewhere = Room("elsewhere")
        (partition, *_) = elsewhere.key.masks()

        class Answers:
            provider = at.room.hub

            async def send(self, device: Device, request: SendRequest) -> bytes:
                return encode(SendResponse(Counter(counter), at.clock.now(), partition, 0, ()))

        await at.provider.services.own_messages.send(
            at.bob, cast("SequencingHub", Answers()), elsewhere.send("the first one here")
        )
        assert (partition in at.provider.services.listening.last_sent(at.bob.row)) == noted


async def test_a_message_that_it_sent_from_outside_does_not_wake_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        services = at.provider.services
        hub = services.hub_router.hub(at.room.hub)
        answer = await hub.send(at.bob, at.room.send("from outside"))
        assert await services.own_messages.note_from_outside(at.bob, hub, answer) == answer
        assert list(services.listening.last_sent(at.bob.row).values()) == [Counter(0)]


async def test_a_message_before_its_own_that_comes_later_wakes_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        at.heard()
        await at.send("mine")

        def change(answer: SendResponse) -> SendResponse:
            return with_changed(answer, counter=Counter(answer.counter + 1))  # the one between them is not here yet

        await at.send("mine, too", change=change)
        await trio.sleep(1)
        await at.wait(1)


async def test_a_message_that_came_just_before_its_own_wakes_a_device(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        at.heard()
        await at.send("mine", before=lambda: at.say("while it was on its way"))
        await at.wait(1)


async def test_subscriptions_that_another_process_stored_or_deleted_count(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        services, carol = at.provider.services, await known(at.provider, "carol")
        new = browser("https://push.example/c").subscription
        stored_by_another = partial(
            push_subscriptions.put, device=carol, endpoint="https://push.example/c", p256dh=new.p256dh, auth=new.auth
        )
        await services.store.write(stored_by_another)
        at.present(carol)
        await services.cursors.save()
        await at.say()
        await at.wait_settled(pushed=1)
        await at.wait_nothing(1)
        await services.wake_ups.read_subscriptions()
        assert await at.wait(2) == ["/one", "/c"]
        await at.wait_settled(pushed=2, subscriptions=2)
        await services.store.write(lambda tx: push_subscriptions.delete(tx, carol.row))
        await services.wake_ups.read_subscriptions()
        assert at.statistics().subscriptions == 1


async def test_a_request_of_before_a_new_token_subscribes_nobody(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        services = at.provider.services
        await services.store.write(
            lambda tx: accounts.rotate_token(tx, at.provider.config.provider, "bob", "phone", at.clock.now())
        )
        with pytest.raises(Unauthenticated):
            await services.wake_ups.subscribe(at.bob, at.browser.subscription)
        assert await services.store.read(lambda tx: tx.all("SELECT device FROM push_subscriptions")) == []


@pytest.mark.parametrize("way", ["a request", "a stream"])
async def test_a_device_that_comes_back_while_its_service_fails_is_not_woken(tmp_path: Path, way: str) -> None:
    async with asleep(tmp_path) as at, AsyncExitStack() as streams:
        at.provider.push_services.answer = answering(503)
        await at.say()
        await at.wait_settled(failed=1)
        if way == "a request":
            at.heard()
        else:
            session = at.provider.services.sessions.open(at.bob, heard_at=trio.current_time)
            await streams.enter_async_context(session)
        at.clock.advance(3600)
        await at.wait_settled(waiting=0)
        await at.wait_nothing(1)


async def test_who_is_due_follows_from_rows(tmp_path: Path) -> None:
    """A job that starts over a message that no job has seen wakes for it; one that starts after the push does not."""
    async with asleep(tmp_path) as at:
        await at.provider.services.cursors.save()
        await at.provider.services.wake_ups.subscribe(at.bob, at.browser.subscription)
    config = at.provider.config
    async with assembled(config, clock=at.clock) as again:
        await again.services.hub.send(at.room.send("unseen"), at.alice)
    for pushes in (1, 0):
        async with assembled(config, clock=at.clock) as again, trio.open_nursery() as jobs:
            await jobs.start(again.services.wake_ups.run)
            if pushes:
                await again.push_services.wait(1)
                await until(lambda: again.services.wake_ups.statistics().pushed == 1)
            else:
                await trio.sleep(MANY_LOOKS_SECONDS)
                assert again.push_services.pushes == []
            jobs.cancel_scope.cancel()
        assert again.push_services.closed


@pytest.mark.parametrize("restart", [False, True])
async def test_the_first_message_of_a_partition_wakes(tmp_path: Path, restart: bool) -> None:
    """A follower learns of a partition with its first message, so the position came before the partition."""
    async with asleep(tmp_path) as at:
        early = Room("early")
        services = at.provider.services
        services.cursors.note(at.bob, early.hub, ReceiveRequest(early.key, Counter(0)))
        await until(lambda: stored.count(at.provider, "SELECT count(*) FROM early_positions") == len(early.key.masks()))
        if not restart:
            await services.hub.create_group(early.creation(), at.alice)
            await services.hub.send(early.send("the first"), at.alice)
            await at.wait(1)
            return
    async with assembled(at.provider.config, clock=at.clock) as again, trio.open_nursery() as jobs:
        await again.services.hub.create_group(early.creation(), at.alice)
        await again.services.hub.send(early.send("the first"), at.alice)
        await jobs.start(again.services.wake_ups.run)
        await again.push_services.wait(1)
        assert stored.count(again, "SELECT count(*) FROM early_positions WHERE masked_key = ?", early.key.mask(32)) == 0
        jobs.cancel_scope.cancel()


async def test_only_some_early_positions_of_a_device_are_kept(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        masks = [Room.new_key().masks() for _ in range(EARLY_POSITIONS // 3 + 2)]

        def note(tx: Any) -> None:
            hub = providers.ensure_provider(tx, at.room.hub)
            for each in masks:
                note_early(tx, at.bob.row, hub, each)

        await at.provider.services.store.write(note)
        kept = await at.provider.services.store.read(
            lambda tx: tx.all("SELECT masked_key FROM early_positions ORDER BY id")
        )
        assert [row[0] for row in kept] == [mask for each in masks[2:] for mask in each]
        await at.provider.services.wake_ups.unsubscribe(at.bob.row)
        assert stored.count(at.provider, "SELECT count(*) FROM early_positions") == 0


async def test_nobody_subscribes_where_pushes_are_off_or_an_endpoint_is_not_public(tmp_path: Path) -> None:
    async with asleep(tmp_path, endpoints=["https://push.internal:8443"]) as at:
        wake_ups = at.provider.services.wake_ups
        assert wake_ups.public_key is not None
        await wake_ups.subscribe(at.bob, browser("https://push.internal:8443/x").subscription)
        with pytest.raises(Malformed, match="port 443"):
            await wake_ups.subscribe(at.bob, browser("https://10.0.0.1/x").subscription)


async def test_the_key_stays_the_same_and_is_encrypted_where_there_is_a_key_file(tmp_path: Path) -> None:
    async with asleep(tmp_path) as at:
        before = at.provider.services.wake_ups.public_key
        loaded = await at.provider.services.store.read(lambda tx: load_vapid_key(tx, None))
        assert loaded is not None
        assert loaded.public == before
    (tmp_path / "key").write_bytes(bytes(32))
    config = attrs.evolve(at.provider.config, ohttp=attrs.evolve(at.provider.config.ohttp, key_file=tmp_path / "key"))
    async with assembled(config) as again, trio.open_nursery() as jobs:
        await jobs.start(again.services.wake_ups.run)
        assert again.services.wake_ups.public_key == before
        sealed = await again.services.store.read(
            lambda tx: tx.all("SELECT value FROM settings WHERE name = 'vapid_private'")
        )
        assert sealed[0][0][0] == 1
        jobs.cancel_scope.cancel()


def answering(status: int) -> Any:
    async def answer(_: EndpointUrl) -> PushAnswer:
        return PushAnswer(status)

    return answer


async def test_devices_that_could_not_be_read_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asleep(tmp_path) as at:
        await at.wait_nothing(0)
        wake_ups = at.provider.services.wake_ups
        queue = wake_ups._queue_those_asleep
        failed: list[list[DeviceRow]] = []

        async def fail_once(devices: list[DeviceRow]) -> None:
            if not failed:
                failed.append(devices)
                raise StorageUnavailable
            await queue(devices)

        monkeypatch.setattr(wake_ups, "_queue_those_asleep", fail_once)
        await at.say()

        def woken() -> bool:
            at.clock.advance(10)
            return bool(at.provider.push_services.pushes)

        await until(woken)


@pytest.mark.parametrize("during", [True, False])
async def test_news_after_a_device_was_heard_during_its_push_wake_it_again(tmp_path: Path, during: bool) -> None:
    async with asleep(tmp_path, quiet_seconds=0) as at:
        answers = trio.Event()

        async def answer_late(endpoint: EndpointUrl) -> PushAnswer:
            await answers.wait()
            return PushAnswer(201)

        at.provider.push_services.answer = answer_late
        await at.say()
        await at.wait(1)
        at.heard()
        await trio.sleep(0.2)
        at.provider.services.notifier.notify(WAKE_UPS)
        await trio.sleep(0.5)
        if during:
            await at.say("news that came after it slept again")
            await at.wait_nothing(1)
            answers.set()
            await at.wait(2)
            return
        answers.set()
        await at.wait_settled(pushed=1, waiting=0)
        await at.say("news that came after it slept again")

        def woken_again() -> bool:
            at.clock.advance(10)
            return len(at.provider.push_services.pushes) == 2

        await until(woken_again)
