"""Devices and providers whose clocks disagree."""

from __future__ import annotations

import pytest

from mimids.testing import Session, federation
from tests.support.people import DAY, key_packages
from tests.support.stage import SUITE


@pytest.mark.parametrize("days", [0, 1, 40])
def test_a_device_with_a_slow_clock_can_fetch(days: int, mimids_session: Session) -> None:
    """After a day the Date is refused; after forty days the gateway's key is gone too, and the new one is fetched."""
    with federation("a.example", "b.example", session=mimids_session) as (a, b):
        made = key_packages(1, "bob@b.example", 1)
        b.add_device("bob").ask(lambda device: device.upload(made))
        card = b.contact("bob")
        b.clock.advance(days * DAY)
        alice = a.add_device("alice")
        assert alice.ask(lambda device: device.fetch_key_package(card, SUITE)) == made[0]
