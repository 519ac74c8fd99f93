"""Devices and providers whose clocks disagree."""

from __future__ import annotations

import pytest

from mimids.testing import Session, federation
from tests.support.people import DAY, key_packages
from tests.support.stage import SUITE


@pytest.mark.parametrize("days", [0, 1, 40])
def test_a_device_whose_clock_is_behind_fetches_all_the_same(days: int, mimids_session: Session) -> None:
    """After a day the Date is refused; after forty the gateway's key is gone as well, and its new one is asked for."""
    with federation("a.example", "b.example", session=mimids_session) as (a, b):
        made = key_packages(1, "bob@b.example", 1)
        b.add_device("bob").ask(lambda device: device.upload(made))
        card = b.contact("bob")
        b.clock.advance(days * DAY)
        alice = a.add_device("alice")
        assert alice.ask(lambda device: device.fetch_key_package(card, SUITE)) == made[0]
