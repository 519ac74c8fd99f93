"""Links and faults: broken connections between two providers, what a device sees of them, and that they end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

import attrs
import pytest

from mimids.client import Device, Problem
from mimids.testing import DeviceAccount, Federation, Link, PretendGroup, Provider, Session, content_of, federation
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import CommitData, ExternalJoinRequest, ExternalProposalRequest


@attrs.frozen
class Pair:
    """A hub, and another provider whose user Bob sends to a group there."""

    federation: Federation
    a: Provider
    b: Provider
    alice: DeviceAccount
    bob: DeviceAccount
    group: PretendGroup

    @property
    def link(self) -> Link:
        return self.federation.link(self.b, self.a)

    def send(self, content: bytes) -> float:
        """Send a message from Bob, and return how many seconds that took."""
        began = time.monotonic()
        request = self.group.message(content)
        self.bob.ask(lambda device: device.send(self.group.hub, request))
        return time.monotonic() - began

    @property
    def arrived(self) -> list[bytes]:
        """What the hub has, in order."""
        got = self.alice.ask(lambda device: device.receive(self.group.hub, self.group.key))
        return list(map(content_of, got))


@pytest.fixture
def pair(mimids_session: Session) -> Iterator[Pair]:
    quick = {"federation": {"answer_seconds": 2, "connect_seconds": 2}}
    with federation("a.example", "b.example", config=quick, session=mimids_session) as made:
        a, b = made
        alice, bob = a.add_device("alice"), b.add_device("bob")
        group = PretendGroup.at(a.name)

        async def create(device: Device) -> None:
            await device.create_group(group.creation())

        alice.ask(create)
        yield Pair(made, a, b, alice, bob, group)


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda pair: pair.link.cut(), "peer-unavailable"),
        (lambda pair: pair.link.answer(503), "peer-unavailable"),
        (lambda pair: pair.link.answer(500), "peer-unavailable"),
        (lambda pair: pair.link.garbage(), "peer-failed"),
        (lambda pair: pair.a.answer(503), "peer-unavailable"),
        (lambda pair: pair.a.garbage(), "peer-failed"),
    ],
    ids=["cut", "503", "500", "garbage", "503-for-all", "garbage-for-all"],
)
def test_a_fault_of_a_peer_is_reported_as_such_and_ends_with_restore(
    harm: Callable[[Pair], None], code: str, pair: Pair
) -> None:
    pair.send(b"before")
    harm(pair)
    with pytest.raises(Problem) as refused:
        pair.send(b"meanwhile")
    assert refused.value.code == code
    pair.link.restore()
    pair.a.restore()
    pair.send(b"after")
    assert pair.arrived == [b"before", b"after"]


def test_garbage_from_a_hub_does_not_reach_devices(pair: Pair) -> None:
    """For each kind of request, the device gets the problem that the hub failed."""
    hub, group = pair.group.hub, pair.group
    message = group.message(b"").message
    following = CommitData(PartitionKey(bytes(16)), None, None)
    asked: list[Callable[[Device], Awaitable[object]]] = [
        lambda device: device.send(hub, group.message(b"")),
        lambda device: device.send_batch(hub, [group.message(b"")]),
        lambda device: device.receive(hub, PartitionKey(b"some other of 16")),
        lambda device: device.group_info(hub, group.group_id),
        lambda device: device.join(hub, ExternalJoinRequest(message, following)),
        lambda device: device.propose(hub, ExternalProposalRequest(message, None)),
    ]
    pair.link.garbage()
    for ask in asked:
        with pytest.raises(Problem) as refused:
            pair.bob.ask(ask)
        assert refused.value.code == "peer-failed"


def test_a_link_has_one_direction(pair: Pair) -> None:
    pair.federation.link(pair.a, pair.b).cut()
    pair.send(b"the other way")
    assert pair.arrived == [b"the other way"]


def test_a_slow_link_delays_answers(pair: Pair) -> None:
    pair.send(b"before")
    pair.link.delay(0.3)
    assert pair.send(b"slowly") > 0.5  # to the hub and back
    pair.link.restore()
    assert pair.send(b"after") < 0.5


def test_a_stalled_link_holds_data_back_and_loses_none(pair: Pair) -> None:
    pair.send(b"before")
    pair.link.stall()
    with pytest.raises(Problem, match="peer-unavailable"):
        pair.bob.ask(lambda device: device.receive(pair.group.hub, pair.group.key, 5))  # more than is stored
    pair.link.restore()
    assert pair.arrived == [b"before"]


def test_a_request_that_arrives_twice_is_answered_once(pair: Pair) -> None:
    pair.link.duplicate()
    pair.send(b"once")
    pair.send(b"twice")
    requests = pair.a.metrics()['mimids_requests_total{code="ok",route="send"}']
    assert requests == 4
    assert pair.arrived == [b"once", b"twice"]


def test_faults_outlast_a_restart_until_restore(pair: Pair) -> None:
    pair.link.answer(503)
    pair.a.restart()
    with pytest.raises(Problem, match="peer-unavailable"):
        pair.send(b"refused")
    pair.link.restore()
    pair.send(b"taken")


@pytest.mark.parametrize(
    ("who", "point", "arrives"),
    [("a", "handling", False), ("a", "answering", True), ("b", "calling", False), ("b", "answered", True)],
)
def test_a_provider_dies_at_the_given_point(who: str, point: str, arrives: bool, pair: Pair) -> None:
    provider = pair.a if who == "a" else pair.b
    provider.die_at(point, "/ds/v1/send", skip=1)  # type: ignore[arg-type]
    pair.send(b"passes")
    assert provider.is_running()
    with pytest.raises(Exception, match=r"peer-unavailable|disconnected|closed|reset|Disconnected|Server"):
        pair.send(b"fatal")
    assert provider.wait_ended() == -9
    provider.start()
    assert pair.arrived == ([b"passes", b"fatal"] if arrives else [b"passes"])


def test_without_links_a_fault_of_a_link_is_refused_with_a_reason(mimids_session: Session) -> None:
    with federation("a.example", "b.example", links=False, session=mimids_session) as made:
        a, b = made
        assert a.config.providers[b.name].url == b.public_url  # type: ignore[index]
        with pytest.raises(RuntimeError, match="links=False"):
            made.link(a, b).cut()
        made.link(a, b).garbage()
        made.link(a, b).restore()
