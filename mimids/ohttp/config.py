"""Key configurations (RFC 9458 section 3): single configurations, and the collection `application/ohttp-keys`."""

from __future__ import annotations

import contextlib
from typing import Final

import attrs

from mimids.ohttp.encapsulation import SYMMETRIC
from mimids.ohttp.hpke import KEM_X25519, PrivateKey
from mimids.wire.codec import UINT8, UINT16, Codec, Reader, WireError

KEYS_TYPE: Final = "application/ohttp-keys"
KEYS_LIMIT: Final = 65536  # octets: the largest collection that a client accepts

# Npk of each KEM in RFC 9180 section 7.1, without which a configuration cannot be parsed.
_PUBLIC_KEY_SIZES: Final = {0x0010: 65, 0x0011: 97, 0x0012: 133, KEM_X25519: 32, 0x0021: 56}


@attrs.frozen
class KeyConfig:
    """A public key of a gateway, with the pairs of KDF and AEAD that it may be used with."""

    key_id: int
    kem_id: int
    public_key: bytes
    algorithms: tuple[tuple[int, int], ...]

    @property
    def usable(self) -> bool:
        """Whether `encapsulate` supports this configuration."""
        return self.kem_id == KEM_X25519 and any(pair in SYMMETRIC for pair in self.algorithms)


def key_config(key_id: int, private: PrivateKey) -> KeyConfig:
    """Return the key configuration that clients get for a gateway's key."""
    return KeyConfig(key_id, KEM_X25519, private.public, SYMMETRIC)


class UnknownKem(WireError):
    """The key configuration names a KEM whose key size is unknown here."""


class _KeyConfig(Codec[KeyConfig]):
    # Written by hand: the size of the key depends on the KEM, and lengths are uint16, not <V>.
    #
    #   Key Identifier (8), HPKE KEM ID (16), HPKE Public Key (Npk * 8),
    #   HPKE Symmetric Algorithms Length (16) = 4..65532, HPKE Symmetric Algorithms (32) ...

    def read(self, reader: Reader) -> KeyConfig:
        key_id, kem_id = reader.uint(1), reader.uint(2)
        size = _PUBLIC_KEY_SIZES.get(kem_id)
        if size is None:
            raise UnknownKem("unknown KEM")
        public_key = reader.take(size)
        octets = reader.uint(2)
        if octets == 0 or octets % 4:
            raise WireError("not a whole number of algorithms", ("algorithms",))
        pairs = Reader(reader.take(octets))
        algorithms = tuple((pairs.uint(2), pairs.uint(2)) for _ in range(octets // 4))
        return KeyConfig(key_id, kem_id, public_key, algorithms)

    def write(self, value: KeyConfig, out: bytearray) -> None:
        UINT8.write(value.key_id, out)
        UINT16.write(value.kem_id, out)
        out += value.public_key
        UINT16.write(4 * len(value.algorithms), out)
        for kdf_id, aead_id in value.algorithms:
            UINT16.write(kdf_id, out)
            UINT16.write(aead_id, out)


KEY_CONFIG: Final[Codec[KeyConfig]] = _KeyConfig()  # a single configuration, without the length before it


def encode_keys(configs: tuple[KeyConfig, ...]) -> bytes:
    """Return these configurations as `application/ohttp-keys`, the preferred one first (RFC 9458 section 3.2)."""
    out = bytearray()
    for config in configs:
        encoded = KEY_CONFIG.encode(config)
        UINT16.write(len(encoded), out)
        out += encoded
    return bytes(out)


def decode_keys(body: bytes) -> tuple[KeyConfig, ...]:
    """Return the configurations of an `application/ohttp-keys`, in order, without those of unknown KEMs.

    Raises `WireError` if any configuration is wrongly encoded. A client MUST then discard the whole collection (RFC
    9458 section 3.2): otherwise an attacker could tell clients apart by the configurations that they still accept.
    """
    if len(body) > KEYS_LIMIT:
        raise WireError(f"longer than {KEYS_LIMIT} octets", ("OhttpKeys",))
    reader = Reader(body)
    configs: list[KeyConfig] = []
    index = 0
    try:
        while reader.pos < reader.end:
            encoded = reader.take(reader.uint(2))
            with contextlib.suppress(UnknownKem):
                configs.append(KEY_CONFIG.decode(encoded))
            index += 1
    except WireError as error:
        raise error.within(str(index)).within("OhttpKeys") from None
    if index == 0:
        raise WireError("empty", ("OhttpKeys",))
    return tuple(configs)
