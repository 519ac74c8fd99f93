"""Cipher suites: verification never raises, whatever the key and the signature; and which code points there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.mls import code_points
from mimids.mls.code_points import ExtensionType, OpenEnum
from mimids.mls.suite_table import OFF, POST_QUANTUM
from mimids.mls.suites import SUITES, suite_of, use_code_points, verify_with_label
from mimids.wire.codec import UINT16, Codec
from mimids.wire.ids import CipherSuite
from tests.support.mls_makers import Signer, hpke_key

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


@pytest.mark.parametrize(
    ("code", "hash_size", "key", "output", "signature_key", "signature"),
    [
        (0x004D, 32, 1216, 1120, 32, 64),
        (0x004E, 48, 1216, 1120, 32, 64),
        (0x004F, 32, 1216, 1120, 32, 64),
        (0xF042, 48, 1184, 1088, 32, 64),
        (0x0050, 48, 1184, 1088, 65, None),
        (0x0042, 48, 1568, 1568, 97, None),
        (0x0052, 48, 1216, 1120, 1312, 2420),
        (0x0051, 48, 1184, 1088, 1952, 3309),
        (0x0907, 48, 1568, 1568, 2592, 4627),
        (0x0906, 64, 1568, 1568, 2592, 4627),
        (0x0053, 64, 1216, 1120, 32, 64),
    ],
)
def test_sizes_of_the_post_quantum_suites(
    code: int, hash_size: int, key: int, output: int, signature_key: int, signature: int | None
) -> None:
    suite, (signer, signed) = SUITES[code], SIGNED[code]
    assert (len(suite.hash(b"")), suite.hash_size) == (hash_size, hash_size)
    assert [suite.hpke_key_fits(bytes(size)) for size in (key - 1, key, key + 1)] == [False, True, False]
    assert [suite.kem_output_fits(bytes(size)) for size in (output - 1, output, output + 1)] == [False, True, False]
    assert len(signer.public) == signature_key
    assert suite.signature_key_fits(signer.public)
    assert not suite.signature_key_fits(signer.public[:-1])
    assert signature in (None, len(signed))


def test_a_code_point_of_two_libraries_takes_keys_of_either() -> None:
    openmls, ts_mls = 1216, 800
    sizes = [size for size in range(3000) if SUITES[0x004D].hpke_key_fits(bytes(size))]
    assert sizes == [ts_mls, openmls]
    assert [size for size in range(3000) if SUITES[0x004D].kem_output_fits(bytes(size))] == [768, 1120]
    assert SUITES[0x004D].name.split(" or ") == [
        "MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519",
        "MLS_128_MLKEM512_AES128GCM_SHA256_Ed25519",
    ]


def test_suites_that_share_a_default_code_point_differ_only_in_the_kem() -> None:
    by_code: dict[int, set[tuple[int, str]]] = {}
    for row in POST_QUANTUM:
        for code in row.codes:
            by_code.setdefault(code, set()).add((row.hash_octets, row.scheme))
    assert all(len(each) == 1 for each in by_code.values())
    assert not set(by_code) & set(range(8))


def test_kem_outputs_of_curves_are_points() -> None:
    for code in (2, 5, 7):
        point = hpke_key(SUITES[code], 3)
        assert SUITES[code].kem_output_fits(point)
        assert not SUITES[code].kem_output_fits(bytes(len(point)))


@pytest.fixture
def own_code_points() -> Iterator[None]:
    before = dict(SUITES)
    yield
    SUITES.clear()
    SUITES.update(before)


@pytest.mark.usefixtures("own_code_points")
def test_the_operator_gives_code_points_and_takes_them_away() -> None:
    name = "MLS_192_MLKEM1024P384_AES256GCM_SHA384_P384"
    use_code_points({CipherSuite(0x0060): name, CipherSuite(0x004D): OFF, CipherSuite(0x0050): name})
    for code in (0x0060, 0x0050):
        suite = suite_of(code)
        assert suite is not None
        assert (suite.code, suite.name, suite.hpke_key_size, suite.kem_output_size) == (code, name, 1665, 1665)
    assert suite_of(0x004D) is None
    assert suite_of(1) is not None


def test_the_documented_suites_are_those_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mls.md").read_text(encoding="utf-8")
    for row in POST_QUANTUM:
        codes = ", ".join(f"0x{code:04X}" for code in row.codes) or "-"
        assert f"| {codes} | {row.name} | {row.kem} | SHA-{row.hash_octets * 8} | {row.scheme} |" in text
