"""The identifiers of the wire format, each with its codec.

Secrets are wrapped: `repr` shows their length only, they compare in constant time, and `reveal()` returns the octets.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from typing import Final, NewType, Self

from mimids.wire.codec import UINT16, UINT32, AsciiText, Codec, InRanges, OfSizes, fixed, opaque, uint

UserId = NewType("UserId", bytes)  # the octets of a MIMI URI: mimi://b.example/u/bob
GroupId = NewType("GroupId", bytes)
KeyPackageRef = NewType("KeyPackageRef", bytes)  # RFC 9420 section 5.2
MaskedPartitionKey = NewType("MaskedPartitionKey", bytes)  # 32, 48 or 64 octets
ProviderId = NewType("ProviderId", str)  # ServiceProviderId: a lower-case LDH domain name
Counter = NewType("Counter", int)  # index in its partition; the first message is 0
ProtocolVersion = NewType("ProtocolVersion", int)
CipherSuite = NewType("CipherSuite", int)

MLS10: Final = ProtocolVersion(1)
FIRST_COUNTER: Final = Counter(0)
LAST_COUNTER: Final = Counter(0x7FFF_FFFF)  # the largest; sums of counters and lengths fit everywhere
NO_LONGER_FOLLOWED: Final = Counter(0xFFFF_FFFF)  # in PushResponse: the hub should push no more of this partition
GROUP_ID_OCTETS: Final = 256  # the longest group id

_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NUMBER: Final = "(?:[0-9]+|0x[0-9a-f]*)"  # a resolver reads a name whose last label is a number as an IPv4 address
_DOMAIN: Final = re.compile(rf"(?:{_LABEL}\.)*(?!{_NUMBER}$){_LABEL}")
DOMAIN_OCTETS: Final = 253  # the longest domain name
_SEGMENT: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+"  # RFC 3986 section 3.3, not empty
_USER: Final = re.compile(rf"([A-Za-z]+)://([A-Za-z0-9.-]+)/u/({_SEGMENT})(?:/d/({_SEGMENT}))?")
_ENCODED: Final = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986 section 2.3
_CONTROLS: Final = frozenset((*range(0x20), 0x7F))


class Secret:
    """Octets that must not be in a log or an error text.

    The database has only hashes of partition keys and tokens; `ohttp.at_rest` says how it has private keys.
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def reveal(self) -> bytes:
        """Return the octets; only for hashing and for the wire."""
        return self._octets

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._octets)} octets>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._octets, other._octets)

    def __hash__(self) -> int:
        return hash((type(self), self._octets))


class PartitionKey(Secret):
    """16 octets that the members of an epoch export; a device that knows them may use the epoch's partition."""

    SIZE: Final = 16

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Return the key written as 32 hex digits; raise `ValueError` for anything else."""
        octets = bytes.fromhex(text)
        if len(octets) != cls.SIZE or len(text) != 2 * cls.SIZE:  # fromhex ignores spaces
            raise ValueError("a partition key has 32 hex digits")
        return cls(octets)

    def masks(self) -> tuple[MaskedPartitionKey, MaskedPartitionKey, MaskedPartitionKey]:
        """Return Hash(key) under SHA-256, SHA-384 and SHA-512: the partition is stored under one of these."""
        octets = self._octets
        return (
            MaskedPartitionKey(sha256(octets).digest()),
            MaskedPartitionKey(sha384(octets).digest()),
            MaskedPartitionKey(sha512(octets).digest()),
        )

    def mask(self, hash_size: int) -> MaskedPartitionKey:
        """Return the mask of `hash_size` (32, 48 or 64) octets, the hash size of the group's cipher suite."""
        return next(mask for mask in self.masks() if len(mask) == hash_size)


class BearerToken(Secret):
    """The token of a contact card, which allows claiming KeyPackages; only its issuer knows what it means."""

    def digest(self) -> bytes:
        """Return the 32 octets that are stored instead of the token."""
        return sha256(self._octets).digest()


@lru_cache(maxsize=256)  # each request to a hub names it
def provider_id(text: str) -> ProviderId:
    """Return `text` if it is a lower-case LDH domain name (no port, no address literal); raise `ValueError` if not."""
    if len(text) > DOMAIN_OCTETS or not _DOMAIN.fullmatch(text):
        raise ValueError("not a lower-case domain name")
    return ProviderId(text)


def group_id(octets: bytes) -> GroupId:
    """Return a group id from outside the wire format; raise `ValueError` if it is too long."""
    if len(octets) > GROUP_ID_OCTETS:
        raise ValueError(f"a group id has at most {GROUP_ID_OCTETS} octets")
    return GroupId(octets)


def nameable_group_id(octets: bytes) -> GroupId:
    """Return the id of a group that can be created and left; raise `ValueError` if it is empty or too long."""
    if not octets:
        raise ValueError(f"a group id has 1 to {GROUP_ID_OCTETS} octets")
    return group_id(octets)


def local_user_id(provider: ProviderId, name: str) -> UserId:
    """Return the user id of a local name: `mimi://PROVIDER/u/NAME`."""
    return UserId(f"mimi://{provider}/u/{name}".encode())


