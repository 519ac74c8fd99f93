"""Which process ends a device's stream if it has too many at all processes together."""

from __future__ import annotations

import pytest

from mimids.ds.devices.streams_elsewhere import StreamsElsewhere, surplus_at
from mimids.values import DeviceRow

PHONE, TABLET = DeviceRow(1), DeviceRow(2)


@pytest.mark.parametrize(
    ("newest", "streams", "ended"),
    [
        ("a", {"a": 1, "b": 3}, {}),
        ("a", {"a": 1, "b": 4}, {"b": 1}),
        ("a", {"a": 3, "b": 1, "c": 1}, {"c": 1}),  # the last name of those with the most
        ("a", {"a": 1, "b": 3, "c": 4}, {"b": 1, "c": 3}),
        ("a", {"a": 6, "b": 0}, {}),  # a process bounds its own streams
    ],
)
def test_the_others_end_streams_of_the_process_that_has_the_most(
    newest: str, streams: dict[str, int], ended: dict[str, int]
) -> None:
    for process in streams:
        assert surplus_at(process, newest, streams, 4) == ended.get(process, 0)


def test_streams_are_known_until_their_process_ends_them_or_ends() -> None:
    elsewhere = StreamsElsewhere()
    assert elsewhere.note("a", PHONE, 1)
    assert elsewhere.note("a", PHONE, 2)
    assert elsewhere.note("b", TABLET, 1)
    assert not elsewhere.note("a", PHONE, 1)
    assert elsewhere.of(PHONE) == {"a": 1}
    elsewhere.forget_all_but(["b"])
    assert (elsewhere.of(PHONE), elsewhere.of(TABLET)) == ({}, {"b": 1})
    assert not elsewhere.note("b", TABLET, 0)
    assert elsewhere._of == {}
