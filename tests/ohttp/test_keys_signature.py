from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import (
    HEADER,
    LABEL,
    Identity,
    KeysExpired,
    KeysMalformed,
    KeysRefused,
    KeysToBeSigned,
    KeysUnsigned,
    KeysWronglySigned,
    sign,
    verify,
)
from mimids.wire.declare import decode, encode
from mimids.wire.ids import ProviderId

PROVIDER = ProviderId("b.example")
IDENTITY = Identity(bytes(range(32)))
CONFIG = key_config(1, PrivateKey(bytes(range(32, 64))))
BODY = encode_keys((CONFIG,))
NOT_AFTER = 1_764_000_000
SIGNED = sign(PROVIDER, BODY, NOT_AFTER, IDENTITY)


def check(header: str | None = SIGNED, body: bytes = BODY, provider: str = PROVIDER, now: int = NOT_AFTER) -> object:
    return verify(ProviderId(provider), body, header, IDENTITY.public, now)


def test_signed_configurations_are_accepted_until_not_after() -> None:
    assert check() == (CONFIG,)
    assert check(now=0) == (CONFIG,)
    with pytest.raises(KeysExpired):
        check(now=NOT_AFTER + 1)


@given(
    body=st.binary(min_size=1, max_size=50),
    provider=st.sampled_from(["b.example", "a-1.b.example"]),
    not_after=st.integers(0, 10**15 - 1),
)
def test_the_signature_is_ed25519_over_what_the_docs_say(body: bytes, provider: str, not_after: int) -> None:
    header = sign(ProviderId(provider), body, not_after, IDENTITY)
    found = re.fullmatch(r"not_after=(\d+), signature=:(.+):", header)
    assert found is not None
    assert int(found[1]) == not_after
    covered = bytes([len(LABEL)]) + LABEL + bytes([len(provider)]) + provider.encode()
    covered += bytes([len(body)]) + body + not_after.to_bytes(8, "big")
    Ed25519PublicKey.from_public_bytes(IDENTITY.public).verify(base64.b64decode(found[2]), covered)


def test_the_signed_octets_are_a_structure_that_reads_back() -> None:
    signed = KeysToBeSigned(LABEL, PROVIDER, BODY, NOT_AFTER)
    assert decode(KeysToBeSigned, encode(signed)) == signed


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        SIGNED + " ",
        " " + SIGNED,
        SIGNED + ", more=1",
        SIGNED.replace(", ", ","),
        SIGNED.replace("not_after=", "not_after=0"),
        SIGNED.replace("not_after=", "not_after=-"),
        SIGNED.replace("not_after=", "not_after=\u0661"),
        SIGNED.replace("=:", "="),
        SIGNED.replace("==:", ":"),
        SIGNED.replace("signature", "signature2"),
        re.sub(r".==:$", "/==:", SIGNED),  # bits beyond the last octet
        "signature=:" + "A" * 86 + "==:, not_after=1",
        "x" * 100_000,
    ],
)
def test_a_header_of_another_form_counts_as_unsigned(header: str | None) -> None:
    assert header != SIGNED
    with pytest.raises(KeysUnsigned):
        check(header)


def test_what_was_signed_for_something_else_is_wrongly_signed() -> None:
    other_identity = sign(PROVIDER, BODY, NOT_AFTER, Identity(b"i" * 32))
    later = SIGNED.replace(str(NOT_AFTER), str(NOT_AFTER + 1))
    other_keys = encode_keys((key_config(1, PrivateKey(b"o" * 32)),))
    for header, body, provider in [
        (other_identity, BODY, PROVIDER),
        (later, BODY, PROVIDER),
        (SIGNED, other_keys, PROVIDER),
        (SIGNED, BODY + BODY, PROVIDER),
        (SIGNED, b"", PROVIDER),
        (SIGNED, BODY, "c.example"),
    ]:
        with pytest.raises(KeysWronglySigned):
            check(header, body, provider, now=0)


@given(at=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_signature_with_one_bit_changed_is_wrong(at: int, bit: int) -> None:
    before, signature, after = SIGNED.split(":")
    octets = bytearray(base64.b64decode(signature))
    octets[at] ^= 1 << bit
    with pytest.raises(KeysWronglySigned):
        check(":".join([before, base64.b64encode(octets).decode(), after]))


def test_only_signed_configurations_are_reported_as_expired() -> None:
    with pytest.raises(KeysWronglySigned):
        check(body=BODY[:-1], now=NOT_AFTER + 1)


def test_a_signed_body_that_is_not_a_collection_is_refused() -> None:
    with pytest.raises(KeysMalformed, match="OhttpKeys"):
        check(sign(PROVIDER, BODY[:-1], NOT_AFTER, IDENTITY), BODY[:-1])


@pytest.mark.parametrize("identity", [b"", bytes(31), bytes(32), bytes(33), b"\xff" * 32])
def test_an_identity_that_is_not_a_key_verifies_nothing(identity: bytes) -> None:
    with pytest.raises(KeysWronglySigned):
        verify(PROVIDER, BODY, SIGNED, identity, 0)


@given(header=st.text(max_size=120), body=st.binary(max_size=60))
def test_any_other_header_is_refused_for_one_of_the_named_reasons(header: str, body: bytes) -> None:
    with pytest.raises(KeysRefused):
        check(header, body)


def test_the_docs_have_this_example() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "ohttp-keys.md").read_text()
    covered = encode(KeysToBeSigned(LABEL, PROVIDER, BODY, NOT_AFTER))
    for line in [
        f"{HEADER}: {SIGNED}",
        f"identity (secret)   {IDENTITY.reveal().hex()}",
        f"ohttp_identity      {base64.urlsafe_b64encode(IDENTITY.public).decode().rstrip('=')}",
    ]:
        assert line in docs
    squeezed = re.sub(r"\s+", "", docs)
    assert BODY.hex() in squeezed
    assert covered.hex() in squeezed
