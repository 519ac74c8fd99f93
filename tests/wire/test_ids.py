"""Identifiers: which octets are valid, and that secrets are not shown."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.wire.codec import Codec, WireError
from mimids.wire.declare import decode, encode, struct, wire
from mimids.wire.ids import (
    BEARER_TOKEN,
    CIPHER_SUITE,
    COUNTER,
    GROUP_ID,
    KEY_PACKAGE_REF,
    MASKED_PARTITION_KEY,
    NO_LONGER_FOLLOWED,
    PARTITION_KEY,
    PROTOCOL_VERSION,
    PROVIDER_ID,
    USER_ID,
    BearerToken,
    PartitionKey,
    ProviderId,
    Secret,
    local_user_id,
    name_fault,
    normal_user_id,
    provider_id,
    spelling_fault,
)

SECRETS = pytest.mark.parametrize("cls", [Secret, PartitionKey, BearerToken])
HEX = "000102030405060708090a0b0c0d0e0f"


# --- secrets ------------------------------------------------------------------------------------------------------


@SECRETS
def test_a_secret_shows_its_length_and_only_reveal_returns_it(cls: type[Secret]) -> None:
    secret = cls(b"hunter2")
    assert repr(secret) == str(secret) == f"{secret}" == f"<{cls.__name__}: 7 octets>"
    assert secret.reveal() == b"hunter2"


@SECRETS
@given(one=st.binary(max_size=3), other=st.binary(max_size=3))
def test_secrets_are_equal_and_hash_alike_when_their_octets_are(cls: type[Secret], one: bytes, other: bytes) -> None:
    assert (cls(one) == cls(other)) == (one == other)
    assert len({cls(one), cls(one), cls(other)}) == (1 if one == other else 2)
    assert len({hash(cls(bytes([octet]))) for octet in range(9)}) > 1


def test_secrets_of_two_kinds_are_never_equal() -> None:
    kinds: list[object] = [Secret(b"x"), PartitionKey(b"x"), BearerToken(b"x"), b"x", "x"]
    assert len(set(kinds)) == 5
    assert [Secret(b"x") == other for other in kinds] == [True, False, False, False, False]


@struct
class _Holder:
    token: BearerToken = wire(BEARER_TOKEN)
    key: PartitionKey = wire(PARTITION_KEY)


def test_a_struct_does_not_show_its_secrets() -> None:
    holder = _Holder(BearerToken(b"hunter2"), PartitionKey(b"correct horse ba"))
    assert repr(holder) == "_Holder(token=<BearerToken: 7 octets>, key=<PartitionKey: 16 octets>)"
    assert decode(_Holder, encode(holder)) == holder


def test_an_error_about_a_secret_does_not_show_it() -> None:
    with pytest.raises(WireError) as caught:
        decode(_Holder, b"\7hunter2" + b"correct horse b")
    assert str(caught.value) == "_Holder.key: truncated"
    assert b"horse" not in repr(caught.value).encode()


def test_a_token_is_stored_as_its_hash() -> None:
    assert BearerToken(b"hunter2").digest() == hashlib.sha256(b"hunter2").digest()


# --- partition keys -----------------------------------------------------------------------------------------------


def test_a_partition_key_is_16_octets_without_a_length() -> None:
    key = PartitionKey(bytes(range(16)))
    assert PARTITION_KEY.encode(key) == bytes.fromhex(HEX)
    assert (
        PARTITION_KEY.decode(bytes.fromhex(HEX))
        == key
        == PartitionKey.from_hex(HEX)
        == PartitionKey.from_hex(HEX.upper())
    )
    for octets in (b"", bytes(15), bytes(17)):
        with pytest.raises(WireError):
            PARTITION_KEY.decode(octets)
        with pytest.raises(ValueError, match="16 octets needed"):
            PARTITION_KEY.encode(PartitionKey(octets))


@pytest.mark.parametrize(
    "text",
    ["", HEX[2:], HEX + "00", HEX[1:], "0x" + HEX[2:], HEX[:-2] + "zz", HEX[:16] + " " + HEX[16:], HEX[:-2] + "  "],
)
def test_a_partition_key_in_text_is_32_hex_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        PartitionKey.from_hex(text)


def test_a_key_has_a_mask_for_each_hash_and_a_suite_has_one_of_them() -> None:
    key = PartitionKey.from_hex(HEX)
    expected = [hash_(bytes.fromhex(HEX)).digest() for hash_ in (hashlib.sha256, hashlib.sha384, hashlib.sha512)]
    assert list(key.masks()) == expected
    assert [key.mask(size) for size in (32, 48, 64)] == expected


@pytest.mark.parametrize(("size", "length"), [(32, "20"), (48, "30"), (64, "4040")])
def test_a_mask_has_the_size_of_one_of_the_hashes(size: int, length: str) -> None:
    mask = bytes(range(size))
    encoded = bytes.fromhex(length) + mask
    assert MASKED_PARTITION_KEY.decode(encoded) == mask
    assert MASKED_PARTITION_KEY.encode(MASKED_PARTITION_KEY.decode(encoded)) == encoded


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\0", "value not allowed"),
        (b"\x10" + bytes(16), "value not allowed"),
        (b"\x14" + bytes(20), "value not allowed"),
        (b"\x1f" + bytes(31), "value not allowed"),
        (b"\x21" + bytes(33), "value not allowed"),
        (b"\x3f" + bytes(63), "value not allowed"),
        (b"\x40\x41" + bytes(65), "longer than 64 octets"),
    ],
)
def test_octets_of_another_size_are_not_a_mask(octets: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        MASKED_PARTITION_KEY.decode(octets)
    assert str(caught.value) == reason


# --- providers and users ------------------------------------------------------------------------------------------

LABEL = "a" * 63
LONGEST = ".".join([LABEL] * 3) + "." + "a" * 61


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "localhost",
        "a.example",
        "xn--bcher-kva.example",
        "1and1.example",
        "1.2.3.4.example",
        "a--b.c-d.example",
        "example.0xyz",
        "fe80",
        f"{LABEL}.example",
        LONGEST,
    ],
)
def test_a_provider_is_a_lower_case_domain_name(name: str) -> None:
    assert provider_id(name) == name
    encoded = PROVIDER_ID.encode(ProviderId(name))
    assert encoded.endswith(name.encode())
    assert PROVIDER_ID.decode(encoded) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.example.",
        ".example",
        "a..example",
        "A.example",
        "a.exampl\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a.\N{ARABIC-INDIC DIGIT ONE}",
        "a_b.example",
        "-a.example",
        "a-.example",
        "a.example-",
        "a.example:443",
        "a.example\n",
        " a.example",
        "a.example/",
        "alice@a.example",
        "*.example",
        f"{LABEL}a.example",
        f"{LONGEST}a",
        "127.0.0.1",
        "2130706433",
        "127.1",
        "a.example.1",
        "0x7f000001",  # as some resolvers write 127.0.0.1
        "127.0.0.0x1",
        "0x7f.1",
        "example.0x",
        "fe80::1",
        "[::1]",
    ],
)
def test_another_name_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"^not a lower-case domain name$"):
        provider_id(name)
    octets = name.encode()
    length = bytes([len(octets)]) if len(octets) < 64 else bytes([0x40 | len(octets) >> 8, len(octets) & 0xFF])
    with pytest.raises(WireError, match=r"^(value not allowed|longer than 253 octets)$"):
        PROVIDER_ID.decode(length + octets)


@given(st.text(max_size=12) | st.text("ab0x1-.", max_size=12))
def test_a_name_is_checked_alike_in_text_and_on_the_wire(text: str) -> None:
    octets = text.encode("utf-8", "surrogatepass")
    try:
        assert PROVIDER_ID.decode(bytes([len(octets)]) + octets) == provider_id(text)
    except WireError:
        with pytest.raises(ValueError, match="not a lower-case domain name"):
            provider_id(text)


def test_a_local_user_has_a_mimi_uri() -> None:
    assert local_user_id(ProviderId("b.example"), "bob") == b"mimi://b.example/u/bob"


# --- sizes, and code points of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "limit"), [(USER_ID, 1024), (BEARER_TOKEN, 1024), (KEY_PACKAGE_REF, 64), (MASKED_PARTITION_KEY, 64)]
)
def test_an_identifier_is_no_longer_than_it_may_be(by: Codec[object], limit: int) -> None:
    longest = (0x4000 | limit).to_bytes(2, "big") + b"a" * limit
    assert by.encode(by.decode(longest)) == longest
    with pytest.raises(WireError, match=rf"^longer than {limit} octets$"):
        by.decode((0x4000 | limit + 1).to_bytes(2, "big") + b"a" * (limit + 1))


@pytest.mark.parametrize("value", [0, 1, 2, 0x0A0A, 0xEAEA, 0xFFFF])
def test_unknown_versions_and_suites_are_kept(value: int) -> None:
    octets = value.to_bytes(2, "big")
    assert (PROTOCOL_VERSION.decode(octets), CIPHER_SUITE.decode(octets)) == (value, value)
    assert PROTOCOL_VERSION.encode(PROTOCOL_VERSION.decode(octets)) == octets
    assert CIPHER_SUITE.encode(CIPHER_SUITE.decode(octets)) == octets


def test_no_longer_followed_is_the_last_counter() -> None:
    assert COUNTER.encode(NO_LONGER_FOLLOWED) == b"\xff\xff\xff\xff"


def test_a_group_id_may_be_empty_and_has_at_most_256_octets() -> None:
    assert GROUP_ID.decode(b"\0") == b""
    assert GROUP_ID.decode(b"\x41\0" + bytes(256)) == bytes(256)
    with pytest.raises(WireError, match="longer than 256 octets"):
        GROUP_ID.decode(b"\x41\1" + bytes(257))


SPELLINGS = {  # of the user id, what is wrong with it, and its normal spelling
    "mimi://b.example/u/bob": (None, "mimi://b.example/u/bob"),
    "mimi://b.example/u/%C3%BCser": (None, "mimi://b.example/u/%C3%BCser"),
    "mimi://b.example/u/a%2Fb": (None, "mimi://b.example/u/a%2Fb"),
    "mimi://b.example/u/...": (None, "mimi://b.example/u/..."),
    "mimi://b.example/u/%61lice": ("%61 must be written as a", "mimi://b.example/u/alice"),
    "mimi://b.example/u/x%7Ey": ("%7E must be written as ~", "mimi://b.example/u/x~y"),
    "mimi://b.example/u/%c3%bcser": ("%c3 must be written as %C3", "mimi://b.example/u/%C3%BCser"),
    "mimi://B.example/u/bob": ("lower case", "mimi://b.example/u/bob"),
    "MIMI://b.example/u/bob": ("lower case", "mimi://b.example/u/bob"),
    "mimi://b.example/u/..": ("dot segment", None),
    "mimi://b.example/u/.": ("dot segment", None),
    "mimi://b.example/u/%2E%2e": ("%2E must be written as .", None),
    "mimi://b.example/u/%00": ("control", None),
    "mimi://b.example/u/bob%0A": ("control", None),
    "mimi://b.example/u/bob%7F": ("control", None),
    "mimi://b_.example/u/bob": ("expected a user id", None),
    "mimi://10.0.0.1/u/bob": ("not a lower-case domain name", None),
    "mimi://b.example/u/": ("expected a user id", None),
    "mimi://b.example/u/a b": ("expected a user id", None),
    "mimi://b.example/u/bob?x": ("expected a user id", None),
    "mimi://b.example/U/bob": ("expected a user id", None),
    "mimi://b.example/u/bob/d/1": ("expected a user id", None),
}


@pytest.mark.parametrize("written", SPELLINGS)
def test_a_user_id_has_one_spelling(written: str) -> None:
    fault, normal = SPELLINGS[written]
    found = spelling_fault(written.encode())
    assert (found is None) if fault is None else (found is not None and fault in found)
    assert normal_user_id(written.encode()) == (None if normal is None else normal.encode())


def test_a_user_id_of_other_octets_is_none() -> None:
    for octets in (b"\xff", "mimi://b.example/u/böb".encode(), b"", b"mimi://b.example/u/bob\n"):
        assert normal_user_id(octets) is None
        assert spelling_fault(octets) is not None


def test_a_device_may_follow_a_user_id_where_that_is_allowed() -> None:
    assert normal_user_id(b"mimi://b.example/u/bob/d/%61", device=True) == b"mimi://b.example/u/bob"
    assert spelling_fault(b"mimi://b.example/u/bob/d/a", device=True) is None
    assert "must be written as a" in (spelling_fault(b"mimi://b.example/u/bob/d/%61", device=True) or "")


@pytest.mark.parametrize("name", ["bob", "%C3%BC", "a.b", "~", "!$&'()*+,;=:@-"])
def test_names_in_their_normal_spelling_are_right(name: str) -> None:
    assert name_fault(name) is None
