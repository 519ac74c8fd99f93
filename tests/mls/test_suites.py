"""Cipher suites: verification never raises, whatever the key and the signature."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.mls import code_points
from mimids.mls.code_points import ExtensionType, OpenEnum
from mimids.mls.suites import SUITES, suite_of, verify_with_label
from mimids.wire.codec import UINT16, Codec
from tests.support.mls_makers import Signer

SIGNED = {code: (Signer.of(code), Signer.of(code).sign(b"Label", b"content")) for code in SUITES}


def test_suites_outside_the_table_are_unknown() -> None:
    assert [suite_of(code) is not None for code in (0, 1, 7, 8, 0x0A0A, 0xFFFF)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("code", SUITES)
@given(data=st.data())
def test_a_changed_key_or_signature_is_refused_and_never_raises(code: int, data: st.DataObject) -> None:
    signer, signature = SIGNED[code]
    suite = signer.suite
    assert verify_with_label(suite, signer.public, b"Label", b"content", signature)

    def change(octets: bytes) -> bytes:
        at = data.draw(st.integers(0, len(octets) - 1))
        flip = data.draw(st.integers(1, 255))
        changed = octets[:at] + bytes([octets[at] ^ flip]) + octets[at + 1 :]
        return data.draw(st.sampled_from([changed, octets[:at], octets + b"\0", b"", bytes(len(octets))]))

    assert not verify_with_label(suite, signer.public, b"Label", b"content", change(signature))
    assert not verify_with_label(suite, change(signer.public), b"Label", b"content", signature)


@given(code=st.sampled_from(sorted(SUITES)), key=st.binary(max_size=140), signature=st.binary(max_size=140))
def test_random_keys_and_signatures_are_refused(code: int, key: bytes, signature: bytes) -> None:
    assert not verify_with_label(SUITES[code], key, b"Label", b"", signature)


def test_keys_of_one_suite_do_not_verify_in_another() -> None:
    for code, (signer, signature) in SIGNED.items():
        fits = [
            other
            for other, suite in SUITES.items()
            if verify_with_label(suite, signer.public, b"Label", b"content", signature)
        ]
        assert fits == [other for other, suite in SUITES.items() if suite.scheme == SUITES[code].scheme]


@given(st.integers(0, 0xFFFF))
def test_every_value_of_an_open_registry_round_trips(value: int) -> None:
    octets = UINT16.encode(value)
    registries: list[Codec[Any]] = [
        code_points.EXTENSION_TYPE,
        code_points.PROPOSAL_TYPE,
        code_points.CREDENTIAL_TYPE,
        code_points.COMPONENT_ID,
    ]
    for by in registries:
        member = by.decode(octets)
        assert isinstance(member, OpenEnum)
        assert (int(member), by.encode(member)) == (value, octets)
        assert member.name


def test_an_unknown_value_is_named_and_equal_to_its_number() -> None:
    unknown = ExtensionType(0xF0A5)
    assert unknown.name == "UNKNOWN_0xf0a5"
    assert unknown in (1, 0xF0A5)
    with pytest.raises(ValueError, match="65536"):
        ExtensionType(0x10000)