# The one spelling of each user id (RFC 3986 section 6.2.2). Two spellings of one user would be two users to a database.
# So wherever a user id is written, another spelling is refused, and the error says what is wrong with it. In a group's
# leaf nodes and lists nothing can be refused for its spelling; there, ids are normalized before they are compared.


def normal_user_id(octets: bytes, *, device: bool = False) -> UserId | None:
    """Return the normal spelling of a user id, None for anything else; with `device`, /d/DEVICE may follow the id."""
    try:
        found = _USER.fullmatch(octets.decode("ascii"))
        if found is None or found[1].lower() != "mimi" or (found[4] is not None and not device):
            return None
        provider = provider_id(found[2].lower())
    except ValueError:  # not ASCII, or not a domain name
        return None
    segments = [_normal(segment) for segment in found.groups()[2:] if segment is not None]
    if any(_segment_fault(segment) for segment in segments):
        return None
    return UserId(f"mimi://{provider}/u/{segments[0]}".encode())


def device_in(octets: bytes) -> str | None:
    """Return DEVICE of a user id that is followed by /d/DEVICE, in the normal spelling; None for anything else."""
    if normal_user_id(octets, device=True) is None:
        return None
    found = _USER.fullmatch(octets.decode("ascii"))
    return None if found is None or found[4] is None else _normal(found[4])


def spelling_fault(octets: bytes, *, device: bool = False) -> str | None:
    """Return what is wrong with the spelling of a user id, None if it is normal.

    It accepts the same texts as `normal_user_id`.
    """
    written = octets.decode("ascii", "replace")
    found = _USER.fullmatch(written)
    if found is None or found[1].lower() != "mimi" or (found[4] is not None and not device):
        return "expected a user id such as mimi://b.example/u/bob"
    if written[: found.start(3)] != written[: found.start(3)].lower():
        return "the scheme and the domain of a user id must be in lower case (RFC 3986 section 6.2.2.1)"
    try:
        provider_id(found[2])
    except ValueError as error:
        return f"the provider in the user id is {error}"
    faults = (name_fault(segment) for segment in found.groups()[2:] if segment is not None)
    return next((fault for fault in faults if fault is not None), None)


def name_fault(name: str) -> str | None:
    """Return what is wrong with the spelling of a user's or device's name, None if the spelling is normal."""
    if not re.fullmatch(_SEGMENT, name):
        return "a name has only letters, digits, -._~!$&'()*+,;=:@ and percent-encoded octets"
    for found in _ENCODED.finditer(name):
        normal = _normal(found[0])
        if normal != found[0]:
            rule = "6.2.2.1" if normal.startswith("%") else "6.2.2.2"
            return f"{found[0]} must be written as {normal} (RFC 3986 section {rule})"
    return _segment_fault(name)


def folded(name: str) -> str:
    """Return a name or user id without case and percent-encoding; names with the same result count as one name.

    Case is folded by the rules of Unicode, in the normal form NFC.
    """
    if name.isascii() and "%" not in name:
        return name.lower()
    octets = re.sub(b"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
    text = unicodedata.normalize("NFC", octets.decode("utf-8", "backslashreplace"))
    return unicodedata.normalize("NFC", text.casefold())


def _normal(segment: str) -> str:
    def one(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if _UNRESERVED.fullmatch(character) else found[0].upper()

    return _ENCODED.sub(one, segment)


def _segment_fault(segment: str) -> str | None:
    """Return what is wrong with a name in its normal spelling."""
    if segment in (".", ".."):
        return "a name must not be `.` or `..`, a dot segment (RFC 3986 section 6.2.2.3)"
    if any(int(found[1], 16) in _CONTROLS for found in _ENCODED.finditer(segment)):
        return "a name must not have control characters"
    return None


USER_ID: Final[Codec[UserId]] = opaque(1024).of(UserId)
GROUP_ID: Final[Codec[GroupId]] = opaque(GROUP_ID_OCTETS).of(GroupId)
KEY_PACKAGE_REF: Final[Codec[KeyPackageRef]] = opaque(64).of(KeyPackageRef)
PROTOCOL_VERSION: Final[Codec[ProtocolVersion]] = UINT16.of(ProtocolVersion)
CIPHER_SUITE: Final[Codec[CipherSuite]] = UINT16.of(CipherSuite)
COUNTER: Final[Codec[Counter]] = uint(4, most=LAST_COUNTER).of(Counter)
NEXT_COUNTER: Final[Codec[Counter]] = UINT32.of(
    InRanges(range(LAST_COUNTER + 1), range(NO_LONGER_FOLLOWED, NO_LONGER_FOLLOWED + 1))
).of(Counter)
PROVIDER_ID: Final[Codec[ProviderId]] = opaque(DOMAIN_OCTETS).of(AsciiText(_DOMAIN), str.encode).of(ProviderId)
MASKED_PARTITION_KEY: Final[Codec[MaskedPartitionKey]] = opaque(64).of(OfSizes(32, 48, 64)).of(MaskedPartitionKey)
PARTITION_KEY: Final[Codec[PartitionKey]] = fixed(PartitionKey.SIZE).of(PartitionKey, PartitionKey.reveal)
BEARER_TOKEN: Final[Codec[BearerToken]] = opaque(1024).of(BearerToken, BearerToken.reveal)
