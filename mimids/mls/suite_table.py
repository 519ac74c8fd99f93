"""The cipher suites as data: names, KEMs, hashes, signature schemes, and default code points.

Suites 1 to 7 are those of RFC 9420 section 17.1. The code points of the post-quantum suites are provisional, until IANA
assigns final ones. The operator can change them (`[mls] post_quantum_suites`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# Octets of a public key and of a KEM output: RFC 9180 section 7.1, draft-connolly-cfrg-xwing-kem, FIPS 203 section 8,
# draft-ietf-hpke-pq for the hybrids with a NIST curve.
KEM_SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "X25519": (32, 32),
    "X448": (56, 56),
    "P-256": (65, 65),
    "P-384": (97, 97),
    "P-521": (133, 133),
    "ML-KEM-512": (800, 768),
    "ML-KEM-768": (1184, 1088),
    "ML-KEM-1024": (1568, 1568),
    "X-Wing": (1216, 1120),  # ML-KEM-768 and X25519
    "ML-KEM-768 and P-256": (1249, 1153),
    "ML-KEM-1024 and P-384": (1665, 1665),
}

# Octets of a public signature key: RFC 8032; an uncompressed point for a NIST curve; FIPS 204 section 4.
SIGNATURE_KEY_SIZES: Final[Mapping[str, int]] = {
    "Ed25519": 32,
    "Ed448": 57,
    "P-256": 65,
    "P-384": 97,
    "P-521": 133,
    "ML-DSA-44": 1312,
    "ML-DSA-65": 1952,
    "ML-DSA-87": 2592,
}


class SuiteRow(NamedTuple):
    """A suite; `hash_octets` is the size of its hash, which is SHA-2."""

    name: str
    kem: str
    hash_octets: int
    scheme: str
    codes: tuple[int, ...]


CLASSICAL: Final = (
    SuiteRow("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519", "X25519", 32, "Ed25519", (1,)),
    SuiteRow("MLS_128_DHKEMP256_AES128GCM_SHA256_P256", "P-256", 32, "P-256", (2,)),
    SuiteRow("MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519", "X25519", 32, "Ed25519", (3,)),
    SuiteRow("MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448", "X448", 64, "Ed448", (4,)),
    SuiteRow("MLS_256_DHKEMP521_AES256GCM_SHA512_P521", "P-521", 64, "P-521", (5,)),
    SuiteRow("MLS_256_DHKEMX448_CHACHA20POLY1305_SHA512_Ed448", "X448", 64, "Ed448", (6,)),
    SuiteRow("MLS_256_DHKEMP384_AES256GCM_SHA384_P384", "P-384", 48, "P-384", (7,)),
)

# The post-quantum suites that may have code points. The default code points are those of OpenMLS 0.9, and 0x004D and
# 0x0053 to 0x0058 of ts-mls 1.6. OpenMLS uses the other code points of ts-mls for suites with another hash or signature
# scheme.
POST_QUANTUM: Final = (
    # draft-ietf-mls-pq-ciphersuites-06
    SuiteRow("MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519", "X-Wing", 32, "Ed25519", (0x004F,)),
    SuiteRow("MLS_128_MLKEM768X25519_AES256GCM_SHA384_Ed25519", "X-Wing", 48, "Ed25519", (0x004E,)),
    SuiteRow("MLS_128_MLKEM768P256_AES128GCM_SHA256_P256", "ML-KEM-768 and P-256", 32, "P-256", ()),
    SuiteRow("MLS_128_MLKEM768P256_AES256GCM_SHA384_P256", "ML-KEM-768 and P-256", 48, "P-256", ()),
    SuiteRow("MLS_192_MLKEM1024P384_AES256GCM_SHA384_P384", "ML-KEM-1024 and P-384", 48, "P-384", ()),
    SuiteRow("MLS_128_MLKEM768_AES256GCM_SHA384_Ed25519", "ML-KEM-768", 48, "Ed25519", (0xF042,)),
    SuiteRow("MLS_128_MLKEM768_AES256GCM_SHA384_P256", "ML-KEM-768", 48, "P-256", (0x0050,)),
    SuiteRow("MLS_192_MLKEM1024_AES256GCM_SHA384_P384", "ML-KEM-1024", 48, "P-384", (0x0042,)),
    SuiteRow("MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44", "X-Wing", 48, "ML-DSA-44", (0x0052,)),
    SuiteRow("MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65", "ML-KEM-768", 48, "ML-DSA-65", (0x0051,)),
    SuiteRow("MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87", "ML-KEM-1024", 48, "ML-DSA-87", (0x0907,)),
    # OpenMLS, from before the draft
    SuiteRow("MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519", "X-Wing", 32, "Ed25519", (0x004D,)),
    SuiteRow("MLS_256_MLKEM1024_AES256GCM_SHA512_MLDSA87", "ML-KEM-1024", 64, "ML-DSA-87", (0x0906, 0x0055)),
    # ts-mls, without the suite that OpenMLS has too
    SuiteRow("MLS_128_MLKEM512_AES128GCM_SHA256_Ed25519", "ML-KEM-512", 32, "Ed25519", (0x004D,)),
    SuiteRow("MLS_128_MLKEM512_CHACHA20POLY1305_SHA256_Ed25519", "ML-KEM-512", 32, "Ed25519", ()),
    SuiteRow("MLS_256_MLKEM768_AES256GCM_SHA384_Ed25519", "ML-KEM-768", 48, "Ed25519", ()),
    SuiteRow("MLS_256_MLKEM768_CHACHA20POLY1305_SHA384_Ed25519", "ML-KEM-768", 48, "Ed25519", ()),
    SuiteRow("MLS_256_MLKEM1024_AES256GCM_SHA512_Ed25519", "ML-KEM-1024", 64, "Ed25519", ()),
    SuiteRow("MLS_256_MLKEM1024_CHACHA20POLY1305_SHA512_Ed25519", "ML-KEM-1024", 64, "Ed25519", ()),
    SuiteRow("MLS_256_XWING_AES256GCM_SHA512_Ed25519", "X-Wing", 64, "Ed25519", (0x0053,)),
    SuiteRow("MLS_256_XWING_CHACHA20POLY1305_SHA512_Ed25519", "X-Wing", 64, "Ed25519", (0x0054,)),
    SuiteRow("MLS_256_MLKEM1024_CHACHA20POLY1305_SHA512_MLDSA87", "ML-KEM-1024", 64, "ML-DSA-87", (0x0056,)),
    SuiteRow("MLS_256_XWING_AES256GCM_SHA512_MLDSA87", "X-Wing", 64, "ML-DSA-87", (0x0057,)),
    SuiteRow("MLS_256_XWING_CHACHA20POLY1305_SHA512_MLDSA87", "X-Wing", 64, "ML-DSA-87", (0x0058,)),
)

POST_QUANTUM_NAMES: Final = tuple(row.name for row in POST_QUANTUM)
OFF: Final = "none"  # stands in the place of a name: no suite has this code point
