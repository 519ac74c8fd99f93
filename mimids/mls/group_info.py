"""GroupContext and GroupInfo (RFC 9420 sections 8.1, 12.4.3), and the extensions found in them as values."""

from __future__ import annotations

import contextlib
from typing import Final

from mimids.mls.code_points import (
    CREDENTIAL_TYPES,
    EXTENSION_TYPES,
    PROPOSAL_TYPES,
    CredentialType,
    ExtensionType,
    ProposalType,
)
from mimids.mls.leaf_node import (
    EXTENSIONS,
    HPKE_PUBLIC_KEY,
    RATCHET_TREE,
    SIGNATURE_PUBLIC_KEY,
    Credential,
    Extension,
    HpkePublicKey,
    RatchetTree,
    SignaturePublicKey,
    extension_data,
    signed_part,
)
from mimids.mls.suites import Suite, suite_of, verify_with_label
from mimids.wire.codec import OPAQUE_V, UINT32, UINT64, Codec, InRanges, WireError, vector
from mimids.wire.declare import Kept, codec, decode, struct, wire
from mimids.wire.ids import CIPHER_SUITE, GROUP_ID, MLS10, PROTOCOL_VERSION, CipherSuite, GroupId, ProtocolVersion

MLS10_ONLY: Final[Codec[ProtocolVersion]] = PROTOCOL_VERSION.of(InRanges(range(MLS10, MLS10 + 1)))
"""`ProtocolVersion version = mls10;`"""


@struct
class RequiredCapabilities:
    """What every member must support (RFC 9420 section 11.1)."""

    extension_types: tuple[ExtensionType, ...] = wire(EXTENSION_TYPES)
    proposal_types: tuple[ProposalType, ...] = wire(PROPOSAL_TYPES)
    credential_types: tuple[CredentialType, ...] = wire(CREDENTIAL_TYPES)


@struct
class ExternalSender:
    """A sender outside the group that may send proposals (RFC 9420 section 12.1.8.1)."""

    signature_key: SignaturePublicKey = wire(SIGNATURE_PUBLIC_KEY)
    credential: Credential = wire(codec(Credential))


@struct
class ExternalPub:
    """The key that an external joiner encrypts to (RFC 9420 section 12.4.3.2)."""

    external_pub: HpkePublicKey = wire(HPKE_PUBLIC_KEY)


EXTERNAL_SENDERS: Final = vector(codec(ExternalSender))


def required_capabilities(extensions: tuple[Extension, ...]) -> RequiredCapabilities | None:
    """Return the required_capabilities among these extensions; `WireError` if they do not parse."""
    data = extension_data(extensions, ExtensionType.REQUIRED_CAPABILITIES)
    return None if data is None else decode(RequiredCapabilities, data)


def external_senders(extensions: tuple[Extension, ...]) -> tuple[ExternalSender, ...]:
    """Return the external_senders among these extensions, () if there are none; `WireError` if they do not parse.

    ts-mls (1.6.4) writes one ExternalSender without the vector's length, against RFC 9420 section 12.1.8.1, and accepts
    only that form. So both forms are read. No data is valid in both forms, because a credential follows the key.
    """
    data = extension_data(extensions, ExtensionType.EXTERNAL_SENDERS)
    if data is None:
        return ()
    try:
        return EXTERNAL_SENDERS.decode(data)
    except WireError:
        with contextlib.suppress(WireError):
            return (decode(ExternalSender, data),)
        raise


@struct
class GroupContext(Kept):
    """What the members of an epoch agree on (RFC 9420 section 8.1)."""

    version: ProtocolVersion = wire(MLS10_ONLY)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    group_id: GroupId = wire(GROUP_ID)
    epoch: int = wire(UINT64)
    tree_hash: bytes = wire(OPAQUE_V)
    confirmed_transcript_hash: bytes = wire(OPAQUE_V)
    extensions: tuple[Extension, ...] = wire(EXTENSIONS)


@struct
class GroupInfo(Kept):
    """A member's signed statement of an epoch's state (RFC 9420 section 12.4.3)."""

    group_context: GroupContext = wire(codec(GroupContext))
    extensions: tuple[Extension, ...] = wire(EXTENSIONS)
    confirmation_tag: bytes = wire(OPAQUE_V)
    signer: int = wire(UINT32)
    signature: bytes = wire(OPAQUE_V)

    def tbs(self) -> bytes:
        """Return GroupInfoTBS."""
        return signed_part(self.encoded, self.signature)

    def verifies(self, suite: Suite, signature_key: bytes) -> bool:
        """Verify the signature with `signature_key`, the key of the leaf at `signer`."""
        return verify_with_label(suite, signature_key, b"GroupInfoTBS", self.tbs(), self.signature)

    def ratchet_tree(self) -> RatchetTree | None:
        """Return the tree in the ratchet_tree extension, None without one; `WireError` if it does not parse."""
        data = extension_data(self.extensions, ExtensionType.RATCHET_TREE)
        return None if data is None else RATCHET_TREE.decode(data)

    def external_pub(self) -> HpkePublicKey | None:
        """Return the key in the external_pub extension, None without one; `WireError` if it does not parse.

        ts-mls (1.6.4) writes and reads the key without its length, against RFC 9420 section 12.4.3.2. Such a key is
        accepted, because clients of that library can join with it.
        """
        data = extension_data(self.extensions, ExtensionType.EXTERNAL_PUB)
        suite = suite_of(self.group_context.cipher_suite)
        if data is not None and suite is not None and suite.hpke_key_fits(data):
            return HpkePublicKey(data)
        return None if data is None else decode(ExternalPub, data).external_pub
