"""Proposals and commits (RFC 9420 sections 7.6, 8.4, 12.1, 12.4; draft-ietf-mls-extensions).

A proposal of an unknown type is read as one opaque<V>, as OpenMLS and ts-mls do; RFC 9420 does not say how to delimit
its body. The ciphertexts of an UpdatePath are counted and kept as octets: a commit in a group of a thousand members may
have a thousand, and a server can only check their number.
"""

from __future__ import annotations

from typing import Final, NewType

import attrs

from mimids.mls.code_points import (
    APP_DATA_UPDATE_OPERATION,
    COMPONENT_ID,
    PROPOSAL_OR_REF_TYPE,
    PROPOSAL_TYPE,
    PSK_TYPE,
    RESUMPTION_PSK_USAGE,
    AppDataUpdateOperation,
    ComponentId,
    ProposalOrRefType,
    ProposalType,
    PskType,
    ResumptionPskUsage,
)
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import EXTENSIONS, HPKE_PUBLIC_KEY, Extension, HpkePublicKey, LeafNode
from mimids.wire import varint
from mimids.wire.codec import NOTHING, OPAQUE_V, UINT32, UINT64, Codec, Reader, optional, vector
from mimids.wire.declare import codec, select, struct, wire
from mimids.wire.ids import CIPHER_SUITE, GROUP_ID, PROTOCOL_VERSION, CipherSuite, GroupId, ProtocolVersion

ProposalRef = NewType("ProposalRef", bytes)
_PATH: Final = 32  # nodes in a path to the root at most, since leaf indices have 32 bits
_COVERED: Final = 16_384  # proposals in one commit

PROPOSAL_REF: Final[Codec[ProposalRef]] = OPAQUE_V.of(ProposalRef)


@struct
class Add:
    """Add the client with this KeyPackage, which is not validated yet (RFC 9420 section 12.1.1)."""

    key_package: KeyPackageIn = wire(codec(KeyPackageIn))


@struct
class Update:
    """Replace the sender's leaf (RFC 9420 section 12.1.2)."""

    leaf_node: LeafNode = wire(codec(LeafNode))


@struct
class Remove:
    """Remove the member at a leaf index (RFC 9420 section 12.1.3)."""

    removed: int = wire(UINT32)


@struct
class ResumptionPsk:
    """Names the resumption PSK of an earlier epoch (RFC 9420 section 8.4)."""

    usage: ResumptionPskUsage = wire(RESUMPTION_PSK_USAGE)
    psk_group_id: GroupId = wire(GROUP_ID)
    psk_epoch: int = wire(UINT64)


@struct
class ApplicationPsk:
    """Names a PSK of a component (draft-ietf-mls-extensions section 4.5)."""

    component_id: ComponentId = wire(COMPONENT_ID)
    psk_id: bytes = wire(OPAQUE_V)


@struct
class PreSharedKeyId:
    """Names a pre-shared key; for an external PSK, `psk` is its psk_id (RFC 9420 section 8.4)."""

    psktype: PskType = wire(PSK_TYPE)
    psk: bytes | ResumptionPsk | ApplicationPsk = select(
        "psktype",
        {
            PskType.EXTERNAL: OPAQUE_V,
            PskType.RESUMPTION: codec(ResumptionPsk),
            PskType.APPLICATION: codec(ApplicationPsk),
        },
    )
    psk_nonce: bytes = wire(OPAQUE_V)


@struct
class PreSharedKey:
    """Inject a pre-shared key (RFC 9420 section 12.1.4)."""

    psk: PreSharedKeyId = wire(codec(PreSharedKeyId))


@struct
class ReInit:
    """Replace the group with a new one that has these parameters (RFC 9420 section 12.1.5)."""

    group_id: GroupId = wire(GROUP_ID)
    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    extensions: tuple[Extension, ...] = wire(EXTENSIONS)


@struct
class ExternalInit:
    """An external joiner's input to the next epoch's key schedule (RFC 9420 section 12.1.6)."""

    kem_output: bytes = wire(OPAQUE_V)


@struct
class GroupContextExtensions:
    """Replace all extensions of the GroupContext (RFC 9420 section 12.1.7)."""

    extensions: tuple[Extension, ...] = wire(EXTENSIONS)


@struct
class AppDataUpdate:
    """Update or remove one component's data (draft-ietf-mls-extensions section 4.7)."""

    component_id: ComponentId = wire(COMPONENT_ID)
    op: AppDataUpdateOperation = wire(APP_DATA_UPDATE_OPERATION)
    update: bytes | None = select(
        "op", {AppDataUpdateOperation.UPDATE: OPAQUE_V, AppDataUpdateOperation.REMOVE: NOTHING}
    )


@struct
class AppEphemeral:
    """Attach a component's data to the commit without changing state (draft-ietf-mls-extensions section 4.8)."""

    component_id: ComponentId = wire(COMPONENT_ID)
    data: bytes = wire(OPAQUE_V)


@struct
class SelfRemove:
    """Remove the sender's own leaf (draft-ietf-mls-extensions section 5.3); an empty structure."""


