"""Shares of a pool, the budget of buffered octets, and what one connection holds of both."""

from __future__ import annotations

import pytest
import trio

from mimids.http.server.buffers import WAIT_SECONDS, Buffers
from mimids.http.server.holding import Holding
from mimids.http.server.shares import Shares, owner_of_address


def test_an_owner_may_hold_its_share_and_no_more() -> None:
    shares = Shares(16, share=4, reserve=2, little=1)
    for _ in range(4):
        assert shares.has_room("a")
        shares.take("a")
    assert not shares.has_room("a")
    assert shares.has_room("b")
    shares.give_back("a")
    assert shares.has_room("a")


def test_the_reserve_is_kept_for_owners_that_hold_little() -> None:
    shares = Shares(16, share=8, reserve=2, little=1)
    shares.take("a", 7)
    shares.take("b", 7)
    assert not shares.has_room("a")
    assert not shares.has_room("b")
    assert shares.has_room("c")
    shares.take("c")
    assert not shares.has_room("c")


def test_an_owner_that_holds_nothing_is_forgotten() -> None:
    shares = Shares(16, share=4, reserve=2, little=1)
    shares.take("a", 3)
    shares.give_back("a", 3)
    assert (shares.used, shares.held("a"), shares._held) == (0, 0, {})


@pytest.mark.parametrize(
    ("host", "owner"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_of_ipv6_stands_for_its_network(host: str, owner: str) -> None:
    assert owner_of_address(host) == ("address", owner)


async def test_a_body_waits_until_its_owner_has_room_again(autojump_clock: trio.testing.MockClock) -> None:
    buffers = Buffers(400, largest=100)
    assert buffers.take_nowait("a", 90)
    assert not buffers.take_nowait("a", 20)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def give_back_later() -> None:
            await trio.sleep(3)
            buffers.give_back("a", 90)

        assert await buffers.take("a", 20)
        assert trio.current_time() == 3
    assert (buffers.statistics().octets, buffers.statistics().refused) == (20, 1)


async def test_a_body_that_finds_no_room_is_refused_in_time(autojump_clock: trio.testing.MockClock) -> None:
    buffers = Buffers(400, largest=100)
    assert await buffers.take("a", 100)
    assert not await buffers.take("a", 20)
    assert trio.current_time() == WAIT_SECONDS
    assert await buffers.take("b", 100)


async def test_what_is_reserved_for_an_answer_is_given_back_as_far_as_it_is_not_needed() -> None:
    buffers = Buffers(16_000_000, largest=4_000_000)
    holding = Holding("address", None, buffers)
    assert await holding.take(50_000)
    assert await holding.reserve(900_000)
    assert holding.take_answer(100_000)
    assert buffers.statistics().octets == 150_000
    holding.give_back()
    assert await holding.reserve(100_000)
    assert holding.take_answer(900_000)
    assert buffers.statistics().octets == 900_000
    holding.give_back()
    assert await holding.reserve(100_000_000)
    assert buffers.statistics().octets == 1_000_000, "a quarter of a share"
    assert holding.take_answer(100)
    assert buffers.statistics().octets == 0
    assert not holding.take_answer(5_000_000)


async def test_a_connection_counts_for_its_caller_once_that_one_is_admitted() -> None:
    pool, buffers = Shares(16, share=2, reserve=2, little=1), Buffers(400, largest=100)
    connections = [Holding("address", pool, buffers) for _ in range(5)]
    assert not connections[0].admit(None)  # three more than the address may have
    assert [each.admit("alice") for each in connections[:3]] == [True, True, False]
    assert (pool.held("alice"), pool.held("address"), pool.used) == (2, 3, 5)
    assert connections[3].admit("bob")
    assert connections[4].admit(None)
    assert await connections[0].take(50)
    assert connections[0].admit(None) is False
    for each in connections:
        each.close()
        each.close()
    assert (pool.used, buffers.statistics().octets) == (0, 0)
