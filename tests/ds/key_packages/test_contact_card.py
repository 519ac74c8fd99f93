"""Octets as text in cards, addresses and JSON: base64url, as all encoders write it and in no other way."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.wire.base64url import base64url, from_base64url


@given(st.binary(max_size=80))
def test_octets_are_read_with_padding_and_without(octets: bytes) -> None:
    assert "=" not in base64url(octets)
    assert from_base64url(base64url(octets)) == octets
    assert from_base64url(urlsafe_b64encode(octets).decode()) == octets


@pytest.mark.parametrize("text", ["A", "QQ=", "QQ===", "QR", "QQ==QQ==", "Q Q", "Q\nQ", "+/+/", "QQ=A", "=", "é"])
def test_what_no_encoder_writes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_base64url(text)