Body = (
    Add
    | Update
    | Remove
    | PreSharedKey
    | ReInit
    | ExternalInit
    | GroupContextExtensions
    | AppDataUpdate
    | AppEphemeral
    | SelfRemove
    | bytes
)


@struct
class Proposal:
    """A proposal of any type; for an unknown type, `body` is the content of one opaque<V>."""

    proposal_type: ProposalType = wire(PROPOSAL_TYPE)
    body: Body = select(
        "proposal_type",
        {
            ProposalType.ADD: codec(Add),
            ProposalType.UPDATE: codec(Update),
            ProposalType.REMOVE: codec(Remove),
            ProposalType.PSK: codec(PreSharedKey),
            ProposalType.REINIT: codec(ReInit),
            ProposalType.EXTERNAL_INIT: codec(ExternalInit),
            ProposalType.GROUP_CONTEXT_EXTENSIONS: codec(GroupContextExtensions),
            ProposalType.APP_DATA_UPDATE: codec(AppDataUpdate),
            ProposalType.APP_EPHEMERAL: codec(AppEphemeral),
            ProposalType.SELF_REMOVE: codec(SelfRemove),
        },
        otherwise=OPAQUE_V,
    )


@struct
class ProposalOrRef:
    """A proposal by value, or the ProposalRef of one sent earlier (RFC 9420 section 12.4)."""

    type: ProposalOrRefType = wire(PROPOSAL_OR_REF_TYPE)
    value: Proposal | ProposalRef = select(
        "type", {ProposalOrRefType.PROPOSAL: codec(Proposal), ProposalOrRefType.REFERENCE: PROPOSAL_REF}
    )


@struct
class HpkeCiphertext:
    """One encrypted secret (RFC 9420 section 7.6)."""

    kem_output: bytes = wire(OPAQUE_V)
    ciphertext: bytes = wire(OPAQUE_V)


@attrs.frozen
class Ciphertexts:
    """HPKECiphertext<V>, counted but not parsed; `encoded` is the content of the vector."""

    count: int
    encoded: bytes = attrs.field(repr=lambda octets: f"<{len(octets)} octets>")

    def unpack(self) -> tuple[HpkeCiphertext, ...]:
        """Parse and return the ciphertexts."""
        reader = Reader(self.encoded)
        return tuple(codec(HpkeCiphertext).read(reader) for _ in range(self.count))

    @classmethod
    def of(cls, *ciphertexts: HpkeCiphertext) -> Ciphertexts:
        """Encode ciphertexts as a vector."""
        return cls(len(ciphertexts), b"".join(codec(HpkeCiphertext).encode(each) for each in ciphertexts))


class _Ciphertexts(Codec[Ciphertexts]):
    """Counts ciphertexts: by slices if all in the vector have the same lengths, as is usual, else one by one."""

    def read(self, reader: Reader) -> Ciphertexts:
        stop = reader.block()
        start = reader.pos
        outer, reader.end = reader.end, stop
        count = _count_equal(reader.data, start, stop)
        if count is None:
            count = 0
            while reader.pos < stop:
                reader.pos = reader.block()  # kem_output
                reader.pos = reader.block()  # ciphertext
                count += 1
        reader.pos, reader.end = stop, outer
        return Ciphertexts(count, reader.data[start:stop])

    def write(self, value: Ciphertexts, out: bytearray) -> None:
        out += varint.mls(len(value.encoded))
        out += value.encoded


def _count_equal(data: bytes, start: int, stop: int) -> int | None:
    """Count ciphertexts if all have the lengths of the first; None if they differ or do not parse."""
    try:
        kem, pos = varint.read_mls(data, start, stop)
        kem_header = data[start:pos]
        second = pos + kem
        sealed, pos = varint.read_mls(data, second, stop)
    except varint.VarintError:
        return None
    stride = pos + sealed - start
    count, rest = divmod(stop - start, stride)
    if rest:
        return None
    header = kem_header + data[second:pos]
    places = (*range(start, start + len(kem_header)), *range(second, pos))
    if all(data[place:stop:stride] == bytes((octet,)) * count for place, octet in zip(places, header, strict=True)):
        return count
    return None


CIPHERTEXTS: Final[Codec[Ciphertexts]] = _Ciphertexts()


@struct
class UpdatePathNode:
    """The new key of a node on the filtered direct path, and its secret encrypted to each receiver."""

    encryption_key: HpkePublicKey = wire(HPKE_PUBLIC_KEY)
    encrypted_path_secret: Ciphertexts = wire(CIPHERTEXTS)


@struct
class UpdatePath:
    """A committer's new leaf and the new keys on its path (RFC 9420 section 7.6)."""

    leaf_node: LeafNode = wire(codec(LeafNode))
    nodes: tuple[UpdatePathNode, ...] = wire(vector(codec(UpdatePathNode), most=_PATH))


@struct
class Commit:
    """A commit, which leads to the next epoch (RFC 9420 section 12.4)."""

    proposals: tuple[ProposalOrRef, ...] = wire(vector(codec(ProposalOrRef), most=_COVERED))
    path: UpdatePath | None = wire(optional(codec(UpdatePath)))
