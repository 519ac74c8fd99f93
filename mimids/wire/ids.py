"""The identifiers of the wire format, each with its codec.

Secrets are wrapped: `repr` shows their length only, they compare in constant time, and `reveal()` returns the octets.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final, NewType, Self

from mimids.wire.codec import OPAQUE_V, UINT16, UINT32, Codec, fixed, opaque

UserId = NewType("UserId", bytes)  # the octets of a MIMI URI: mimi://b.example/u/bob
GroupId = NewType("GroupId", bytes)
KeyPackageRef = NewType("KeyPackageRef", bytes)  # RFC 9420 section 5.2
MaskedPartitionKey = NewType("MaskedPartitionKey", bytes)  # 32, 48 or 64 octets
ProviderId = NewType("ProviderId", str)  # ServiceProviderId: a lower-case LDH domain name
Counter = NewType("Counter", int)  # index in its partition; the first message is 0
ProtocolVersion = NewType("ProtocolVersion", int)
CipherSuite = NewType("CipherSuite", int)

MLS10: Final = ProtocolVersion(1)
NO_LONGER_FOLLOWED: Final = Counter(0xFFFF_FFFF)  # in PushResponse: push no more of this partition

_MASKS: Final = (hashlib.sha256, hashlib.sha384, hashlib.sha512)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(
    r"[0-9]+|0x[0-9a-f]*"
)  # a resolver takes a name whose last label is a number for an IPv4 address


class Secret:
    """Octets that must not reach a log, an error text or, in the clear, the disk."""

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
        first, second, third = (MaskedPartitionKey(hash_(self._octets).digest()) for hash_ in _MASKS)
        return first, second, third

    def mask(self, hash_size: int) -> MaskedPartitionKey:
        """Return the mask of `hash_size` (32, 48 or 64) octets, the hash size of the group's cipher suite."""
        return next(mask for mask in self.masks() if len(mask) == hash_size)


class BearerToken(Secret):
    """The token of a contact card that allows claiming KeyPackages; only its issuer can read a meaning in it."""

    def digest(self) -> bytes:
        """Return the 32 octets that are stored instead of the token."""
        return hashlib.sha256(self._octets).digest()


def provider_id(text: str) -> ProviderId:
    """Return `text` if it is a lower-case LDH domain name (no port, no address literal); raise `ValueError` if not."""
    labels = text.split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        raise ValueError("not a lower-case domain name")
    return ProviderId(text)


def _provider_from_wire(octets: bytes) -> ProviderId:
    return provider_id(octets.decode("ascii"))


def _masked(octets: bytes) -> MaskedPartitionKey:
    if len(octets) not in (32, 48, 64):
        raise ValueError("a masked partition key has 32, 48 or 64 octets")
    return MaskedPartitionKey(octets)


def local_user_id(provider: ProviderId, name: str) -> UserId:
    """Return the user id of a local name: `mimi://PROVIDER/u/NAME`."""
    return UserId(f"mimi://{provider}/u/{name}".encode())


USER_ID: Final[Codec[UserId]] = opaque(1024).of(UserId)
GROUP_ID: Final[Codec[GroupId]] = OPAQUE_V.of(GroupId)
KEY_PACKAGE_REF: Final[Codec[KeyPackageRef]] = opaque(64).of(KeyPackageRef)
PROTOCOL_VERSION: Final[Codec[ProtocolVersion]] = UINT16.of(ProtocolVersion)
CIPHER_SUITE: Final[Codec[CipherSuite]] = UINT16.of(CipherSuite)
COUNTER: Final[Codec[Counter]] = UINT32.of(Counter)
PROVIDER_ID: Final[Codec[ProviderId]] = opaque(253).of(_provider_from_wire, lambda name: name.encode())
MASKED_PARTITION_KEY: Final[Codec[MaskedPartitionKey]] = opaque(64).of(_masked)
PARTITION_KEY: Final[Codec[PartitionKey]] = fixed(PartitionKey.SIZE).of(PartitionKey, PartitionKey.reveal)
BEARER_TOKEN: Final[Codec[BearerToken]] = opaque(1024).of(BearerToken, BearerToken.reveal)
