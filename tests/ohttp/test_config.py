from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.config import (
    KEY_CONFIG,
    KEYS_LIMIT,
    KeyConfig,
    UnknownKem,
    decode_keys,
    encode_keys,
    key_config,
)
from mimids.ohttp.hpke import PrivateKey
from mimids.wire.codec import WireError

SIZES = {0x0010: 65, 0x0011: 97, 0x0012: 133, 0x0020: 32, 0x0021: 56}
CODE = st.integers(0, 0xFFFF)
CONFIGS = st.sampled_from(sorted(SIZES)).flatmap(
    lambda kem: st.builds(
        KeyConfig,
        key_id=st.integers(0, 255),
        kem_id=st.just(kem),
        public_key=st.binary(min_size=SIZES[kem], max_size=SIZES[kem]),
        algorithms=st.lists(st.tuples(CODE, CODE), min_size=1, max_size=4).map(tuple),
    )
)
OURS = key_config(7, PrivateKey(b"k" * 32))


@given(CONFIGS)
def test_a_configuration_is_read_back(config: KeyConfig) -> None:
    encoded = KEY_CONFIG.encode(config)
    assert KEY_CONFIG.decode(encoded) == config
    with pytest.raises(WireError, match="trailing"):
        KEY_CONFIG.decode(encoded + b"\0")
    for size in range(len(encoded)):
        with pytest.raises(WireError):
            KEY_CONFIG.decode(encoded[:size])


@given(st.lists(CONFIGS, min_size=1, max_size=4).map(tuple))
def test_a_collection_is_read_back(configs: tuple[KeyConfig, ...]) -> None:
    body = encode_keys(configs)
    assert decode_keys(body) == configs
    ends = {len(encode_keys(configs[:count])) for count in range(1, len(configs))}
    for size in set(range(len(body))) - ends:
        with pytest.raises(WireError):
            decode_keys(body[:size])


@given(st.binary(max_size=80))
def test_any_octets_are_a_collection_or_a_wire_error(octets: bytes) -> None:
    try:
        configs = decode_keys(octets)
    except WireError as refusal:
        assert refusal.path[0] == "OhttpKeys"  # noqa: PT017  # only where it is refused
        return
    assert all(KEY_CONFIG.decode(KEY_CONFIG.encode(config)) == config for config in configs)


def test_the_collection_puts_a_length_before_each_configuration_and_one_alone_has_none() -> None:
    one = KEY_CONFIG.encode(OURS)
    assert one == b"\7\0\x20" + OURS.public_key + b"\0\x08\0\1\0\1\0\1\0\3"
    assert encode_keys((OURS,)) == b"\0\x2d" + one


def test_a_configuration_of_an_unknown_kem_is_skipped() -> None:
    unknown = b"\7\x64\x7a" + b"anything at all"
    with pytest.raises(UnknownKem):
        KEY_CONFIG.decode(unknown)
    body = len(unknown).to_bytes(2, "big") + unknown
    assert decode_keys(body) == ()
    assert decode_keys(body + encode_keys((OURS,))) == (OURS,)


@pytest.mark.parametrize("length", [0, 1, 3, 5, 6, 0xFFFD])
def test_algorithms_are_at_least_one_and_whole(length: int) -> None:
    encoded = b"\7\0\x20" + OURS.public_key + length.to_bytes(2, "big") + bytes(length)
    with pytest.raises(WireError, match=r"^algorithms: "):
        KEY_CONFIG.decode(encoded)


def test_one_wrong_configuration_makes_the_collection_invalid() -> None:
    with pytest.raises(WireError, match=r"^OhttpKeys\.1: "):
        decode_keys(encode_keys((OURS,)) + b"\0\4\7\0\x20\0")
    with pytest.raises(WireError, match="empty"):
        decode_keys(b"")
    with pytest.raises(WireError, match="longer"):
        decode_keys(bytes(KEYS_LIMIT + 1))


def test_usable_says_whether_a_request_can_be_made() -> None:
    assert OURS.usable
    assert not KeyConfig(1, 0x0010, bytes(65), ((1, 1),)).usable
    assert not KeyConfig(1, 0x0020, bytes(32), ((1, 2), (2, 1))).usable
    assert KeyConfig(1, 0x0020, bytes(32), ((1, 2), (1, 3))).usable
