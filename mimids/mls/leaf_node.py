"""Leaf and parent nodes of the ratchet tree (RFC 9420 sections 5.3, 7.1, 7.2, 12.4.3.3): encoding and signature.

Credentials and extensions of unknown types are kept as octets.
"""

from __future__ import annotations

from typing import Final, NewType

from mimids.mls.code_points import (
    CREDENTIAL_TYPE,
    CREDENTIAL_TYPES,
    EXTENSION_TYPE,
    EXTENSION_TYPES,
    LEAF_NODE_SOURCE,
    MOST_CODE_POINTS,
    NODE_TYPE,
    PROPOSAL_TYPES,
    CredentialType,
    ExtensionType,
    LeafNodeSource,
    NodeType,
    ProposalType,
)
from mimids.mls.suites import Suite, verify_with_label
from mimids.wire import varint
from mimids.wire.codec import NOTHING, OPAQUE_V, UINT32, UINT64, Codec, optional, vector
from mimids.wire.declare import Kept, codec, select, struct, wire
from mimids.wire.ids import CIPHER_SUITE, PROTOCOL_VERSION, CipherSuite, ProtocolVersion

HpkePublicKey = NewType("HpkePublicKey", bytes)
SignaturePublicKey = NewType("SignaturePublicKey", bytes)

_CHAIN: Final = 32  # certificates in a credential
_EXTENSIONS: Final = 1024  # in one list; each type occurs once at most, and types are 16 bits

HPKE_PUBLIC_KEY: Final[Codec[HpkePublicKey]] = OPAQUE_V.of(HpkePublicKey)
SIGNATURE_PUBLIC_KEY: Final[Codec[SignaturePublicKey]] = OPAQUE_V.of(SignaturePublicKey)


def signed_part(encoded: bytes, signature: bytes) -> bytes:
    """Return the encoding of a struct without its last field, `opaque signature<V>`."""
    return encoded[: -len(signature) - len(varint.mls(len(signature)))]


@struct
class Certificate:
    """One certificate of a chain, in DER."""

    cert_data: bytes = wire(OPAQUE_V)


@struct
class Credential:
    """The identity that a leaf claims (RFC 9420 section 5.3).

    `content` is the identity (basic), a tuple of `Certificate`, end entity first (X.509), or the body of any other
    type. RFC 9420 does not say how to delimit an unknown body. It is read as one opaque<V>, as OpenMLS and ts-mls do.
    """

    credential_type: CredentialType = wire(CREDENTIAL_TYPE)
    content: bytes | tuple[Certificate, ...] = select(
        "credential_type",
        {CredentialType.BASIC: OPAQUE_V, CredentialType.X509: vector(codec(Certificate), most=_CHAIN)},
        otherwise=OPAQUE_V,
    )


@struct
class Extension:
    """An extension of any type, its data not parsed (RFC 9420 section 7.2)."""

    extension_type: ExtensionType = wire(EXTENSION_TYPE)
    extension_data: bytes = wire(OPAQUE_V)


EXTENSIONS: Final = vector(codec(Extension), most=_EXTENSIONS)


def extension_data(extensions: tuple[Extension, ...], wanted: ExtensionType) -> bytes | None:
    """Return the data of the first extension of that type, None if there is none."""
    return next((each.extension_data for each in extensions if each.extension_type == wanted), None)


def repeated(extensions: tuple[Extension, ...]) -> bool:
    """Tell whether a type occurs twice, which RFC 9420 section 13.4 forbids in any list of extensions."""
    return len({each.extension_type for each in extensions}) != len(extensions)


@struct
class Capabilities:
    """What a client supports (RFC 9420 section 7.2); unknown values are ignored but kept."""

    versions: tuple[ProtocolVersion, ...] = wire(vector(PROTOCOL_VERSION, most=MOST_CODE_POINTS))
    cipher_suites: tuple[CipherSuite, ...] = wire(vector(CIPHER_SUITE, most=MOST_CODE_POINTS))
    extensions: tuple[ExtensionType, ...] = wire(EXTENSION_TYPES)
    proposals: tuple[ProposalType, ...] = wire(PROPOSAL_TYPES)
    credentials: tuple[CredentialType, ...] = wire(CREDENTIAL_TYPES)


@struct
class Lifetime:
    """When a KeyPackage may be used: seconds since 1970, both ends inclusive."""

    not_before: int = wire(UINT64)
    not_after: int = wire(UINT64)


@struct
class LeafNode(Kept):
    """One client's place in a group, signed by the client (RFC 9420 section 7.2).

    `origin` is the field that depends on the source: a `Lifetime` (key_package), None (update), or the parent hash
    (commit).
    """

    encryption_key: HpkePublicKey = wire(HPKE_PUBLIC_KEY)
    signature_key: SignaturePublicKey = wire(SIGNATURE_PUBLIC_KEY)
    credential: Credential = wire(codec(Credential))
    capabilities: Capabilities = wire(codec(Capabilities))
    leaf_node_source: LeafNodeSource = wire(LEAF_NODE_SOURCE)
    origin: Lifetime | bytes | None = select(
        "leaf_node_source",
        {
            LeafNodeSource.KEY_PACKAGE: codec(Lifetime),
            LeafNodeSource.UPDATE: NOTHING,
            LeafNodeSource.COMMIT: OPAQUE_V,
        },
    )
    extensions: tuple[Extension, ...] = wire(EXTENSIONS)
    signature: bytes = wire(OPAQUE_V)

    @property
    def lifetime(self) -> Lifetime | None:
        """Return the lifetime of a leaf from a KeyPackage, None for other leaves."""
        return self.origin if isinstance(self.origin, Lifetime) else None

    @property
    def parent_hash(self) -> bytes | None:
        """Return the parent hash of a leaf from a commit (it may be empty), None for other leaves."""
        return self.origin if isinstance(self.origin, bytes) else None

    def tbs(self, group_id: bytes, leaf_index: int) -> bytes:
        """Return LeafNodeTBS; group id and index are part of it unless the leaf is from a KeyPackage."""
        signed = signed_part(self.encoded, self.signature)
        if self.leaf_node_source is LeafNodeSource.KEY_PACKAGE:
            return signed
        return b"".join((signed, varint.mls(len(group_id)), group_id, leaf_index.to_bytes(4, "big")))

    def verifies(self, suite: Suite, group_id: bytes = b"", leaf_index: int = 0) -> bool:
        """Verify the leaf's own signature (RFC 9420 section 7.3)."""
        return verify_with_label(
            suite, self.signature_key, b"LeafNodeTBS", self.tbs(group_id, leaf_index), self.signature
        )


@struct
class ParentNode(Kept):
    """An inner node of the ratchet tree (RFC 9420 section 7.1)."""

    encryption_key: HpkePublicKey = wire(HPKE_PUBLIC_KEY)
    parent_hash: bytes = wire(OPAQUE_V)
    unmerged_leaves: tuple[int, ...] = wire(vector(UINT32))


@struct
class Node:
    """A nonblank node of a ratchet tree (RFC 9420 section 12.4.3.3)."""

    node_type: NodeType = wire(NODE_TYPE)
    node: LeafNode | ParentNode = select(
        "node_type", {NodeType.LEAF: codec(LeafNode), NodeType.PARENT: codec(ParentNode)}
    )


RatchetTree = tuple[Node | None, ...]
_MOST_NODES: Final = 1 << 20  # nodes of a tree, also blank ones; a node of 5 octets takes 180 in memory
RATCHET_TREE: Final[Codec[RatchetTree]] = vector(optional(codec(Node)), most=_MOST_NODES)
