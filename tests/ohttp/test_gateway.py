from __future__ import annotations

import hashlib
from http import HTTPStatus

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.errors import OhttpKey, OhttpUndecipherable
from mimids.ohttp import bhttp
from mimids.ohttp.client import Encapsulated, encapsulate
from mimids.ohttp.config import KeyConfig, key_config
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import Aead, HpkeError, PrivateKey
from mimids.wire.codec import WireError

OLD, NEW = PrivateKey(b"o" * 32), PrivateKey(b"n" * 32)
KEYS = {3: OLD, 4: NEW}
CONFIG = key_config(4, NEW)
REQUEST = bhttp.encode_request(bhttp.Request("POST", "https", "b.example", "/key-packages", (), b"body"))
AEADS = pytest.mark.parametrize("aead", list(Aead))

OVERHEAD = 7 + 32 + 16  # octets that encapsulation adds to a request: header, key, tag


def made(aead: Aead = Aead.AES_128_GCM, ephemeral: bytes = b"e" * 32, request: bytes = REQUEST) -> Encapsulated:
    return encapsulate(CONFIG, request, ephemeral, aead=aead)


@AEADS
@given(request=st.binary(max_size=200), response=st.binary(max_size=200), ephemeral=st.binary(min_size=32, max_size=32))
def test_a_request_and_its_response_are_decrypted(
    aead: Aead, request: bytes, response: bytes, ephemeral: bytes
) -> None:
    sent = made(aead, ephemeral, request)
    assert len(sent.message) == len(request) + OVERHEAD
    opened = open_request(sent.message, KEYS)
    assert (opened.key_id, opened.request) == (4, request)
    assert opened.enc == sent.message[7:39] == PrivateKey(ephemeral).public
    assert opened.digest == hashlib.sha256(sent.message).digest()
    sealed = opened.sealer.seal(response, b"n" * opened.sealer.nonce_size)
    assert len(sealed) == len(response) + {Aead.AES_128_GCM: 32, Aead.CHACHA20_POLY1305: 48}[aead]
    assert sent.opener.open(sealed) == response


def test_each_live_key_decrypts_the_requests_to_it() -> None:
    sent = encapsulate(key_config(3, OLD), REQUEST, b"e" * 32)
    assert open_request(sent.message, KEYS).key_id == 3


def test_without_a_choice_the_first_supported_suite_is_used() -> None:
    config = attrs.evolve(CONFIG, algorithms=((2, 1), (1, 2), (1, 3), (1, 1)))
    assert encapsulate(config, REQUEST, b"e" * 32).message[5:7] == b"\0\3"
    assert encapsulate(config, REQUEST, b"e" * 32, aead=Aead.AES_128_GCM).message[5:7] == b"\0\1"


@pytest.mark.parametrize(
    "config",
    [
        KeyConfig(1, 0x0010, bytes(65), ((1, 1),)),
        attrs.evolve(CONFIG, algorithms=((1, 2), (2, 3))),
    ],
)
def test_the_client_refuses_a_configuration_that_it_cannot_use(config: KeyConfig) -> None:
    with pytest.raises(ValueError, match="no supported cipher suite"):
        encapsulate(config, REQUEST, b"e" * 32)


def test_the_client_refuses_a_suite_that_is_not_offered_and_an_unusable_key() -> None:
    with pytest.raises(ValueError, match="no supported cipher suite"):
        encapsulate(attrs.evolve(CONFIG, algorithms=((1, 1),)), REQUEST, b"e" * 32, aead=Aead.CHACHA20_POLY1305)
    with pytest.raises(HpkeError):
        encapsulate(attrs.evolve(CONFIG, public_key=bytes(32)), REQUEST, b"e" * 32)


def altered(message: bytes, at: int, octets: bytes) -> bytes:
    return message[:at] + octets + message[at + len(octets) :]


def test_an_unknown_key_identifier_is_answered_ohttp_key() -> None:
    for key_id in set(range(256)) - set(KEYS):
        with pytest.raises(OhttpKey, match="key identifier unknown") as refusal:
            open_request(altered(made().message, 0, bytes([key_id])), KEYS)
        assert refusal.value.status == HTTPStatus.BAD_REQUEST
        assert refusal.value.problem_type() == "https://iana.org/assignments/http-problem-types#ohttp-key"
    with pytest.raises(OhttpKey):
        open_request(made().message, {})


@pytest.mark.parametrize(
    "suite", ["0010 0001 0001", "0021 0001 0001", "0020 0002 0001", "0020 0001 0002", "0020 0001 ffff"]
)
def test_a_suite_that_is_not_offered_is_answered_ohttp_key(suite: str) -> None:
    with pytest.raises(OhttpKey):
        open_request(altered(made().message, 1, bytes.fromhex(suite)), KEYS)


def test_the_header_is_authenticated() -> None:
    message = made(Aead.AES_128_GCM).message
    for other in (altered(message, 0, b"\3"), altered(message, 5, b"\0\3")):
        with pytest.raises(OhttpUndecipherable):
            open_request(other, KEYS)


