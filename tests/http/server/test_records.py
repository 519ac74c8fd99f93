"""TLS records reach OpenSSL unchanged, in any pieces, and a few at a time."""

from __future__ import annotations

import ssl

from hypothesis import given
from hypothesis import strategies as st

from mimids.http.server.records import HEADER_OCTETS, RECORDS_AT_ONCE, Records

LENGTHS = st.lists(st.sampled_from([0, 1, 3, 300, 16_640]), max_size=3 * RECORDS_AT_ONCE)


def record(length: int) -> bytes:
    return b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length)


@given(st.binary(max_size=40) | LENGTHS.map(lambda lengths: b"".join(map(record, lengths))), st.data())
def test_all_octets_are_passed_on_in_order(sent: bytes, data: st.DataObject) -> None:
    to = ssl.MemoryBIO()
    records, rest, passed_on = Records(to), sent, b""
    while rest:
        size = data.draw(st.integers(1, min(len(rest), 20_000)))
        records.add(rest[:size])
        rest = rest[size:]
        passed_on += to.read()
        while records.are_waiting:
            records.pass_on()
            passed_on += to.read()
        assert len(passed_on) > len(sent) - len(rest) - HEADER_OCTETS
    records.add(b"")
    assert passed_on + to.read() == sent
    assert to.eof


def test_few_records_are_passed_on_at_a_time() -> None:
    to = ssl.MemoryBIO()
    records = Records(to)
    records.add(record(1) * (2 * RECORDS_AT_ONCE) + record(1)[:-1])
    for _ in range(2):
        assert to.read() == record(1) * RECORDS_AT_ONCE
        assert records.are_waiting
        records.pass_on()
    assert to.read() == record(1)[:-1]
    assert not records.are_waiting
