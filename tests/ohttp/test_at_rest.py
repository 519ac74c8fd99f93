from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.at_rest import KeyUnavailable, OperatorKey, protect, unprotect
from mimids.wire.ids import Secret

KEY = Secret(b"k" * 32)
OPERATOR, OTHER = OperatorKey(b"o" * 32), OperatorKey(b"p" * 32)
NONCE = bytes(12)


def test_without_an_operator_key_the_key_is_stored_in_the_clear() -> None:
    stored = protect(KEY, b"place", None, NONCE)
    assert stored == b"\0" + KEY.reveal()
    assert unprotect(stored, b"place", None) == unprotect(stored, b"place", OPERATOR) == KEY.reveal()


def test_with_an_operator_key_the_key_is_encrypted_and_bound_to_its_row() -> None:
    stored = protect(KEY, b"place", OPERATOR, NONCE)
    assert KEY.reveal() not in stored
    assert stored[:13] == b"\1" + NONCE
    assert len(stored) == 1 + 12 + 48
    assert unprotect(stored, b"place", OPERATOR) == KEY.reveal()
    for place, operator in [(b"other", OPERATOR), (b"place", OTHER), (b"place", None)]:
        with pytest.raises(KeyUnavailable):
            unprotect(stored, place, operator)


@pytest.mark.parametrize("operator", [None, OPERATOR])
def test_a_damaged_row_is_refused(operator: OperatorKey | None) -> None:
    stored = protect(KEY, b"place", operator, NONCE)
    for damaged in [*(stored[:size] for size in range(len(stored))), stored + b"\0", b"\2" + stored[1:]]:
        with pytest.raises(KeyUnavailable, match="damaged"):
            unprotect(damaged, b"place", operator)


@given(st.integers(13, 60), st.integers(1, 255))
def test_a_changed_ciphertext_is_refused(at: int, change: int) -> None:
    stored = bytearray(protect(KEY, b"place", OPERATOR, NONCE))
    stored[at] ^= change
    with pytest.raises(KeyUnavailable, match="cannot be decrypted"):
        unprotect(bytes(stored), b"place", OPERATOR)


def test_an_operator_key_file_holds_octets_or_hex_digits() -> None:
    octets = bytes(range(100, 132))
    assert OperatorKey.from_file(octets) == OperatorKey.from_file(octets.hex().encode() + b"\n")
    assert OperatorKey.from_file(octets).reveal() == octets
    for content in [b"", b"short", octets[:-1], octets.hex()[:-2].encode(), b"\xff" * 64, b"zz" * 32]:
        with pytest.raises(ValueError):  # noqa: PT011  # raised in three ways, with different messages
            OperatorKey.from_file(content)