@AEADS
def test_every_truncation_is_refused(aead: Aead) -> None:
    message = made(aead).message
    for size in range(OVERHEAD):
        with pytest.raises(WireError, match=r"EncapsulatedRequest.*truncated"):
            open_request(message[:size], KEYS)
    for size in range(OVERHEAD, len(message)):
        with pytest.raises(OhttpUndecipherable):
            open_request(message[:size], KEYS)
    with pytest.raises(OhttpUndecipherable):
        open_request(message + b"\0", KEYS)


@AEADS
@given(data=st.data())
def test_a_corrupted_request_is_refused(aead: Aead, data: st.DataObject) -> None:
    message = made(aead).message
    at = data.draw(st.integers(0, len(message) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda octet: octet != message[at]))
    with pytest.raises((OhttpKey, OhttpUndecipherable)):
        open_request(altered(message, at, bytes([octet])), KEYS)


def test_the_bit_of_a_public_key_that_x25519_ignores_is_authenticated() -> None:
    message = made().message
    with pytest.raises(OhttpUndecipherable):
        open_request(altered(message, 38, bytes([message[38] ^ 0x80])), KEYS)


@given(st.binary(max_size=120).map(lambda tail: b"\4\0\x20\0\1\0\1" + tail) | st.binary(max_size=60))
def test_any_other_octets_are_refused(message: bytes) -> None:
    with pytest.raises((WireError, OhttpKey, OhttpUndecipherable)):
        open_request(message, KEYS)


def test_parts_of_two_requests_do_not_make_a_third() -> None:
    one, two = made(ephemeral=b"1" * 32).message, made(ephemeral=b"2" * 32).message
    head, enc, sealed = slice(7), slice(7, 39), slice(39, None)
    for mixed in (
        one[head] + one[enc] + two[sealed],
        one[head] + two[enc] + one[sealed],
        one[head] + one[sealed] + one[enc],
        one[enc] + one[head] + one[sealed],
        one + two[sealed],
    ):
        with pytest.raises((OhttpKey, OhttpUndecipherable)):
            open_request(mixed, KEYS)


def test_a_point_of_small_order_is_answered_undecipherable() -> None:
    with pytest.raises(OhttpUndecipherable):
        open_request(altered(made().message, 7, bytes(32)), KEYS)


@AEADS
def test_a_sealer_encrypts_once_and_only_with_a_nonce_of_full_length(aead: Aead) -> None:
    sealer = open_request(made(aead).message, KEYS).sealer
    assert sealer.nonce_size == {Aead.AES_128_GCM: 16, Aead.CHACHA20_POLY1305: 32}[aead]
    with pytest.raises(ValueError, match="nonce"):
        sealer.seal(b"", bytes(sealer.nonce_size - 1))
    sealer.seal(b"", bytes(sealer.nonce_size))
    with pytest.raises(RuntimeError, match="answered already"):
        sealer.seal(b"", bytes(sealer.nonce_size))


@AEADS
def test_a_response_decrypts_once_unchanged_and_for_its_own_request_only(aead: Aead) -> None:
    sent, other = made(aead, b"1" * 32), made(aead, b"2" * 32)
    sealer = open_request(sent.message, KEYS).sealer
    response = sealer.seal(b"answer", b"r" * sealer.nonce_size)
    for size in range(len(response)):
        with pytest.raises(HpkeError):
            sent.opener.open(response[:size])
    for at in range(len(response)):
        with pytest.raises(HpkeError):
            sent.opener.open(altered(response, at, bytes([response[at] ^ 1])))
    with pytest.raises(HpkeError):
        other.opener.open(response)
    assert sent.opener.open(response) == b"answer"
    with pytest.raises(RuntimeError, match="decrypted already"):
        sent.opener.open(response)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (b"", "Request.framing: truncated"),
        (b"\1\x40\xc8", "not the framing indicator of a request"),
        (REQUEST + b"\1", "padding is not zero"),
        (
            bhttp.encode_request(bhttp.Request("POST", "https", "", "/", ((b"Expect", b"100-Continue"),))),
            "100-continue",
        ),
    ],
)
def test_an_invalid_inner_request_is_found_after_decryption_so_that_the_error_can_be_sealed(
    inner: bytes, reason: str
) -> None:
    sent = made(request=inner)
    opened = open_request(sent.message, KEYS)
    with pytest.raises(WireError, match=reason):
        read_request(opened)
    refusal = bhttp.encode_response(bhttp.Response(400))
    assert sent.opener.open(opened.sealer.seal(refusal, bytes(16))) == refusal


def test_the_limits_of_the_gateway_apply_to_the_inner_request() -> None:
    opened = open_request(made().message, KEYS)
    assert read_request(opened).content == b"body"
    with pytest.raises(WireError, match="longer than 3"):
        read_request(opened, bhttp.MessageLimits(content=3))
