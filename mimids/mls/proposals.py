"""Proposals and commits (RFC 9420 sections 7.6, 8.4, 12.1, 12.4; draft-ietf-mls-extensions).

RFC 9420 does not say how to delimit the body of a proposal of unknown type. OpenMLS, ts-mls and mls-rs write an
opaque<V>, so the body is read as opaque<V> if the rest then parses. Otherwise it is kept `Unparsed`; `extents` finds
its end in a message, and `_CommitCodec` in a commit. Proposal types of drafts are read in the same way, because their
layouts have changed.

The ciphertexts of an UpdatePath are counted and kept as octets: a commit in a group of a thousand members may have a
thousand ciphertexts, and a server can only check their number.

The file is long because each structure is declared after the structures that it contains, together with its codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NewType

import attrs

from mimids.mls.code_points import (
    APP_DATA_UPDATE_OPERATION,
    COMPONENT_ID,
    DEFAULT_PROPOSALS,
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
from mimids.wire.codec import NOTHING, OPAQUE_V, UINT32, UINT64, Codec, Reader, WireError, optional, vector
from mimids.wire.declare import Struct, codec, select, struct, wire, written_by
from mimids.wire.ids import CIPHER_SUITE, GROUP_ID, PROTOCOL_VERSION, CipherSuite, GroupId, ProtocolVersion

ProposalRef = NewType("ProposalRef", bytes)
_PATH: Final = 32  # the most nodes in a path to the root: leaf indices have 32 bits
_COVERED: Final = 16_384  # proposals in one commit
_COMPARED: Final = 64  # if a commit has more proposals that are not understood, no other layout is tried
_REF_SIZES: Final = (32, 48, 64)  # of a ProposalRef: the hashes of the cipher suites

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


@attrs.frozen
class Unparsed:
    """The body of a proposal, as octets, if it does not have the layout that is declared for the proposal's type."""

    octets: bytes


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
    | Unparsed
)


@struct
class Proposal:
    """A proposal of any type; for an unknown type, `body` is the content of an opaque<V>, else `Unparsed`."""

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

    @property
    def is_understood(self) -> bool:
        """Tell whether the server knows this type and its layout, and so the effect of the proposal."""
        return not isinstance(self.body, bytes | Unparsed)


class _ProposalCodec(Struct[Proposal]):
    """Reads a proposal in its declared layout; writes any proposal, also an `Unparsed` one."""

    def __init__(self) -> None:
        super().__init__(Proposal)
        self._write_declared = self.write_fields
        self.write = self.write_fields = self._write

    def _write(self, value: Proposal, out: bytearray) -> None:
        if isinstance(value.body, Unparsed):
            PROPOSAL_TYPE.write(value.proposal_type, out)
            out += value.body.octets
        else:
            self._write_declared(value, out)


written_by(Proposal, _ProposalCodec())


@struct
class ProposalOrRef:
    """A proposal by value, or the ProposalRef of a proposal sent earlier (RFC 9420 section 12.4)."""

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
    """Counts ciphertexts: by slices if all have the same lengths (the usual case), else one by one."""

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
    """Count ciphertexts if all have the same lengths as the first one; return None if they differ or do not parse."""
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


_Items = tuple[ProposalOrRef, ...]


class _CommitCodec(Struct[Commit]):
    """Reads a commit in the declared layout; if some proposals are then not understood, tries other layouts for them.

    If the list parses with several layouts, the layout with the fewest unexplained items is used. If no layout fits,
    the rest of the list becomes the `Unparsed` body of the first proposal that is not understood.
    """

    def __init__(self) -> None:
        super().__init__(Commit)
        self._read_declared = self.read
        self.read = self._read

    def _read(self, reader: Reader) -> Commit:
        start, end = reader.pos, reader.end
        try:
            declared = self._read_declared(reader)
        except WireError as error:
            reader.pos, reader.end = start, end
            items = _by_another_layout(reader, None)
            if items is None:
                raise error from None
        else:
            if not 0 < _unexplained(declared.proposals) <= _COMPARED:
                return declared
            reader.pos, reader.end = start, end
            items = _by_another_layout(reader, declared.proposals) or declared.proposals
        try:
            return Commit(items, _PATH_CODEC.read(reader))
        except WireError as error:
            raise error.within("path") from None


_PATH_CODEC: Final = optional(codec(UpdatePath))
written_by(Commit, _CommitCodec())


def _by_another_layout(reader: Reader, declared: _Items | None) -> _Items | None:
    """Return a list of proposals as read with the layout that fits best.

    Return None if no other layout is needed, because every proposal is understood, or if no layout can read the list.
    `declared` is the list as read in the declared layout, None if that layout cannot read it.
    """
    stop = reader.block()
    start, end = reader.pos, reader.end
    found = [] if declared is None else [declared]
    for layout in (_opaque, _empty, _rest_of_list):
        reader.pos, reader.end = start, stop  # a failed attempt may end within a vector
        try:
            found.append(_read_items(reader, layout))
        except WireError:
            continue
    reader.pos, reader.end = stop, end
    *fitting, rest = found or [()]
    if not any(isinstance(item.value, Proposal) and not item.value.is_understood for item in rest):
        return None
    return min(fitting, key=_unexplained, default=rest)


def _read_items(reader: Reader, layout: Callable[[Reader], int]) -> _Items:
    """Read the items up to the reader's end; `layout` finds the end of a body that RFC 9420 does not define."""
    items: list[ProposalOrRef] = []
    unparsed = 0
    while reader.pos < reader.end:
        if len(items) == _COVERED:
            raise WireError(f"more than {_COVERED} items")
        place = reader.pos
        code = int.from_bytes(reader.data[place + 1 : place + 3], "big")
        by_value = reader.data[place] == ProposalOrRefType.PROPOSAL and place + 3 <= reader.end
        if not by_value or code in DEFAULT_PROPOSALS:
            items.append(codec(ProposalOrRef).read(reader))
            continue
        unparsed += 1
        if unparsed > _COMPARED:
            raise WireError(f"more than {_COMPARED} proposals of unknown layout")
        reader.pos = place + 3
        reader.pos = layout(reader)
        body = Unparsed(reader.data[place + 3 : reader.pos])
        items.append(ProposalOrRef(ProposalOrRefType.PROPOSAL, Proposal(ProposalType(code), body)))
    return tuple(items)


def _opaque(reader: Reader) -> int:
    return reader.block()


def _empty(reader: Reader) -> int:
    return reader.pos


def _rest_of_list(reader: Reader) -> int:
    return reader.end


def _unexplained(items: _Items) -> int:
    """Count the proposals that are not understood, and the references that are not as long as a hash."""
    return sum(
        not item.value.is_understood if isinstance(item.value, Proposal) else len(item.value) not in _REF_SIZES
        for item in items
    )
