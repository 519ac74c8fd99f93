"""Faults that were reported in the field, each played between running providers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from mimids.cli.main import main
from mimids.cli.refusals import CommandRefused
from mimids.client import Backoff, Device, Problem
from mimids.ds.terms.accepted import RENEW_SECONDS
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import SUITES
from mimids.testing import PretendGroup, Provider, Session, content_of, open_federation
from mimids.wire.declare import decode
from mimids.wire.ids import GROUP_ID_OCTETS, GroupId, KeyPackageRef, ProviderId
from mimids.wire.messages import InboxWelcome, SendRequest, WelcomeData
from tests.support.mls_makers import replace
from tests.support.people import key_packages
from tests.support.stage import AWAY, HUB, NAMES, SUITE, eventually
from tests.support.welcomes import part_for, welcome_to

pytestmark = [pytest.mark.slow, AWAY]

FOLLOWER = ProviderId("b.example")


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    return await trio.to_thread.run_sync(function, *arguments)


def cli(provider: Provider, *arguments: str) -> Any:
    """Run `mimids ... --json` for a provider, and return what it prints."""
    ran = CliRunner().invoke(main, [*arguments, "--config", str(provider.config_file), "--json"])
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


async def back_up(provider: Provider) -> str:
    backup = str(provider.directory / "copy")
    await in_thread(cli, provider, "backup", backup)
    return backup


async def restore(provider: Provider, backup: str) -> None:
    """Restore a provider whose newer database is lost."""
    await in_thread(provider.terminate)
    provider.database.rename(provider.directory / "lost")
    await in_thread(cli, provider, "restore", backup)
    await in_thread(provider.start)


async def contents(device: Device, group: PretendGroup, counter: int = 0) -> list[bytes]:
    return [content_of(message) for message in await device.receive(group.hub, group.key, counter)]


async def refusal(call: Callable[[], Awaitable[object]]) -> Problem | None:
    try:
        await call()
    except Problem as problem:
        return problem
    return None


async def until_stored(provider: Provider, group: PretendGroup, count: int) -> None:
    async def is_stored() -> bool:
        return len(await in_thread(provider.stored, group.key)) == count

    await eventually(is_stored)


# --- Welcomes after a restore -------------------------------------------------------------------------------------


async def add(adder: Device, group: PretendGroup, home: Provider, user: str) -> bytes:
    """Add a device to a group by a commit with a Welcome; return what its provider gets of the Welcome."""
    package = await adder.fetch_key_package(await in_thread(home.contact, user), SUITE)
    data = WelcomeData(welcome_to(_ref(package)), (ProviderId(home.name),))
    request, _ = group.commit()
    assert request.commit_data is not None
    await adder.send(
        group.hub, SendRequest(request.message, request.partition_key, replace(request.commit_data, welcome_data=data))
    )
    return part_for(home.name, data)


def _ref(package: bytes) -> KeyPackageRef:
    return decode(KeyPackageIn, package).ref(SUITES[SUITE])


async def test_a_welcome_after_a_restore_is_no_earlier_one(mimids_session: Session) -> None:
    async with open_federation(*NAMES, session=mimids_session) as (a, b, c), AsyncExitStack() as stack:
        alice = await stack.enter_async_context(a.add_device("alice").client())
        carol = await stack.enter_async_context(c.add_device("carol").client())
        bob = await stack.enter_async_context(b.add_device("bob").client())
        ben = await stack.enter_async_context(b.add_device("ben").client())
        seen: list[InboxWelcome] = []

        async def listen() -> None:
            async with bob.stream(backoff=Backoff(0.2, cap_seconds=1)) as stream:
                async for event in stream:
                    if isinstance(event, InboxWelcome):
                        seen.append(event)

        async def invite(user: str, adder: Device, hub: Provider) -> bytes:
            group = PretendGroup.at(hub.name)
            await adder.create_group(group.creation())
            return await add(adder, group, b, user)

        async def upload(seed: int) -> None:
            await bob.upload(key_packages(seed, f"bob@{FOLLOWER}", 2))
            await ben.upload(key_packages(seed + 1, f"ben@{FOLLOWER}", 2))

        async with trio.open_nursery() as listening:
            listening.start_soon(listen)
            await upload(1)
            backup = await back_up(b)
            bobs, bens = await invite("bob", alice, a), await invite("ben", alice, a)

            async def all_came(count: int) -> bool:
                return len(seen) >= count and len(await ben.welcomes()) == 1

            await eventually(lambda: all_came(1))
            (known,) = await ben.welcomes()
            await restore(b, backup)

            # The hub sends again what came after the backup, under ids that nothing had before.
            await eventually(lambda: all_came(2), seconds=20)
            (again,) = await ben.welcomes()
            assert known.welcome.encoded == again.welcome.encoded == bens
            await ben.acknowledge(known.welcome_id)  # a request that was under way when the provider was restored
            assert await ben.welcomes() == (again,)
            await upload(3)
            new = await invite("bob", carol, c)  # whose provider has no OHTTP keys from before the restore

            async def is_seen() -> bool:
                return any(each.welcome.encoded == new for each in seen)

            await eventually(is_seen)
            assert [each.welcome.encoded for each in seen] == [bobs, bobs, new]
            assert len({known.welcome_id, again.welcome_id, *(each.welcome_id for each in seen)}) == 5
            listening.cancel_scope.cancel()


# --- groups of a restored hub -------------------------------------------------------------------------------------


async def test_a_device_that_is_ahead_of_a_restored_hub_is_told_where_to_start_again(mimids_session: Session) -> None:
    async with open_federation(HUB, session=mimids_session) as (hub,), hub.add_device("alice").client() as alice:
        group = PretendGroup.at(HUB)
        await alice.create_group(group.creation())
        await alice.send_batch(HUB, [group.message(b"old%d" % number) for number in range(3)])
        backup = await back_up(hub)
        await alice.send_batch(HUB, [group.message(b"lost%d" % number) for number in range(5)])
        await restore(hub, backup)
        for sent in range(2):  # the second time the partition has caught up
            refused = await refusal(lambda: alice.receive(group.hub, group.key, 8))
            assert refused is not None
            assert (refused.code, refused.members["next_counter"]) == ("counter-ahead", 3)
            if not sent:
                await alice.send_batch(HUB, [group.message(b"new%d" % number) for number in range(5)])
        assert await contents(alice, group, 3) == [b"new%d" % number for number in range(5)]


async def test_a_restored_group_waits_only_for_its_followers_and_can_be_released(mimids_session: Session) -> None:
    nowhere = ProviderId("nowhere.example")
    config = {"federation": {"allow": [FOLLOWER, nowhere]}}
    async with open_federation(HUB, FOLLOWER, session=mimids_session, configs={HUB: config}) as (hub, b):
        alone, asked, shared = (PretendGroup.at(HUB) for _ in range(3))
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            for group in (alone, asked, shared):
                await alice.create_group(group.creation())
            request, _ = asked.commit()
            assert request.commit_data is not None
            invitation = WelcomeData(welcome_to(KeyPackageRef(secrets.token_bytes(32))), (nowhere,))
            await alice.send(
                HUB,
                SendRequest(request.message, asked.key, replace(request.commit_data, welcome_data=invitation)),
            )
            await bob.send(HUB, shared.message(b"from a follower"))
            backup = await back_up(hub)
            await in_thread(b.kill)
            await restore(hub, backup)

            async def is_accepted(group: PretendGroup) -> bool:
                return await refusal(lambda: alice.send(HUB, group.message(b"after the restore"))) is None

            for group in (alone, asked):
                await eventually(lambda group=group: is_accepted(group))  # type: ignore[misc]
            refused = await refusal(lambda: alice.send(HUB, shared.message(b"too early")))
            assert refused is not None
            assert (refused.status, refused.code) == (503, "recovering")
            listed = (await in_thread(hub.command, "group list"))["groups"]
            (held,) = [each for each in listed if each["waits_for"]]
            assert held["waits_for"] == [FOLLOWER]
            checked = CliRunner().invoke(main, ["check", "--config", str(hub.config_file)])
            assert f"until {FOLLOWER} answers" in checked.output
            released = await in_thread(lambda: hub.command("group release", group=held["group_id"], provider=FOLLOWER))
            assert released["waits_for"] == []
            assert await is_accepted(shared)


# --- followers ----------------------------------------------------------------------------------------------------


async def test_a_follower_begins_at_the_counter_that_its_device_asks_for(mimids_session: Session) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as (hub, b):
        group = PretendGroup.at(HUB)
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await alice.send_batch(HUB, [group.message(b"%d" % number) for number in range(5)])
            assert await contents(bob, group, 3) == [b"3", b"4"]  # its provider does not know the group yet
            assert await contents(bob, group) == [b"%d" % number for number in range(5)]
            await until_stored(b, group, 5)
            assert await contents(bob, group, 3) == [b"3", b"4"]


async def test_a_provider_that_calls_gets_what_waits_for_the_end_of_a_back_off(mimids_session: Session) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as federation:
        hub, b = federation
        group = PretendGroup.at(HUB)
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.receive(HUB, group.key)
            hub.clock.stop(datetime.now(UTC))  # so no back-off ends by itself
            link = federation.link(hub, b)
            link.cut()
            await alice.send(HUB, group.message(b"during the cut"))

            async def has_failed() -> bool:
                return bool(await in_thread(hub.read, "SELECT 1 FROM peers WHERE failures > 0"))

            await eventually(has_failed)
            link.restore()
            await trio.sleep(0.5)
            assert b.stored(group.key) == []
            await bob.send(HUB, group.message(b"from a device of the provider"))
            await until_stored(b, group, 2)


async def test_a_reader_hears_of_a_ban_and_of_its_end_though_its_provider_calls_nobody(mimids_session: Session) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as (hub, b):
        group = PretendGroup.at(HUB)
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.receive(HUB, group.key)
            await alice.send(HUB, group.message(b"for Bob"))
            await until_stored(b, group, 1)  # from now on its provider answers what Bob reads

            async def may_read(said: bytes) -> bool:
                refused = await refusal(lambda: bob.receive(HUB, group.key))
                assert refused is None or refused.code == "policy", said
                return refused is None

            assert await may_read(b"before")

            async def ban() -> None:
                hub.command("ban add", subject=b.user_id("bob"))
                await alice.send(HUB, group.message(b"not for Bob"))
                await eventually(lambda: is_not(may_read(b"banned")))
                await trio.sleep(1.1)  # terms are fetched at most once a second
                hub.command("ban remove", subject=b.user_id("bob"))

            await ban()
            await alice.send(HUB, group.message(b"for Bob again"))
            await eventually(lambda: may_read(b"after a push"))
            await ban()
            b.clock.advance(RENEW_SECONDS)  # nobody calls anybody
            await eventually(lambda: may_read(b"after a renewal"))


async def is_not(found: Awaitable[bool]) -> bool:
    return not await found


async def test_a_partition_that_a_commit_opened_is_empty_while_its_hub_is_down(mimids_session: Session) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as (hub, b):
        group = PretendGroup.at(HUB)
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            await alice.create_group(group.creation())
            await bob.receive(HUB, group.key)
            commit, following = group.commit()
            await alice.send(HUB, commit)
            await until_stored(b, group, 1)
            await in_thread(hub.kill)
            assert await bob.receive(HUB, following.key) == ()
            refused = await refusal(lambda: bob.receive(HUB, PretendGroup.at(HUB).key))
            assert refused is not None
            assert refused.status == 503


async def test_a_group_with_the_longest_id_is_read_and_left_and_one_without_an_id_is_refused(
    mimids_session: Session,
) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as (hub, b):
        group = replace(PretendGroup.at(HUB), group_id=GroupId(secrets.token_bytes(GROUP_ID_OCTETS)))
        nameless = replace(group, group_id=GroupId(b""))
        async with hub.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
            refused = await refusal(lambda: alice.create_group(nameless.creation()))
            assert refused is not None
            assert (refused.status, refused.code) == (400, "malformed")
            await alice.create_group(group.creation())
            await bob.send(HUB, group.message(b"with a long id"))
            assert await contents(alice, group) == [b"with a long id"]
            for device in (alice, bob):
                await device.leave(HUB, group.group_id)


# --- names and bundles --------------------------------------------------------------------------------------------


async def test_a_user_has_one_spelling(mimids_session: Session) -> None:
    async with open_federation(HUB, session=mimids_session) as (hub,):
        hub.add_user("%C3%BCser")
        for name, says in (
            ("%61lice", "%61 must be written as a"),
            ("%c3%bcser", "%c3 must be written as %C3"),
            ("%00", ""),
            ("..", ""),
            ("%C3%BCser", ""),
        ):
            with pytest.raises(CommandRefused) as refused:
                await in_thread(hub.add_user, name)
            assert says in str(refused.value)


async def test_more_key_packages_than_fit_a_sealed_request_are_asked_for_in_two(mimids_session: Session) -> None:
    async with open_federation(HUB, FOLLOWER, session=mimids_session) as (hub, b):
        packages = key_packages(1, f"bob@{FOLLOWER}", 3)
        async with b.add_device("bob").client() as bob:
            await bob.upload(packages)
        async with hub.add_device("alice").client() as alice:
            found = await alice.fetch_key_packages([await in_thread(b.contact, "bob")] * 70, SUITE)
        assert len(found) == 70
        given = [each.key_package for each in found if each.key_package]  # a device gives one for each request
        assert len(given) == 2
        assert set(given) < set(packages)
