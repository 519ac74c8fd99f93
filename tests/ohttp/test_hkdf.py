from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.hkdf import HASH_SIZE, expand, extract


@given(
    salt=st.binary(max_size=80), key=st.binary(max_size=80), info=st.binary(max_size=80), length=st.integers(1, 8160)
)
def test_keys_are_those_of_another_implementation(salt: bytes, key: bytes, info: bytes, length: int) -> None:
    theirs = HKDF(SHA256(), length, salt=salt, info=info).derive(key)
    assert expand(extract(salt, key), info, length) == theirs


def test_the_first_test_case_of_rfc_5869_passes() -> None:
    prk = extract(bytes(range(13)), b"\x0b" * 22)
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    made = expand(prk, bytes(range(0xF0, 0xFA)), 42)
    assert made.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_there_are_no_more_octets_than_255_hashes() -> None:
    with pytest.raises(ValueError, match="255"):
        expand(bytes(HASH_SIZE), b"", 255 * HASH_SIZE + 1)
